"""How are price versions kept? All SQL of the noun; flushes, never commits."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from gateway.db import insert_ignoring_duplicates
from gateway.pricing.catalog import PriceBook
from gateway.pricing.rates import Rates
from gateway.pricing.tables import PriceVersion


async def rates_of_version(session: AsyncSession, version: str) -> Rates | None:
    """The rates of a version that was ever in force; None where there is none of that name."""
    row = await session.get(PriceVersion, version)
    if row is None:
        return None
    return Rates(
        input=row.input,
        cached_input=row.cached_input,
        cache_write=row.cache_write,
        output=row.output,
        reasoning=row.reasoning,
    )


async def remember_versions(session: AsyncSession, book: PriceBook, *, now_ms: int) -> None:
    """Write down the versions in force that were never seen before."""
    rows = [
        {
            "version": price.version,
            "target": target,
            "input": price.rates.input,
            "cached_input": price.rates.cached_input,
            "cache_write": price.rates.cache_write,
            "output": price.rates.output,
            "reasoning": price.rates.reasoning,
            "first_seen_at_ms": now_ms,
        }
        for target, price in book.prices.items()
    ]
    await insert_ignoring_duplicates(session, PriceVersion, rows)
