"""How are budgets' burn-downs shown to people?"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.burn_views import BurnDownView, burn_downs
from gateway.clock import Clock
from gateway.commands.terminal import in_session, print_table
from gateway.ledger.invariants import take_snapshot


def print_burn_down(views: list[BurnDownView]) -> None:
    """Budgets, the first to run out first."""
    print_table(
        ("budget", "whose", "window", "limit USD", "booked USD", "used", "a day", "runs out", ""),
        [
            (
                view.budget.name,
                view.budget.owner,
                view.budget.window,
                view.budget.limit_usd,
                view.budget.state.posted_usd,
                "" if view.budget.state.used_percent is None else f"{view.budget.state.used_percent} %",
                view.pace_usd_a_day or "unknown",
                view.runs_out_at or ("unknown" if view.outlook == "unknown" else "not in its window"),
                view.why,
            )
            for view in views
        ],
    )


def read_burn_down() -> list[BurnDownView]:
    """Every budget in force, of one instant."""
    now_ms = Clock().epoch_ms()

    async def work(session: AsyncSession) -> list[BurnDownView]:
        await take_snapshot(session)
        return await burn_downs(session, now_ms=now_ms)

    return in_session(work)
