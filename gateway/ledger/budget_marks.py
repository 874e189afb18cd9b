"""What did a budget have booked at an instant of late? All SQL of the marks; flushes, never commits.

A pace is asked for every few seconds, and budgets may have millions of postings. A mark an hour and budget,
for a week, answers from two rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.db import insert_ignoring_duplicates
from gateway.ledger.buckets import Window, window_at
from gateway.ledger.tables import Budget, BudgetMark, BudgetWindow

MARK_MS = 3_600_000
KEPT_MS = 8 * 86_400_000


@dataclass(frozen=True, slots=True)
class Mark:
    """What was booked at an instant."""

    at_ms: int
    posted_usd_nanos: int


async def are_marks_due(session: AsyncSession, *, now_ms: int) -> bool:
    """The last ones are an hour old."""
    last = (await session.execute(select(func.max(col(BudgetMark.at_ms))))).scalar_one()
    return last is None or now_ms - int(last) >= MARK_MS


async def write_marks(session: AsyncSession, *, now_ms: int) -> None:
    """One for each bucket that is in force and was used, and none that is older than a pace needs."""
    found = await session.execute(
        select(col(Budget.id), col(Budget.window)).where(col(Budget.retired_at_ms).is_(None))
    )
    starts = {budget_id: window_at(Window(window), now_ms)[0] for budget_id, window in found}
    booked = await session.execute(
        select(
            col(BudgetWindow.budget_id), col(BudgetWindow.window_start_ms), col(BudgetWindow.posted_usd_nanos)
        ).where(col(BudgetWindow.window_start_ms).in_(sorted(set(starts.values()))))
    )
    rows = [
        {"budget_id": budget, "window_start_ms": start_ms, "at_ms": now_ms, "posted_usd_nanos": posted}
        for budget, start_ms, posted in booked
        if starts.get(budget) == start_ms
    ]
    await insert_ignoring_duplicates(session, BudgetMark, rows)
    await session.execute(delete(BudgetMark).where(col(BudgetMark.at_ms) < now_ms - KEPT_MS))


async def first_mark(
    session: AsyncSession, budget_id: str, window_start_ms: int, *, since_ms: int
) -> Mark | None:
    """The oldest mark of a bucket from an instant on."""
    found = await session.execute(
        select(col(BudgetMark.at_ms), col(BudgetMark.posted_usd_nanos))
        .where(
            col(BudgetMark.budget_id) == budget_id,
            col(BudgetMark.window_start_ms) == window_start_ms,
            col(BudgetMark.at_ms) >= since_ms,
        )
        .order_by(col(BudgetMark.at_ms))
        .limit(1)
    )
    row = found.first()
    return None if row is None else Mark(int(row[0]), int(row[1]))
