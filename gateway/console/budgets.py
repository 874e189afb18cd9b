"""How do budgets stand, when do they run out, and who was told? `/console/budgets`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from fastapi import Request
from fastapi.responses import Response
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.alerts.outbox import recent
from gateway.budget_names import owner_name
from gateway.console.charts import Chart, Number, Series
from gateway.console.display import minute
from gateway.console.navigation import HOME
from gateway.console.pages import page
from gateway.dependencies import ActorDep, ServicesDep, SessionDep
from gateway.identity.store import tenant_names
from gateway.ledger.buckets import Scope, Window, window_at
from gateway.ledger.budget_store import (
    ALERT_PERCENTS,
    BudgetState,
    alerts_in,
    get_budget,
    last_windows,
    page_budgets,
)
from gateway.ledger.burn_down import MS_PER_DAY, BurnDown, booked_by_step, burn_down, burn_down_of
from gateway.ledger.cuts import MS_PER_HOUR
from gateway.paging import PageRequest

PATH = f"{HOME}/budgets"
RETIRED_MAX = 200
TOLD_MAX = 100
TOLD_SHOWN = 12
TOTAL_DAYS = 30
"""Of a budget that never begins anew so many days are drawn, and as many to come."""
TOLD_KINDS = frozenset({"budget", "overrun"})


@dataclass(frozen=True, slots=True)
class Level:
    """A budget's bar, in thousandths of its limit, cut at the whole."""

    used: int
    held: int
    """Lent to processes that serve, or to such as died."""
    is_over: bool


def level_of(state: BudgetState) -> Level:
    """How full it is."""
    limit = state.budget.limit_usd_nanos
    if limit <= 0:
        return Level(1000 if state.posted_usd_nanos else 0, 0, is_over=bool(state.posted_usd_nanos))
    used = max(0, min(1000, state.posted_usd_nanos * 1000 // limit))
    lent = state.leased_usd_nanos + state.unattributed_usd_nanos
    held = max(0, min(1000 - used, lent * 1000 // limit))
    return Level(used, held, is_over=state.posted_usd_nanos > limit)


async def show_budgets(
    request: Request, services: ServicesDep, session: SessionDep, *, actor: ActorDep
) -> Response:
    """All in force, the first to run out first; and what was told lately."""
    now_ms = services.clock.epoch_ms()
    burning = await burn_down(session, now_ms=now_ms)
    with_retired = bool(request.query_params.get("retired"))
    retired: list[BudgetState] = []
    if with_retired:
        found = await page_budgets(session, PageRequest(limit=RETIRED_MAX), now_ms=now_ms, with_retired=True)
        retired = [each for each in found.rows if each.budget.retired_at_ms is not None]
    told = [each for each in await recent(session, limit=TOLD_MAX) if each[0].kind in TOLD_KINDS]
    states = [*(one.state for one in burning), *retired]
    return page(
        "budgets.html",
        section="budgets",
        actor=actor,
        path=PATH,
        burning=burning,
        retired=retired,
        with_retired=with_retired,
        owners={state.budget.id: await owner_name(session, state.budget) for state in states},
        levels={state.budget.id: level_of(state) for state in states},
        told=told[:TOLD_SHOWN],
        scopes=tuple(Scope),
        windows=tuple(Window),
        percents=", ".join(str(each) for each in ALERT_PERCENTS),
        tenants=sorted((await tenant_names(session)).values()),
    )


async def show_budget(
    services: ServicesDep, session: SessionDep, *, actor: ActorDep, budget: str
) -> Response:
    """One of them: its burn-down, what was told, the windows before, and its change.

    Raises:
        NotFound: there is none.
    """
    now_ms = services.clock.epoch_ms()
    burning = await burn_down_of(session, await get_budget(session, budget), now_ms=now_ms)
    found = burning.state.budget
    windows = await last_windows(session, found)
    return page(
        "budget.html",
        section="budgets",
        actor=actor,
        path=PATH,
        one=burning,
        owner=await owner_name(session, found),
        level=level_of(burning.state),
        chart=await _chart(session, burning, now_ms=now_ms),
        alerts=await alerts_in(session, found, burning.state.window_start_ms),
        windows=[(each, window_at(Window(found.window), each.window_start_ms)[1]) for each in windows],
        percents=", ".join(str(each) for each in found.alert_percents),
    )


def _bounds(state: BudgetState, now_ms: int) -> list[int]:
    """Where the steps of the drawing begin and end, epoch ms."""
    window = Window(state.budget.window)
    if window is Window.TOTAL or state.window_end_ms is None:
        today_ms = now_ms // MS_PER_DAY * MS_PER_DAY
        return [today_ms + day * MS_PER_DAY for day in range(1 - TOTAL_DAYS, TOTAL_DAYS + 1)]
    step_ms = MS_PER_HOUR if window is Window.DAY else MS_PER_DAY
    return [*range(state.window_start_ms, state.window_end_ms, step_ms), state.window_end_ms]


async def _chart(session: AsyncSession, one: BurnDown, *, now_ms: int) -> Chart:
    state = one.state
    bounds = _bounds(state, now_ms)
    booked = await booked_by_step(session, state, bounds)
    # What was booked before the drawing begins; nothing where it begins with the window.
    before = state.posted_usd_nanos - sum(booked)
    limit = state.budget.limit_usd_nanos
    added = list(accumulate(booked, initial=before))
    left: list[Number | None] = [
        limit - amount if at_ms <= now_ms else None for at_ms, amount in zip(bounds, added, strict=True)
    ]
    ahead = [at_ms for at_ms in bounds if at_ms > now_ms]
    gone = len(bounds) - len(ahead)
    series = [
        Series("Left", left, kind="line", tone="accent"),
        Series("Limit", [limit] * len(bounds), kind="line", tone="off", is_dashed=True),
    ]
    if one.pace_usd_nanos_a_day is not None:
        now_left = limit - state.posted_usd_nanos
        to_come: list[Number | None] = [
            max(0, now_left - one.pace_usd_nanos_a_day * (at_ms - now_ms) // MS_PER_DAY) for at_ms in ahead
        ]
        start: list[Number | None] = [None] * max(0, gone - 1)
        series.append(
            Series(
                "At this pace",
                [*start, *([now_left] if gone else []), *to_come],
                kind="line",
                is_dashed=True,
                tone="wait",
            )
        )
    return Chart(
        id="burn-down",
        title="What is left, USD, UTC; dashed: at the pace of late",
        description="A line of what is left of the budget, and a dashed one of where its pace leads.",
        across="Instant (UTC)",
        labels=_labels(bounds, Window(state.budget.window)),
        series=series,
        unit="usd",
    )


def _labels(bounds: Sequence[int], window: Window) -> list[str]:
    return [minute(at_ms)[11:] if window is Window.DAY else minute(at_ms)[:10] for at_ms in bounds]
