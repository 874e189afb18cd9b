"""What is a pool's hour by all that is known of it at some instant?"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from gateway.ledger.supply import MS_PER_HOUR, PoolHour, Terms, pool_hour
from gateway.ledger.supply_store import spans_of, works_of


async def counted(
    session: AsyncSession,
    terms: Terms,
    hour_ms: int,
    *,
    booked_before_ms: int | None = None,
    until_ms: int | None = None,
) -> PoolHour:
    """A pool's hour.

    Args:
        session: where to ask.
        terms: of the pool.
        hour_ms: the hour.
        booked_before_ms: which attempts to know of; None: all that are booked.
        until_ms: an hour that is not over is billed until then; None: it is over.
    """
    end_ms = hour_ms + MS_PER_HOUR
    spans = await spans_of(session, start_ms=hour_ms, end_ms=end_ms)
    works = await works_of(
        session,
        terms.pool,
        terms.weights,
        start_ms=hour_ms,
        end_ms=end_ms,
        booked_before_ms=booked_before_ms,
    )
    return pool_hour(terms, hour_ms, spans.get(terms.pool, []), works=works, until_ms=until_ms)
