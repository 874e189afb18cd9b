"""Which work was done for tenants, and what did the cache answer? The SQL of savings.

Reads attempts; sums of products are floats, for only estimates are made of them.
"""

from __future__ import annotations

from sqlalchemy import Float, cast, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.inference import Payer, UsageSource
from gateway.ledger.savings import Hits, Work
from gateway.ledger.tables import Attempt


async def works_of(session: AsyncSession, *, start_ms: int, end_ms: int) -> list[Work]:
    """What was computed for tenants, by pool, model and task; of attempts that started between."""
    read = col(Attempt.input_tokens) + col(Attempt.cache_write_tokens)
    written = col(Attempt.output_tokens) + col(Attempt.reasoning_tokens)
    size = cast(read + written, Float)
    context = cast(written, Float) * (read + col(Attempt.cached_input_tokens) + cast(written, Float) / 2)
    is_counted = col(Attempt.draft_steps).is_not(None)
    sums = (
        func.count(),
        func.sum(read),
        func.sum(col(Attempt.cached_input_tokens)),
        func.sum(written),
        func.sum(context),
        func.sum(size * size),
        func.count(col(Attempt.draft_steps)),
        func.sum(Attempt.draft_steps),
        func.sum(Attempt.draft_tokens),
        func.sum(written).filter(is_counted),
        func.sum(context).filter(is_counted),
    )
    by = (col(Attempt.pool), col(Attempt.model_alias), col(Attempt.task))
    found = await session.execute(
        select(*by, *sums)
        .where(
            col(Attempt.started_at_ms) >= start_ms,
            col(Attempt.started_at_ms) < end_ms,
            col(Attempt.payer) == Payer.TENANT.value,
            col(Attempt.usage_source) != UsageSource.NONE.value,
            col(Attempt.cache) != "hit",
        )
        .group_by(*by)
        .order_by(*by)
    )
    works = []
    for pool, alias, task, *values in found:
        count, fresh, cached, out, ctx, squares, counted, steps, drafted, counted_out, counted_ctx = values
        works.append(
            Work(
                pool=pool,
                model_alias=alias,
                task=task,
                attempts=int(count),
                input_tokens=int(fresh),
                cached_input_tokens=int(cached),
                output_tokens=int(out),
                context_tokens=float(ctx),
                squares=float(squares),
                measured=int(counted),
                steps=int(steps or 0),
                drafted_tokens=int(drafted or 0),
                measured_output_tokens=int(counted_out or 0),
                measured_context_tokens=float(counted_ctx or 0),
            )
        )
    return works


async def hits_of(session: AsyncSession, *, start_ms: int, end_ms: int) -> list[Hits]:
    """What the cache answered."""
    by = (col(Attempt.model_alias), col(Attempt.task))
    found = await session.execute(
        select(*by, func.count())
        .where(
            col(Attempt.started_at_ms) >= start_ms,
            col(Attempt.started_at_ms) < end_ms,
            col(Attempt.cache) == "hit",
        )
        .group_by(*by)
        .order_by(*by)
    )
    return [Hits(alias, task, int(count)) for alias, task, count in found]


async def presence_ms(session: AsyncSession, *, start_ms: int, end_ms: int) -> dict[str, int]:
    """By pool: for how long attempts were in its engines, added up, ms; together they count twice."""
    inside = col(Attempt.ended_at_ms) - col(Attempt.started_at_ms) - func.coalesce(Attempt.queue_ms, 0.0)
    found = await session.execute(
        select(col(Attempt.pool), func.sum(inside))
        .where(
            col(Attempt.started_at_ms) >= start_ms,
            col(Attempt.started_at_ms) < end_ms,
            col(Attempt.usage_source) != UsageSource.NONE.value,
            col(Attempt.cache) != "hit",
        )
        .group_by(col(Attempt.pool))
    )
    return {pool: round(total or 0) for pool, total in found}
