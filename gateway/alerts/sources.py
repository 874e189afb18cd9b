"""What is worth telling about budgets?

That a share of one was reached (`budget_alerts`, written with the booking that reached it), and that one will
not last: at its pace of the last seven days, looked at once that is known for a day, more will be spent than
its limit before its window ends. Each is told once a window.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.alerts.outbox import Alert
from gateway.clock import instant_text
from gateway.ledger.burn_down import MS_PER_DAY, BurnDown, Outlook, burn_down
from gateway.ledger.tables import Budget, BudgetAlert
from gateway.money import usd_text

TOLD_MS = 86_400_000
"""What was reached longer ago is told no more: whoever sets up a webhook does not want the past."""
PACE_KNOWN_MS = MS_PER_DAY


async def reached(session: AsyncSession, *, now_ms: int) -> list[Alert]:
    """Shares of budgets that were reached of late."""
    found = await session.execute(
        select(BudgetAlert, Budget)
        .join(Budget, col(Budget.id) == col(BudgetAlert.budget_id))
        .where(col(BudgetAlert.at_ms) >= now_ms - TOLD_MS)
        .order_by(col(BudgetAlert.at_ms), col(BudgetAlert.percent))
    )
    return [_reached(alert, budget) for alert, budget in found]


def _reached(alert: BudgetAlert, budget: Budget) -> Alert:
    return Alert(
        kind="budget",
        topic=f"budget/{budget.id}/{alert.window_start_ms}/{alert.percent}",
        subject=f"Budget {budget.name} is used up to {alert.percent} %",
        details={
            **_of(budget, alert.window_start_ms),
            "percent": alert.percent,
            "booked_usd": usd_text(alert.posted_usd_nanos),
            "reached_at": instant_text(alert.at_ms),
        },
    )


async def overruns(session: AsyncSession, *, now_ms: int) -> list[Alert]:
    """Budgets that will not last, at their pace."""
    return [
        _overrun(each)
        for each in await burn_down(session, now_ms=now_ms)
        if each.outlook is Outlook.RUNS_OUT
        and each.state.window_end_ms is not None
        and (each.pace_over_ms or 0) >= PACE_KNOWN_MS
    ]


def _overrun(each: BurnDown) -> Alert:
    budget, start_ms = each.state.budget, each.state.window_start_ms
    end = "" if each.at_end_usd_nanos is None else usd_text(each.at_end_usd_nanos)
    return Alert(
        kind="overrun",
        topic=f"overrun/{budget.id}/{start_ms}",
        subject=f"Budget {budget.name} will run out on {instant_text(each.runs_out_at_ms or 0)[:10]}",
        details={
            **_of(budget, start_ms),
            "booked_usd": usd_text(each.state.posted_usd_nanos),
            "pace_usd_a_day": usd_text(each.pace_usd_nanos_a_day or 0),
            "pace_of_last_days": round((each.pace_over_ms or 0) / MS_PER_DAY, 1),
            "runs_out_at": instant_text(each.runs_out_at_ms or 0),
            "at_window_end_usd": end,
        },
    )


def _of(budget: Budget, window_start_ms: int) -> dict[str, str]:
    return {
        "budget": budget.name,
        "budget_id": budget.id,
        "window": budget.window,
        "window_start": instant_text(window_start_ms),
        "limit_usd": usd_text(budget.limit_usd_nanos),
    }
