"""How did requests fare, and the copies of them that a candidate was asked for? All SQL of it; reads only.

A copy's attempts are the platform's, under its shadow's key, and name the original where a caller's own id
would stand. A request is told by all of its attempts together: whether it got an answer, after how long since
its first attempt began, and for how much. Copies that the gateway itself cut say nothing of anybody.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.inference import AttemptState
from gateway.ledger.evaluation import shadow_key
from gateway.ledger.records import OURS
from gateway.ledger.settlement import STOPPED
from gateway.ledger.tables import Attempt

COPIES_MAX: Final = 20_000
"""So many of the newest attempts at copies are looked at."""
BEFORE_MS: Final = 6 * 3_600_000
"""A copied request began at most so long before its copy."""
_IDS_AT_ONCE: Final = 500
_CUT: Final = frozenset({STOPPED, "gateway_died"})


@dataclass(frozen=True, slots=True)
class Fate:
    """How a request ended."""

    request_id: str
    started_at_ms: int
    target: str
    """The last that was tried."""
    is_answered: bool
    error_code: str | None
    ttft_ms: int | None
    """Since its first attempt began; None: not streamed, or not answered."""
    total_ms: int | None
    """Likewise."""
    charge_usd_nanos: int | None
    """All of its attempts, whoever pays; None: one is unpriced."""
    input_tokens: int
    output_tokens: int
    drafted_tokens: int
    accepted_tokens: int


@dataclass(frozen=True, slots=True)
class Pair:
    """A request and its copy."""

    original: Fate
    copy: Fate


_COLUMNS: Final = (
    Attempt.request_id,
    Attempt.client_request_id,
    Attempt.attempt_number,
    Attempt.started_at_ms,
    Attempt.ended_at_ms,
    Attempt.pool,
    Attempt.state,
    Attempt.error_code,
    Attempt.ttft_ms,
    Attempt.charge_usd_nanos,
    Attempt.input_tokens,
    Attempt.cached_input_tokens,
    Attempt.cache_write_tokens,
    Attempt.output_tokens,
    Attempt.reasoning_tokens,
    Attempt.draft_tokens,
    Attempt.accepted_tokens,
)


async def pairs_of(session: AsyncSession, number: int, *, since_ms: int, until_ms: int) -> list[Pair]:
    """Copies of a shadow with what they are copies of, the newest first.

    Args:
        session: the caller's.
        number: the shadow's.
        since_ms: when it began, epoch ms.
        until_ms: copies that started then or later are not looked for.
    """
    rows = await session.execute(
        select(*(col(each) for each in _COLUMNS))
        .where(
            col(Attempt.tenant_id) == OURS,
            col(Attempt.key_id) == shadow_key(number),
            col(Attempt.started_at_ms) >= since_ms,
            col(Attempt.started_at_ms) < until_ms,
        )
        .order_by(col(Attempt.started_at_ms).desc(), col(Attempt.attempt_number).desc())
        .limit(COPIES_MAX)
    )
    copies = _by_request(rows.all())
    wanted = {one[0].client_request_id for one in copies if one[0].client_request_id is not None}
    originals = await _originals(session, wanted, since_ms=since_ms - BEFORE_MS, until_ms=until_ms)
    pairs = []
    for attempts in copies:
        original = originals.get(attempts[0].client_request_id or "")
        if original is None or any(one.error_code in _CUT for one in attempts):
            continue
        pairs.append(Pair(_fate(original), _fate(attempts)))
    return pairs


async def _originals(
    session: AsyncSession, request_ids: Collection[str], *, since_ms: int, until_ms: int
) -> dict[str, list[Any]]:
    ids = sorted(request_ids)
    found: dict[str, list[Any]] = {}
    for start in range(0, len(ids), _IDS_AT_ONCE):
        rows = await session.execute(
            select(*(col(each) for each in _COLUMNS)).where(
                col(Attempt.request_id).in_(ids[start : start + _IDS_AT_ONCE]),
                col(Attempt.started_at_ms) >= since_ms,
                col(Attempt.started_at_ms) < until_ms,
                col(Attempt.tenant_id) != OURS,
            )
        )
        found.update({attempts[0].request_id: attempts for attempts in _by_request(rows.all())})
    return found


def _by_request(rows: Sequence[Any]) -> list[list[Any]]:
    """Attempts by request, those of one in their order."""
    found: defaultdict[str, list[Any]] = defaultdict(list)
    for row in rows:
        found[row.request_id].append(row)
    return [sorted(attempts, key=lambda one: int(one.attempt_number)) for attempts in found.values()]


def _fate(attempts: Sequence[Any]) -> Fate:
    first, last = attempts[0], attempts[-1]
    answer = next((one for one in attempts if one.state == AttemptState.ANSWERED), None)
    ttft_ms = total_ms = None
    if answer is not None:
        waited_ms = answer.started_at_ms - first.started_at_ms
        total_ms = answer.ended_at_ms - first.started_at_ms
        ttft_ms = None if answer.ttft_ms is None else waited_ms + answer.ttft_ms
    charges = [one.charge_usd_nanos for one in attempts]
    return Fate(
        request_id=first.request_id,
        started_at_ms=first.started_at_ms,
        target=(answer or last).pool,
        is_answered=answer is not None,
        error_code=None if answer is not None else last.error_code,
        ttft_ms=ttft_ms,
        total_ms=total_ms,
        charge_usd_nanos=None if None in charges else sum(charges),
        input_tokens=sum(
            one.input_tokens + one.cached_input_tokens + one.cache_write_tokens for one in attempts
        ),
        output_tokens=sum(one.output_tokens + one.reasoning_tokens for one in attempts),
        drafted_tokens=sum(one.draft_tokens or 0 for one in attempts),
        accepted_tokens=sum(one.accepted_tokens or 0 for one in attempts),
    )
