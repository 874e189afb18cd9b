"""Which requests were there lately, and how did they fare? SQL for whoever watches; changes nothing.

A request is shown by the attempt that ended it: the last one, but for the loser of a hedge. Every question
looks at so many attempts at most, the newest first, and says how far back it got: a filter that matches
nothing must not read a whole ledger. The platform's own attempts (heartbeats, shadows) are asked for by name.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from sqlalchemy import ColumnElement, and_, exists, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased
from sqlmodel import col

from gateway.inference import AttemptState
from gateway.ledger.reports import PLATFORM_TENANT
from gateway.ledger.tables import Attempt
from gateway.paging import PageRequest, cursor_of, page_of, position_of, seek

SCANNED_MAX: Final = 20_000
"""Attempts that one question looks at."""
HEDGE_LOST: Final = "hedge_lost"
MINUTE_MS: Final = 60_000
_SPAN_MS: Final = 3_600_000
"""The attempts of one request start within that."""

_LEAST_ID: Final = "0"
"""Sorts before the id of any attempt."""
_ERRORS: Final = (AttemptState.FAILED.value, AttemptState.INTERRUPTED.value)

Outcome = Literal["", "answered", "errors", "failed", "cancelled", "interrupted"]
OUTCOMES: Final[tuple[Outcome, ...]] = tuple(one for one in get_args(Outcome) if one)


@dataclass(frozen=True, slots=True)
class TrafficFilter:
    """Which requests are wanted; None: whatever it is."""

    tenant_id: str | None = None
    pool: str | None = None
    task: str | None = None
    model: str | None = None
    outcome: Outcome = ""
    """`errors`: whatever did not end as an answer, but for callers who hung up."""
    slower_than_ms: int | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    """First instant that does not count."""
    client_request_id: str | None = None


@dataclass(frozen=True, slots=True)
class TrafficPage:
    """A piece of the list."""

    rows: list[Attempt]
    """The attempt that ended each request, the newest first."""
    next_cursor: str | None
    """None: there is nothing more."""
    looked_back_to_ms: int | None
    """How far the question got before it had looked at enough; None: it had no need to stop."""


@dataclass(frozen=True, slots=True)
class Minute:
    """The requests that started within a minute."""

    start_ms: int
    requests: int
    errors: int
    p50_ms: float | None
    """Of the answered ones, from request to end; None: there are none."""
    p95_ms: float | None


@dataclass(frozen=True, slots=True)
class Pulse:
    """Requests by minute."""

    minutes: list[Minute]
    """Without gaps, the oldest first."""
    is_cut: bool
    """There were more than one question looks at: earlier minutes are left out."""


async def page_requests(
    session: AsyncSession, wanted: TrafficFilter, page: PageRequest, *, scanned_max: int = SCANNED_MAX
) -> TrafficPage:
    """Requests, the newest first.

    Args:
        session: the caller's.
        wanted: which requests.
        page: which piece of the list.
        scanned_max: attempts to look at.

    Raises:
        InvalidRequest: the limit or the cursor is wrong.
    """
    at, row_id = col(Attempt.started_at_ms), col(Attempt.attempt_id)
    before_ms = wanted.until_ms
    if page.cursor is not None:
        reached_ms = position_of(page.cursor)[0]
        before_ms = reached_ms + 1 if before_ms is None else min(before_ms, reached_ms + 1)
    floor_ms = await _floor(session, wanted, before_ms, scanned_max=scanned_max)
    statement = select(Attempt).where(*_narrow(wanted, before_ms), *_conditions(wanted), ~_superseded())
    if floor_ms is not None:
        statement = statement.where(at >= floor_ms)
    statement = seek(statement, page, at=at, row_id=row_id, newest_first=True)
    rows = (await session.execute(statement)).scalars().all()
    whole = page_of(rows, page, lambda row: (row.started_at_ms, row.attempt_id))
    if whole.next_cursor is not None or floor_ms is None:
        return TrafficPage(whole.rows, whole.next_cursor, None)
    return TrafficPage(whole.rows, cursor_of((floor_ms, _LEAST_ID)), floor_ms)


async def pulse(
    session: AsyncSession,
    wanted: TrafficFilter,
    *,
    now_ms: int,
    minutes: int = 60,
    scanned_max: int = SCANNED_MAX,
) -> Pulse:
    """Requests by the minute in which they started, up to now.

    Args:
        session: the caller's.
        wanted: which requests.
        now_ms: now, epoch ms.
        minutes: how many.
        scanned_max: attempts to look at.
    """
    at, this_minute_ms = col(Attempt.started_at_ms), now_ms // MINUTE_MS * MINUTE_MS
    first_ms = this_minute_ms - (minutes - 1) * MINUTE_MS
    floor_ms = await _floor(session, wanted, now_ms + 1, scanned_max=scanned_max)
    is_cut = floor_ms is not None and floor_ms >= first_ms
    if floor_ms is not None and is_cut:  # of its minute only a part would be looked at
        first_ms = min(this_minute_ms, floor_ms // MINUTE_MS * MINUTE_MS + MINUTE_MS)
    found = await session.execute(
        select(at, col(Attempt.state), col(Attempt.total_ms))
        .where(*_narrow(wanted, now_ms + 1), *_conditions(wanted), ~_superseded(), at >= first_ms)
        .order_by(at.desc())
        .limit(scanned_max)
    )
    rows = [(start_ms, state, total_ms) for start_ms, state, total_ms in found]
    # In a thread: there may be thousands, and requests must not stand still meanwhile.
    return Pulse(await asyncio.to_thread(minutes_of, rows, first_ms, now_ms), is_cut)


def minutes_of(rows: Iterable[tuple[int, str, int | None]], first_ms: int, last_ms: int) -> list[Minute]:
    """Requests by minute, without gaps.

    Args:
        rows: start, state and whole time of each; epoch ms and ms.
        first_ms: in the first minute.
        last_ms: in the last one.
    """
    starts = range(first_ms // MINUTE_MS * MINUTE_MS, last_ms + 1, MINUTE_MS)
    counts = dict.fromkeys(starts, 0)
    errors = dict.fromkeys(starts, 0)
    times: dict[int, list[int]] = {start: [] for start in starts}
    for at_ms, state, total_ms in rows:
        start = at_ms // MINUTE_MS * MINUTE_MS
        if start not in counts:
            continue
        counts[start] += 1
        errors[start] += state in _ERRORS
        if state == AttemptState.ANSWERED and total_ms is not None:
            times[start].append(total_ms)
    return [
        Minute(start, counts[start], errors[start], share_of(times[start], 0.5), share_of(times[start], 0.95))
        for start in starts
    ]


def share_of(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least this share of them does not exceed; None without values."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else None


async def _floor(
    session: AsyncSession, wanted: TrafficFilter, before_ms: int | None, *, scanned_max: int
) -> int | None:
    """How far one question may look back; None: to the beginning, there is no more than that."""
    at = col(Attempt.started_at_ms)
    statement = select(at).where(*_narrow(wanted, before_ms)).order_by(at.desc())
    found = await session.execute(statement.offset(scanned_max).limit(1))
    return found.scalar()


def _narrow(wanted: TrafficFilter, before_ms: int | None) -> list[ColumnElement[bool]]:
    """What an index answers."""
    conditions: list[ColumnElement[bool]] = []
    if wanted.tenant_id is not None:
        conditions.append(col(Attempt.tenant_id) == wanted.tenant_id)
    if wanted.since_ms is not None:
        conditions.append(col(Attempt.started_at_ms) >= wanted.since_ms)
    if before_ms is not None:
        conditions.append(col(Attempt.started_at_ms) < before_ms)
    return conditions


def _conditions(wanted: TrafficFilter) -> list[ColumnElement[bool]]:
    """What is looked at row by row."""
    equal = {
        Attempt.pool: wanted.pool,
        Attempt.task: wanted.task,
        Attempt.model_alias: wanted.model,
        Attempt.client_request_id: wanted.client_request_id,
    }
    conditions = [col(column) == value for column, value in equal.items() if value is not None]
    if wanted.tenant_id is None:
        conditions.append(col(Attempt.tenant_id) != PLATFORM_TENANT)
    if wanted.outcome == "errors":
        conditions.append(col(Attempt.state).in_(_ERRORS))
    elif wanted.outcome:
        conditions.append(col(Attempt.state) == wanted.outcome)
    if wanted.slower_than_ms is not None:
        conditions.append(col(Attempt.total_ms) > wanted.slower_than_ms)
    conditions.append(_counts(Attempt))
    return conditions


def _superseded() -> ColumnElement[bool]:
    """A later attempt was made for the same request."""
    later = aliased(Attempt)
    started = col(later.started_at_ms)
    return exists().where(
        col(later.request_id) == col(Attempt.request_id),
        col(later.attempt_number) > col(Attempt.attempt_number),
        started.between(col(Attempt.started_at_ms) - _SPAN_MS, col(Attempt.started_at_ms) + _SPAN_MS),
        _counts(later),
    )


def _counts(table: type[Attempt]) -> ColumnElement[bool]:
    """It is neither the loser of a hedge nor a correction of the books."""
    return and_(
        col(table.error_code).is_distinct_from(HEDGE_LOST),
        ~col(table.attempt_id).startswith("rev_", autoescape=True),
    )
