"""How fast were requests lately, by latency class? Reads only.

Of the newest answered first attempts that no cache answered; at most ROWS_MAX, so that a busy hour is told by
its last minutes.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.inference import AttemptState
from gateway.ledger.reports import PLATFORM_TENANT
from gateway.ledger.tables import Attempt

ROWS_MAX = 5000


@dataclass(frozen=True, slots=True)
class ClassLatency:
    """One latency class."""

    latency_class: str
    requests: int
    ttft_p95_ms: int | None
    """None: nothing was streamed."""
    total_p50_ms: int
    total_p95_ms: int
    since_ms: int
    """The oldest of them started then, epoch ms."""


async def latency_by_class(session: AsyncSession, *, since_ms: int) -> list[ClassLatency]:
    """Classes by name; those without a request are not there."""
    statement = (
        select(
            col(Attempt.service_tier),
            col(Attempt.ttft_ms),
            col(Attempt.total_ms),
            col(Attempt.is_streaming),
            col(Attempt.started_at_ms),
        )
        .where(
            col(Attempt.started_at_ms) >= since_ms,
            col(Attempt.attempt_number) == 1,
            col(Attempt.state) == AttemptState.ANSWERED.value,
            col(Attempt.cache) != "hit",
            col(Attempt.tenant_id) != PLATFORM_TENANT,
        )
        .order_by(col(Attempt.started_at_ms).desc())
        .limit(ROWS_MAX)
    )
    classes: dict[str, list[tuple[int | None, int, int]]] = {}
    for tier, ttft_ms, total_ms, is_streaming, started_at_ms in await session.execute(statement):
        if total_ms is None:
            continue
        name = "default" if tier is None or tier == "auto" else tier
        classes.setdefault(name, []).append((ttft_ms if is_streaming else None, total_ms, started_at_ms))
    return [_of(name, rows) for name, rows in sorted(classes.items())]


def _of(name: str, rows: list[tuple[int | None, int, int]]) -> ClassLatency:
    firsts = sorted(ttft_ms for ttft_ms, _, _ in rows if ttft_ms is not None)
    totals = sorted(total_ms for _, total_ms, _ in rows)
    return ClassLatency(
        latency_class=name,
        requests=len(rows),
        ttft_p95_ms=_quantile(firsts, 95) if firsts else None,
        total_p50_ms=_quantile(totals, 50),
        total_p95_ms=_quantile(totals, 95),
        since_ms=min(started_at_ms for _, _, started_at_ms in rows),
    )


def _quantile(ordered: list[int], percent: int) -> int:
    """The least value that so many per cent do not exceed (nearest rank)."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
