"""What must a person who signs a report know of where its figures come from?

The last booking that it knew, the prices that were charged by, when it was made, and what stood in the
journal without an owner: amounts that were lent to processes which died, until their records turn up. All of
it is read with the report's own statements, so that it is of the same instant.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, literal, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.ledger.cuts import Cut
from gateway.ledger.tables import Attempt, Budget, JournalEntry, JournalTransaction, SpendHour
from gateway.pricing.tables import PriceVersion

BASIS = "charge"
"""Charges by token rates, as they were booked; what supply cost is another report."""
ATTEMPTS_READ_MAX = 200_000
"""Attempts that are looked through for their price versions; of more, the versions known by then are told."""
VERSIONS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """Where the figures come from."""

    source: str
    """hours or attempts."""
    high_water: str | None
    """The last booking that the report knew; None: the journal is empty."""
    high_water_at_ms: int | None
    price_versions: tuple[str, ...]
    are_prices_used: bool
    """True: exactly those that were charged by; False: all that were known before the end of the period."""
    unallocated_usd_nanos: int
    """In the journal on accounts of nobody, at the time of the report."""


async def read_facts(session: AsyncSession, cut: Cut) -> ReportFacts:
    """Ask for them."""
    newest = await session.execute(
        select(col(JournalTransaction.id), col(JournalTransaction.at_ms))
        .order_by(col(JournalTransaction.at_ms).desc(), col(JournalTransaction.id).desc())
        .limit(1)
    )
    high_water = newest.first()
    versions, are_used = await _price_versions(session, cut)
    return ReportFacts(
        source="hours" if cut.is_hourly else "attempts",
        high_water=None if high_water is None else high_water[0],
        high_water_at_ms=None if high_water is None else high_water[1],
        price_versions=versions,
        are_prices_used=are_used,
        unallocated_usd_nanos=await _unallocated(session),
    )


async def _price_versions(session: AsyncSession, cut: Cut) -> tuple[tuple[str, ...], bool]:
    if await _attempts_about(session, cut) <= ATTEMPTS_READ_MAX:
        asked = Cut((), cut.filters, cut.start_ms, cut.end_ms, wants_attempts=True)
        version = col(Attempt.price_version)
        found = await session.execute(
            select(version).where(*asked.conditions()).distinct().order_by(version).limit(VERSIONS_MAX)
        )
        return tuple(found.scalars()), True
    known = await session.execute(
        select(col(PriceVersion.version))
        .where(col(PriceVersion.first_seen_at_ms) < cut.end_ms)
        .order_by(col(PriceVersion.version))
        .limit(VERSIONS_MAX)
    )
    return tuple(known.scalars()), False


async def _attempts_about(session: AsyncSession, cut: Cut) -> int:
    """How many attempts there are in the hours around the period."""
    hour = col(SpendHour.hour_start_ms)
    found = await session.execute(
        select(func.sum(col(SpendHour.attempts))).where(hour > cut.start_ms - 3_600_000, hour < cut.end_ms)
    )
    return int(found.scalar_one() or 0)


async def _unallocated(session: AsyncSession) -> int:
    # By their names, which an index finds in any collation; with a pattern it would not.
    accounts = select(literal("unattributed:") + col(Budget.id))
    found = await session.execute(
        select(func.sum(col(JournalEntry.amount_usd_nanos))).where(col(JournalEntry.account).in_(accounts))
    )
    return int(found.scalar_one() or 0)
