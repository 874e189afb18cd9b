"""How did the bill of supply go, hour by hour or day by day, and what was it for?

Of hours that are frozen: what is still open is in the report of `supply_report`, and follows here once it is
billed. Corrections stand where they are booked.
"""

from __future__ import annotations

from collections import defaultdict

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.ledger.supply import MS_PER_HOUR, LineKind
from gateway.ledger.supply_tables import SupplyLine

Course = dict[int, dict[LineKind, int]]
"""Nano-USD by the first instant of a step (epoch ms) and by what it was for."""


async def supply_course(
    session: AsyncSession, *, start_ms: int, end_ms: int, step_ms: int, pool: str | None = None
) -> Course:
    """The bill's course.

    Args:
        session: where to ask.
        start_ms: first instant, a whole hour.
        end_ms: first instant that does not count.
        step_ms: an hour or whole hours; steps are counted from 1970.
        pool: only of this one; None: of all.
    """
    if step_ms % MS_PER_HOUR:
        raise ValueError("a step is of whole hours")
    hour = col(SupplyLine.hour_start_ms)
    step = (hour // step_ms).label("step")
    line = col(SupplyLine.line)
    statement = (
        select(step, line, func.sum(col(SupplyLine.cost_usd_nanos)))
        .where(hour >= start_ms, hour < end_ms)
        .group_by(step, line)
        .order_by(step, line)
    )
    if pool is not None:
        statement = statement.where(col(SupplyLine.pool) == pool)
    course: defaultdict[int, dict[LineKind, int]] = defaultdict(dict)
    for at, kind, amount in await session.execute(statement):
        course[int(at) * step_ms][LineKind(kind)] = int(amount)
    return dict(course)
