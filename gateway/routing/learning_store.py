"""How is what was learned kept, so that every process knows it and none forgets it? SQL; never commits.

Lessons are folded in the transaction that books their attempts, by whoever books them: an attempt that is
booked already teaches nothing again, and processes that serve the same pools add to the same rows. Rows are
locked in the order of their keys, after everything else that a booking locks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import delete, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.routing.learning import EVERY_TASK, EVERY_TENANT, Evidence, Lesson, after, fold
from gateway.routing.tables import Learned

TENANTS_MAX: Final = 16
"""Of whom one fold keeps evidence apart; those with most of it."""
_decode = msgspec.json.Decoder(Evidence).decode
_encode = msgspec.json.Encoder().encode
_NOTHING: Final = _encode(Evidence()).decode()


class LearnedKey(NamedTuple):
    """Of what something is known."""

    pool: str
    task: str
    """`EVERY_TASK`: of the pool, whatever the task."""
    tenant_id: str
    """`EVERY_TENANT`: of everybody."""


class LearnedRow(NamedTuple):
    """What is known of it."""

    key: LearnedKey
    lessons: int
    folded_at_ms: int
    evidence: Evidence


def by_key(lessons: Sequence[Lesson]) -> dict[LearnedKey, list[Lesson]]:
    """The lessons by everything that they are about, in the order in which rows are locked."""
    found: dict[LearnedKey, list[Lesson]] = {}
    counted = Counter(lesson.tenant_id for lesson in lessons)
    apart = {tenant for tenant, _ in counted.most_common(TENANTS_MAX)}
    for lesson in lessons:
        pool, task, tenant = lesson.pool, lesson.task, lesson.tenant_id
        found.setdefault(LearnedKey(pool, EVERY_TASK, EVERY_TENANT), []).append(lesson)
        found.setdefault(LearnedKey(pool, task, EVERY_TENANT), []).append(lesson)
        if tenant in apart:
            found.setdefault(LearnedKey(pool, task, tenant), []).append(lesson)
    return {key: found[key] for key in sorted(found)}


async def fold_in(connection: Any, lessons: Sequence[Lesson], *, now_ms: int, made: set[LearnedKey]) -> None:
    """Fold lessons in, in the caller's transaction.

    Args:
        connection: a session; or, on PostgreSQL, asyncpg's own connection.
        lessons: of attempts that are booked in this transaction, in their order.
        now_ms: epoch milliseconds by the clock that all processes share.
        made: keys whose rows this process has seen; grows. Who makes rows first and locks afterwards, all in
            the order of the keys, never waits in a circle.
    """
    groups = by_key(lessons)
    if not groups:
        return
    if isinstance(connection, AsyncSession):
        await _fold_by_session(connection, groups, now_ms=now_ms)
    else:
        await _fold_by_driver(connection, groups, now_ms=now_ms, made=made)


def _folded(
    groups: dict[LearnedKey, list[Lesson]], known: Iterable[Sequence[Any]], *, now_ms: int
) -> list[dict[str, Any]]:
    before = {LearnedKey(*row[:3]): row for row in known}
    rows = []
    for key, lessons in groups.items():
        count, evidence, at_ms = 0, Evidence(), now_ms
        if (row := before.get(key)) is not None:
            count, at_ms = row[3], max(now_ms, row[4])  # a clock that steps back makes nothing younger
            evidence = after(_decode(row[5]), (at_ms - row[4]) / 1000)
        rows.append(
            {
                **key._asdict(),
                "lessons": count + len(lessons),
                "folded_at_ms": at_ms,
                "evidence": _encode(fold(evidence, lessons)).decode(),
            }
        )
    return rows


_COLUMNS: Final = (
    col(Learned.pool),
    col(Learned.task),
    col(Learned.tenant_id),
    col(Learned.lessons),
    col(Learned.folded_at_ms),
    col(Learned.evidence),
)
_REPLACE: Final = text(
    "INSERT OR REPLACE INTO learned (pool, task, tenant_id, lessons, folded_at_ms, evidence)"
    " VALUES (:pool, :task, :tenant_id, :lessons, :folded_at_ms, :evidence)"
)


async def _fold_by_session(
    session: AsyncSession, groups: dict[LearnedKey, list[Lesson]], *, now_ms: int
) -> None:
    # SQLite: the transaction holds its one write lock already.
    keys = tuple_(col(Learned.pool), col(Learned.task), col(Learned.tenant_id))
    known = await session.execute(select(*_COLUMNS).where(keys.in_(list(groups))))
    await session.execute(_REPLACE, _folded(groups, known.all(), now_ms=now_ms))


_EMPTY: Final = """
INSERT INTO learned (pool, task, tenant_id, lessons, folded_at_ms, evidence)
SELECT *, 0, $4::bigint, $5::text FROM unnest($1::text[], $2::text[], $3::text[]) ON CONFLICT DO NOTHING
"""
_LOCKED: Final = """
SELECT pool, task, tenant_id, lessons, folded_at_ms, evidence FROM learned
WHERE (pool, task, tenant_id) IN (SELECT * FROM unnest($1::text[], $2::text[], $3::text[]))
ORDER BY pool, task, tenant_id FOR UPDATE
"""
_SAVE: Final = """
UPDATE learned SET lessons = new.lessons, folded_at_ms = new.folded_at_ms, evidence = new.evidence
FROM json_to_recordset(CAST($1 AS json)) AS new
  (pool text, task text, tenant_id text, lessons bigint, folded_at_ms bigint, evidence text)
WHERE learned.pool = new.pool AND learned.task = new.task AND learned.tenant_id = new.tenant_id
"""


async def _fold_by_driver(
    driver: Any, groups: dict[LearnedKey, list[Lesson]], *, now_ms: int, made: set[LearnedKey]
) -> None:
    columns = [list(each) for each in zip(*groups, strict=True)]
    if not made.issuperset(groups):  # a row that is not there cannot be locked
        await driver.execute(_EMPTY, *columns, now_ms, _NOTHING)
    known = await driver.fetch(_LOCKED, *columns)
    if len(known) < len(groups):  # forgotten meanwhile
        await driver.execute(_EMPTY, *columns, now_ms, _NOTHING)
        known = await driver.fetch(_LOCKED, *columns)
    made.update(groups)
    rows = _folded(groups, [tuple(row) for row in known], now_ms=now_ms)
    await driver.execute(_SAVE, _encode(rows).decode())


async def read_learned(session: AsyncSession, *, since_ms: int = 0) -> list[LearnedRow]:
    """What is known, as of the instants at which it was folded.

    Args:
        session: where to ask.
        since_ms: only what was folded then or later, epoch milliseconds.
    """
    found = await session.execute(
        select(*_COLUMNS)
        .where(col(Learned.folded_at_ms) >= since_ms)
        .order_by(col(Learned.pool), col(Learned.task), col(Learned.tenant_id))
    )
    return [
        LearnedRow(LearnedKey(pool, task, tenant_id), lessons, at_ms, _decode(evidence))
        for pool, task, tenant_id, lessons, at_ms, evidence in found
    ]


async def forget(session: AsyncSession, *, before_ms: int) -> None:
    """Take away what nothing was added to since then: it has faded to nothing."""
    await session.execute(delete(Learned).where(col(Learned.folded_at_ms) < before_ms))
