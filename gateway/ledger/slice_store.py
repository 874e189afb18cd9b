"""How are buckets and the slices lent on them kept? Their SQL; flushes, never commits.

Whoever changes a bucket locks its row first, and several in the order of their ids and starts.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, Update, bindparam, delete, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.db import begin_writing, insert_ignoring_duplicates, metadata
from gateway.ledger.buckets import Bucket
from gateway.ledger.tables import Budget, BudgetSlice, BudgetWindow


@dataclass(slots=True)
class WindowState:
    """A locked bucket; what is changed here is written by `save_windows`."""

    limit_usd_nanos: int
    posted_usd_nanos: int
    leased_usd_nanos: int
    unattributed_usd_nanos: int
    overage_usd_nanos: int
    recall_number: int
    is_hard: bool
    is_retired: bool
    alert_percents: tuple[int, ...]

    @property
    def free_usd_nanos(self) -> int:
        """What may still be lent; below zero where a limit was lowered."""
        return (
            self.limit_usd_nanos - self.posted_usd_nanos - self.leased_usd_nanos - self.unattributed_usd_nanos
        )


@dataclass(slots=True)
class SliceState:
    """What is lent to one process on one bucket."""

    owner_id: str
    amount_usd_nanos: int
    is_unattributed: bool
    recall_seen: int
    expires_at_ms: int
    journal_id: str | None = None


async def locked_windows(session: AsyncSession, buckets: Collection[Bucket]) -> dict[Bucket, WindowState]:
    """The buckets, locked until the transaction ends; those that nobody used yet are made.

    A bucket of a budget that this database does not know (a spool that was moved here) is left out.
    """
    # SQLite has no locks on rows, and would let another process change them between this look and the write.
    await begin_writing(session)
    found = await _read_windows(session, buckets)
    missing = sorted(set(buckets) - set(found))
    if missing:
        await _make_windows(session, missing)
        # All anew: locks are taken in order, also where another process made one of them meanwhile.
        found = await _read_windows(session, buckets)
    return found


async def _read_windows(session: AsyncSession, buckets: Collection[Bucket]) -> dict[Bucket, WindowState]:
    found = await session.execute(_windows_query(), {"buckets": sorted(buckets)})
    return {Bucket(row[0], row[1]): window_of(row) for row in found}


def window_of(row: Sequence[Any]) -> WindowState:
    """A bucket from a row: its key, then what `_windows_query` selects."""
    _, _, limit, posted, leased, unattributed, overage, recall_number, is_hard, retired_at_ms, percents = row
    return WindowState(
        limit_usd_nanos=limit,
        posted_usd_nanos=posted,
        leased_usd_nanos=leased,
        unattributed_usd_nanos=unattributed,
        overage_usd_nanos=overage,
        recall_number=recall_number,
        is_hard=is_hard,
        is_retired=retired_at_ms is not None,
        alert_percents=tuple(percents),
    )


# Statements are put together once: that takes longer than to run them.
@functools.cache
def _windows_query() -> Select[Any]:
    window = metadata.tables["budget_windows"].c
    budget = metadata.tables["budgets"].c
    return (
        select(
            window.budget_id,
            window.window_start_ms,
            window.limit_usd_nanos,
            window.posted_usd_nanos,
            window.leased_usd_nanos,
            window.unattributed_usd_nanos,
            window.overage_usd_nanos,
            window.recall_number,
            budget.is_hard,
            budget.retired_at_ms,
            budget.alert_percents,
        )
        .join(metadata.tables["budgets"], budget.id == window.budget_id)
        .where(tuple_(window.budget_id, window.window_start_ms).in_(bindparam("buckets", expanding=True)))
        .order_by(window.budget_id, window.window_start_ms)
        .with_for_update(of=metadata.tables["budget_windows"])
    )


async def _make_windows(session: AsyncSession, missing: Sequence[Bucket]) -> None:
    ids = sorted({bucket.budget_id for bucket in missing})
    # Shared locks: a limit that is changed at this moment must reach the new window too.
    limits = await session.execute(
        select(col(Budget.id), col(Budget.limit_usd_nanos))
        .where(col(Budget.id).in_(ids))
        .order_by(col(Budget.id))
        .with_for_update(read=True)
    )
    by_id = {budget_id: limit for budget_id, limit in limits}  # noqa: C416 - dict() cannot be typed from rows
    rows = [
        {
            **dict.fromkeys(_COUNTS, 0),
            "budget_id": bucket.budget_id,
            "window_start_ms": bucket.window_start_ms,
            "limit_usd_nanos": by_id[bucket.budget_id],
            "limit_highest_usd_nanos": by_id[bucket.budget_id],
        }
        for bucket in missing
        if bucket.budget_id in by_id
    ]
    await insert_ignoring_duplicates(session, BudgetWindow, rows)


_COUNTS = (
    "posted_usd_nanos",
    "leased_usd_nanos",
    "unattributed_usd_nanos",
    "overage_usd_nanos",
    "recall_number",
)


async def save_windows(session: AsyncSession, states: dict[Bucket, WindowState]) -> None:
    """Write locked buckets back."""
    if not states:
        return
    rows = [
        {
            "id_": bucket.budget_id,
            "start_": bucket.window_start_ms,
            **{f"new_{name}": getattr(state, name) for name in _COUNTS},
        }
        for bucket, state in sorted(states.items(), key=lambda item: item[0])
    ]
    await session.execute(_windows_update(), rows)


@functools.cache
def _windows_update() -> Update:
    table = metadata.tables["budget_windows"]
    return (
        update(table)
        .where(table.c.budget_id == bindparam("id_"), table.c.window_start_ms == bindparam("start_"))
        .values({name: bindparam(f"new_{name}") for name in _COUNTS})
    )


async def slices_of(
    session: AsyncSession, owner_id: str, buckets: Collection[Bucket] | None = None
) -> dict[Bucket, SliceState]:
    """The slices of one process; of some buckets, which the caller has locked, or all."""
    return dict(await slices_on(session, buckets, owner_id=owner_id))


async def slices_on(
    session: AsyncSession, buckets: Collection[Bucket] | None, *, owner_id: str | None = None
) -> list[tuple[Bucket, SliceState]]:
    """The slices on some buckets or on all, of one process or of all."""
    statement = _slices_query(of_some=buckets is not None, of_one_owner=owner_id is not None)
    values: dict[str, Any] = {}
    if buckets is not None:
        values["buckets"] = sorted(buckets)
    if owner_id is not None:
        values["owner"] = owner_id
    found = await session.execute(statement, values)
    return [(Bucket(row[0], row[1]), SliceState(*row[2:])) for row in found]


@functools.cache
def _slices_query(*, of_some: bool, of_one_owner: bool) -> Select[Any]:
    table = metadata.tables["budget_slices"].c
    statement = select(
        table.budget_id,
        table.window_start_ms,
        table.owner_id,
        table.amount_usd_nanos,
        table.is_unattributed,
        table.recall_seen,
        table.expires_at_ms,
        table.journal_id,
    ).order_by(table.budget_id, table.window_start_ms, table.owner_id)
    if of_some:
        bucket = tuple_(table.budget_id, table.window_start_ms)
        statement = statement.where(bucket.in_(bindparam("buckets", expanding=True)))
    if of_one_owner:
        statement = statement.where(table.owner_id == bindparam("owner"))
    return statement


async def save_slices(
    session: AsyncSession, states: Iterable[tuple[Bucket, SliceState]], *, may_be_new: bool = True
) -> None:
    """Write slices.

    Args:
        session: the caller's; it has locked the buckets.
        states: by bucket.
        may_be_new: some of them may not be there yet.
    """
    rows: list[dict[str, Any]] = [
        {
            "budget_id": bucket.budget_id,
            "window_start_ms": bucket.window_start_ms,
            "owner_id": state.owner_id,
            "amount_usd_nanos": state.amount_usd_nanos,
            "is_unattributed": state.is_unattributed,
            "journal_id": state.journal_id,
            "recall_seen": state.recall_seen,
            "expires_at_ms": state.expires_at_ms,
        }
        for bucket, state in sorted(states, key=lambda item: (item[0], item[1].owner_id))
    ]
    if not rows:
        return
    if may_be_new:
        await insert_ignoring_duplicates(session, BudgetSlice, rows)
    await session.execute(
        _slices_update(tuple(rows[0])),
        [
            {f"{'key' if name in _SLICE_KEYS else 'new'}_{name}": value for name, value in row.items()}
            for row in rows
        ],
    )


_SLICE_KEYS = ("budget_id", "window_start_ms", "owner_id")


@functools.cache
def _slices_update(columns: tuple[str, ...]) -> Update:
    table = metadata.tables["budget_slices"]
    return (
        update(table)
        .where(*(table.c[name] == bindparam(f"key_{name}") for name in _SLICE_KEYS))
        .values({name: bindparam(f"new_{name}") for name in columns if name not in _SLICE_KEYS})
    )


async def delete_slices(session: AsyncSession, keys: Iterable[tuple[Bucket, str]]) -> None:
    """Forget slices, by bucket and process; what was lent is given back by the caller."""
    wanted = [(*bucket, owner_id) for bucket, owner_id in keys]
    if not wanted:
        return
    table = metadata.tables["budget_slices"]
    await session.execute(
        delete(table).where(tuple_(table.c.budget_id, table.c.window_start_ms, table.c.owner_id).in_(wanted))
    )
