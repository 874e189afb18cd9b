"""How did the pools do lately, by what is booked? SQL for whoever watches; changes nothing.

The last minutes attempt by attempt, of the newest ones only, for a busy hour has too many; the last days by
the hourly sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.inference import AttemptState
from gateway.ledger.supply_tables import SupplyHour
from gateway.ledger.tables import Attempt, SpendHour
from gateway.ledger.traffic import HEDGE_LOST, SCANNED_MAX, share_of

HOUR_MS: Final = 3_600_000
_FAULTS: Final = (AttemptState.FAILED.value, AttemptState.INTERRUPTED.value)


@dataclass(frozen=True, slots=True)
class PoolLately:
    """A pool's attempts of the last minutes, but for answers from the cache and losers of hedges."""

    attempts: int
    faults: int
    """Failed or interrupted."""
    codes: dict[str, int] = field(default_factory=dict)
    """Faults by error code, the most frequent first."""
    ttft_p50_ms: float | None = None
    ttft_p95_ms: float | None = None
    queue_p95_ms: float | None = None
    """In the engine's queue, as the engine says."""
    total_p95_ms: float | None = None
    """Of the answered ones."""


@dataclass(frozen=True, slots=True)
class HourOfPool:
    """One hour of a pool."""

    start_ms: int
    requests: int
    failed_attempts: int
    output_tokens: int
    busy_ratio: float | None
    """Of the time that its replicas served; None: not counted yet."""
    usd_nanos_per_million: int | None
    """What its hardware cost by all tokens that it read and wrote; None: not counted yet, or no tokens."""


_Row = tuple[str, str, str | None, int | None, float | None, int | None]


async def pools_lately(session: AsyncSession, *, since_ms: int) -> dict[str, PoolLately]:
    """Every pool's attempts since an instant, of the newest ones that one question looks at."""
    at = col(Attempt.started_at_ms)
    rows = await session.execute(
        select(
            col(Attempt.pool),
            col(Attempt.state),
            col(Attempt.error_code),
            col(Attempt.ttft_ms),
            col(Attempt.queue_ms),
            col(Attempt.total_ms),
        )
        .where(
            at >= since_ms, col(Attempt.cache) != "hit", col(Attempt.error_code).is_distinct_from(HEDGE_LOST)
        )
        .order_by(at.desc())
        .limit(SCANNED_MAX)
    )
    return lately_of([(a, b, c, d, e, f) for a, b, c, d, e, f in rows])


def lately_of(rows: Iterable[_Row]) -> dict[str, PoolLately]:
    """What attempts come to by pool: pool, state, error code, first token, queue, whole time (ms)."""
    groups: dict[str, list[_Row]] = {}
    for row in rows:
        groups.setdefault(row[0], []).append(row)
    return {pool: _lately(mine) for pool, mine in groups.items()}


def _lately(rows: Sequence[_Row]) -> PoolLately:
    faults = [row for row in rows if row[1] in _FAULTS]
    answered = [row for row in rows if row[1] == AttemptState.ANSWERED]
    ttft = [row[3] for row in answered if row[3] is not None]
    return PoolLately(
        attempts=len(rows),
        faults=len(faults),
        codes=dict(Counter(row[2] or "unknown" for row in faults).most_common()),
        ttft_p50_ms=share_of(ttft, 0.5),
        ttft_p95_ms=share_of(ttft, 0.95),
        queue_p95_ms=share_of([row[4] for row in answered if row[4] is not None], 0.95),
        total_p95_ms=share_of([row[5] for row in answered if row[5] is not None], 0.95),
    )


async def hours_of_pool(session: AsyncSession, pool: str, *, from_ms: int, to_ms: int) -> list[HourOfPool]:
    """A pool hour by hour, without gaps.

    Args:
        session: the caller's.
        pool: its name.
        from_ms: in the first hour, epoch ms.
        to_ms: in the last one.
    """
    first_ms = from_ms // HOUR_MS * HOUR_MS
    hour, read = (
        col(SpendHour.hour_start_ms),
        col(SpendHour.input_tokens) + col(SpendHour.cached_input_tokens),
    )
    wrote = col(SpendHour.output_tokens) + col(SpendHour.reasoning_tokens)
    spent = await session.execute(
        select(
            hour,
            func.sum(col(SpendHour.requests)),
            func.sum(col(SpendHour.failed_attempts)),
            func.sum(wrote),
            func.sum(read + wrote),
        )
        .where(hour.between(first_ms, to_ms), col(SpendHour.pool) == pool)
        .group_by(hour)
    )
    used = {int(row[0]): tuple(int(value) for value in row[1:]) for row in spent}
    about = col(SupplyHour.corrects_hour_ms)
    supplied = await session.execute(
        select(
            about,
            func.sum(col(SupplyHour.bill_usd_nanos)),
            func.sum(col(SupplyHour.busy_ms)),
            func.sum(col(SupplyHour.serving_ms)),
        )
        .where(col(SupplyHour.hour_start_ms) >= first_ms, about >= first_ms, col(SupplyHour.pool) == pool)
        .group_by(about)
    )
    bills = {int(row[0]): tuple(int(value) for value in row[1:]) for row in supplied}
    found = []
    for start_ms in range(first_ms, to_ms + 1, HOUR_MS):
        requests, failed, written, tokens = used.get(start_ms, (0, 0, 0, 0))
        bill, busy_ms, serving_ms = bills.get(start_ms, (0, 0, 0))
        found.append(
            HourOfPool(
                start_ms,
                requests,
                failed,
                written,
                busy_ms / serving_ms if serving_ms else None,
                bill * 1_000_000 // tokens if bill and tokens else None,
            )
        )
    return found
