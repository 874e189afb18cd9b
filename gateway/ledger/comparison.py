"""How did requests fare under one policy version and under another? All SQL of the question; reads only.

A request is told by its first attempt, when that has ended: whether the platform failed it, how long it took,
what it charged. A request that the caller ended, or whose answer came from the cache, says nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.inference import AttemptState
from gateway.ledger.reports import PLATFORM_TENANT
from gateway.ledger.tables import Attempt

ROWS_MAX = 20_000
"""Read at once; what is beyond is read the next time."""
_CALLERS = frozenset({"upstream_rejected", "hedge_lost"})
"""Codes of failures that are not the platform's."""


@dataclass(frozen=True, slots=True)
class Fared:
    """How a request's first attempt ended."""

    request_id: str
    started_at_ms: int
    ended_at_ms: int
    policy_version: str
    is_failure: bool
    latency_class: str
    ttft_ms: int | None
    """None: not streamed, or it failed."""
    total_ms: int | None
    """None: it failed."""
    charge_usd_nanos: int | None
    """None: it failed, or is unpriced."""


def _class_of(asked: str | None) -> str:
    return "default" if asked is None or asked == "auto" else asked


async def fared(
    session: AsyncSession, versions: Collection[str], *, after_ms: int, until_ms: int, longest_ms: int
) -> list[Fared]:
    """Requests that these versions decided and whose first attempt ended, in the order of their ends.

    Args:
        session: the caller's.
        versions: of the policy.
        after_ms: they ended later, epoch ms.
        until_ms: they ended then at the latest.
        longest_ms: those that took longer are not looked for.
    """
    statement = (
        select(
            col(Attempt.request_id),
            col(Attempt.started_at_ms),
            col(Attempt.ended_at_ms),
            col(Attempt.policy_version),
            col(Attempt.state),
            col(Attempt.error_code),
            col(Attempt.service_tier),
            col(Attempt.is_streaming),
            col(Attempt.ttft_ms),
            col(Attempt.total_ms),
            col(Attempt.charge_usd_nanos),
        )
        .where(
            col(Attempt.started_at_ms) > after_ms - longest_ms,
            col(Attempt.started_at_ms) <= until_ms,
            col(Attempt.ended_at_ms) > after_ms,
            col(Attempt.ended_at_ms) <= until_ms,
            col(Attempt.policy_version).in_(versions),
            col(Attempt.attempt_number) == 1,
            col(Attempt.cache) != "hit",
            col(Attempt.tenant_id) != PLATFORM_TENANT,
        )
        .order_by(col(Attempt.ended_at_ms), col(Attempt.attempt_id))
        .limit(ROWS_MAX)
    )
    found = []
    for row in await session.execute(statement):
        is_answer = row.state == AttemptState.ANSWERED
        is_failure = row.state == AttemptState.INTERRUPTED or (
            row.state == AttemptState.FAILED and row.error_code not in _CALLERS
        )
        if not (is_answer or is_failure):
            continue
        found.append(
            Fared(
                request_id=row.request_id,
                started_at_ms=row.started_at_ms,
                ended_at_ms=row.ended_at_ms,
                policy_version=row.policy_version,
                is_failure=is_failure,
                latency_class=_class_of(row.service_tier),
                ttft_ms=row.ttft_ms if is_answer and row.is_streaming else None,
                total_ms=row.total_ms if is_answer else None,
                charge_usd_nanos=row.charge_usd_nanos if is_answer else None,
            )
        )
    return found
