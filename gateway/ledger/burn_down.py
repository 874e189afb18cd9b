"""How fast does a budget burn down, and when does it run out?

At the pace of late: what was booked in the last seven days (to the hour, as `budget_marks` has it; since the
first mark if that is a day old), or since the window or the budget began. A straight line, said as what it
is: no season, no growth. Where less than an hour can be looked at, or nothing was booked, the answer is that
it is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from sqlalchemy import and_, case, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.ledger.budget_marks import MARK_MS, first_mark
from gateway.ledger.budget_store import BudgetState, state_of
from gateway.ledger.tables import Budget, BudgetPosting

MS_PER_DAY = 86_400_000
PACE_MS = 7 * MS_PER_DAY
PACE_MS_MIN = 3_600_000
FAR_MS = 100 * 365 * MS_PER_DAY
"""A date beyond this is none."""


class Outlook(StrEnum):
    """What becomes of a budget in its window."""

    SPENT = "spent"
    RUNS_OUT = "runs_out"
    """Before its window ends."""
    LASTS = "lasts"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class BurnDown:
    """One budget, and where its pace leads."""

    state: BudgetState
    outlook: Outlook
    why: str
    """For people."""
    pace_usd_nanos_a_day: int | None = None
    pace_over_ms: int | None = None
    """Over which time, until now."""
    runs_out_at_ms: int | None = None
    at_end_usd_nanos: int | None = None
    """What will have been booked when the window ends, at this pace; None: it never ends, or unknown."""


async def burn_down(session: AsyncSession, *, now_ms: int) -> list[BurnDown]:
    """Every budget in force; the first to run out first, those of which nothing is known last."""
    found = await session.execute(
        select(Budget).where(col(Budget.retired_at_ms).is_(None)).order_by(col(Budget.id))
    )
    burning = [await burn_down_of(session, budget, now_ms=now_ms) for budget in found.scalars().all()]
    order = list(Outlook)
    burning.sort(key=lambda one: (order.index(one.outlook), one.runs_out_at_ms or 0, one.state.budget.name))
    return burning


async def burn_down_of(session: AsyncSession, budget: Budget, *, now_ms: int) -> BurnDown:
    """One budget."""
    state = await state_of(session, budget, now_ms=now_ms)
    since_ms, booked = await _pace(session, state, now_ms=now_ms)
    return projected(state, booked_usd_nanos=booked, since_ms=since_ms, now_ms=now_ms)


async def _pace(session: AsyncSession, state: BudgetState, *, now_ms: int) -> tuple[int, int]:
    """Since when the pace is taken, and what was booked since: two rows, however many postings there are."""
    began_ms = max(state.window_start_ms, state.budget.created_at_ms)
    if began_ms < now_ms - PACE_MS:
        mark = await first_mark(
            session, state.budget.id, state.window_start_ms, since_ms=now_ms - PACE_MS - MARK_MS
        )
        if mark is not None and now_ms - mark.at_ms >= MS_PER_DAY:
            return mark.at_ms, state.posted_usd_nanos - mark.posted_usd_nanos
    return began_ms, state.posted_usd_nanos


async def booked_by_step(session: AsyncSession, state: BudgetState, bounds: Sequence[int]) -> list[int]:
    """What was booked on a budget in its window between each two instants, nano-USD.

    Args:
        session: where to ask.
        state: of the window.
        bounds: epoch ms, rising; one more than there are steps.
    """
    amount, booking = col(BudgetPosting.amount_usd_nanos), col(BudgetPosting.transaction_id)
    marks = [f"jtx_{at_ms:012x}" for at_ms in bounds]
    sums = [
        func.sum(case((and_(booking >= first, booking < after), amount), else_=0))
        for first, after in pairwise(marks)
    ]
    found = await session.execute(
        select(*sums).where(
            col(BudgetPosting.budget_id) == state.budget.id,
            col(BudgetPosting.window_start_ms) == state.window_start_ms,
        )
    )
    return [int(value or 0) for value in found.one()]


def projected(state: BudgetState, *, booked_usd_nanos: int, since_ms: int, now_ms: int) -> BurnDown:
    """Where the pace leads.

    Args:
        state: the budget and how it stands.
        booked_usd_nanos: what was booked on it since then.
        since_ms: from when on the pace is taken, epoch ms.
        now_ms: until when.
    """
    left = state.budget.limit_usd_nanos - state.posted_usd_nanos - state.unattributed_usd_nanos
    over_ms = now_ms - since_ms
    if left <= 0:
        return BurnDown(state, Outlook.SPENT, "nothing is left", runs_out_at_ms=now_ms)
    if over_ms < PACE_MS_MIN:
        return BurnDown(state, Outlook.UNKNOWN, "its window began less than an hour ago")
    if booked_usd_nanos <= 0:
        return BurnDown(state, Outlook.UNKNOWN, "nothing was booked lately", pace_over_ms=over_ms)
    runs_out_at_ms = now_ms + left * over_ms // booked_usd_nanos
    end_ms = state.window_end_ms
    at_end = None
    if end_ms is not None:
        at_end = state.posted_usd_nanos + booked_usd_nanos * (end_ms - now_ms) // over_ms
    is_in_time = runs_out_at_ms >= (now_ms + FAR_MS if end_ms is None else end_ms)
    return BurnDown(
        state,
        Outlook.LASTS if is_in_time else Outlook.RUNS_OUT,
        "at its pace the window ends first" if is_in_time else "at its pace it runs out",
        pace_usd_nanos_a_day=booked_usd_nanos * MS_PER_DAY // over_ms,
        pace_over_ms=over_ms,
        runs_out_at_ms=None if is_in_time else runs_out_at_ms,
        at_end_usd_nanos=at_end,
    )
