"""Where does usage count that is booked after its month was closed?

In the period after the last closed one, as a correction that keeps its own hour: `late_hours` has what each
such booking brought. Hours and attempts stay where they are; a report takes what came late away from the
closed month and adds it to the period in which it counts, on that period's first day. Closing and booking
agree on who was first by a lock, so that nothing is in both and nothing in neither.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, func, insert, or_, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.db import metadata
from gateway.ledger.cuts import MS_PER_HOUR, Cut, Late, epoch_ms, moment_of, month_of, period_text
from gateway.ledger.period_tables import ClosedPeriod, LateHour
from gateway.ledger.tables import Attempt

SETTLING_MS = 600_000
"""No month is closed sooner after its end: until then clocks may differ about which month it is."""
_LOCK = 4_701_920_261
_MS_PER_DAY = 24 * MS_PER_HOUR


async def lock_periods(session: AsyncSession, *, exclusively: bool) -> None:
    """Until the transaction ends no period is closed, or, exclusively, no usage of earlier months is booked.

    SQLite has one writer at a time anyway: begin by `begin_writing`.
    """
    if session.get_bind().dialect.name == "postgresql":
        kind = "" if exclusively else "_shared"
        await session.execute(text(f"SELECT pg_advisory_xact_lock{kind}({_LOCK})"))


async def closed_until(session: AsyncSession) -> int:
    """The first instant that no closed period covers, epoch ms; 0: none is closed."""
    return int((await session.execute(select(func.max(col(ClosedPeriod.end_ms))))).scalar_one() or 0)


async def note_late(
    session: AsyncSession, hours: Sequence[dict[str, Any]], journal_id: str, *, now_ms: int
) -> None:
    """Write down what of a booking is of closed months; in the transaction that books, after its hours.

    Args:
        session: that transaction.
        hours: what the booking added to the hourly sums.
        journal_id: its id.
        now_ms: the database's clock, epoch ms.
    """
    month_ms = epoch_ms(month_of(moment_of(now_ms - SETTLING_MS))[0])
    earlier = [hour for hour in hours if hour["hour_start_ms"] < month_ms]
    if not earlier:
        return
    await lock_periods(session, exclusively=False)
    until_ms = await closed_until(session)
    late = [
        {**hour, "journal_id": journal_id, "billed_in_ms": until_ms}
        for hour in earlier
        if hour["hour_start_ms"] < until_ms
    ]
    if late:
        await session.execute(insert(metadata.tables["late_hours"]), late)


async def parts_of(session: AsyncSession, cut: Cut) -> list[tuple[int, Cut]]:
    """What a report has to add up: the cut itself, and with their signs what late usage moves."""
    hour, billed = col(LateHour.hour_start_ms), col(LateHour.billed_in_ms)
    found = await session.execute(
        select(col(LateHour.journal_id))
        .where(
            or_(
                (hour > cut.start_ms - MS_PER_HOUR) & (hour < cut.end_ms),
                (billed >= cut.start_ms) & (billed < cut.end_ms),
            )
        )
        .limit(1)
    )
    if found.first() is None:
        return [(1, cut)]
    return [(1, cut), (-1, cut.moved(Late.AWAY)), (1, cut.moved(Late.IN))]


async def counted_parts(session: AsyncSession, cut: Cut) -> list[tuple[Cut, list[ColumnElement[bool]]]]:
    """Which attempts count in a report's time: those used in it and booked in time, and what came late.

    Each with what its attempts must meet; together they are what `parts_of` adds up, without taking away.
    """
    asked = Cut((), cut.filters, cut.start_ms, cut.end_ms, wants_attempts=True)
    if len(await parts_of(session, asked)) == 1:
        return [(asked, asked.conditions())]
    late = asked.moved(Late.IN)
    return [(asked, [*asked.conditions(), _on_time()]), (late, late.conditions())]


def _on_time() -> ColumnElement[bool]:
    """No booking brought it after its month was closed."""
    started = col(Attempt.started_at_ms)
    late = select(col(LateHour.journal_id)).where(
        col(LateHour.journal_id) == col(Attempt.journal_id),
        col(LateHour.hour_start_ms) <= started,
        col(LateHour.hour_start_ms) > started - MS_PER_HOUR,
    )
    return ~late.exists()


async def corrected_months(session: AsyncSession, cut: Cut, sums: Sequence[Any]) -> dict[str, list[int]]:
    """What late usage adds to a report, by the month in which it was used.

    Args:
        session: where to ask.
        cut: of the report.
        sums: the figures, of the cut's `moved(Late.IN)`.
    """
    moved = cut.moved(Late.IN)
    day = (moved.used_at // _MS_PER_DAY).label("day")
    found = await session.execute(select(day, *sums).where(*moved.conditions()).group_by(day))
    months: defaultdict[str, list[int]] = defaultdict(lambda: [0] * len(sums))
    for at_day, *values in found:
        month = months[period_text("month", int(at_day))]
        for index, value in enumerate(values):
            month[index] += int(value or 0)
    return dict(sorted(months.items()))
