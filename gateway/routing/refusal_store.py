"""What was refused before any attempt? SQL of the noun; flushes, never commits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.db import insert_adding, insert_ignoring_duplicates
from gateway.routing.tables import PolicyCanaryRefusal, RefusalHour

OVERLAP_MS: Final = 60_000
"""So long may writing take from its time stamp to its commit."""
PAGE_ROWS: Final = 5_000


@dataclass(frozen=True, slots=True)
class RefusedUnit:
    """A unit of a canary of which a request was refused."""

    unit: str
    version: str
    at_ms: int
    written_at_ms: int


async def add_refusals(
    session: AsyncSession, hours: Sequence[dict[str, Any]], units: Sequence[dict[str, Any]]
) -> None:
    """Write down sums by hour, and units of canaries that are not there yet.

    Args:
        session: the caller's.
        hours: columns of `refusal_hours`, to be added.
        units: columns of `policy_canary_refusals`.
    """
    await insert_adding(session, RefusalHour, hours)
    if units:
        await insert_ignoring_duplicates(session, PolicyCanaryRefusal, list(units))


async def refused_units(
    session: AsyncSession, number: int, versions: Collection[str], *, written_until_ms: int
) -> list[RefusedUnit]:
    """Units of a canary that were written down since, and shortly before: some may have been read already.

    Args:
        session: the caller's.
        number: of the canary.
        versions: of the policy.
        written_until_ms: the latest that was read, epoch ms.
    """
    written, unit = col(PolicyCanaryRefusal.written_at_ms), col(PolicyCanaryRefusal.unit)
    after: tuple[int, str] = (written_until_ms - OVERLAP_MS, "")
    found: list[RefusedUnit] = []
    while True:
        rows = await session.execute(
            select(unit, col(PolicyCanaryRefusal.version), col(PolicyCanaryRefusal.at_ms), written)
            .where(
                col(PolicyCanaryRefusal.number) == number,
                written >= after[0],
                tuple_(written, unit) > after,
                col(PolicyCanaryRefusal.version).in_(versions),
            )
            .order_by(written, unit)
            .limit(PAGE_ROWS)
        )
        page = [RefusedUnit(*row) for row in rows]
        found += page
        if len(page) < PAGE_ROWS:
            return found
        after = (page[-1].written_at_ms, page[-1].unit)


async def refusals_between(session: AsyncSession, *, from_ms: int, to_ms: int) -> dict[str, int]:
    """Refused requests of the hours that begin in a span of time, by the code of their error."""
    start = col(RefusalHour.hour_start_ms)
    rows = await session.execute(
        select(col(RefusalHour.code), func.sum(col(RefusalHour.requests)))
        .where(start >= from_ms, start < to_ms)
        .group_by(col(RefusalHour.code))
    )
    return {code: int(count) for code, count in rows}
