"""What becomes of the money that was lent to a process that is gone?

Given back once its spool is recovered. If it never is, the slice is booked as unattributed when it has been
over for a grace period: it still counts against the limit, for it may have been spent, and is taken back by a
reversal when the spool turns up after all. All SQL here runs in the caller's transaction.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.inference import new_id
from gateway.ledger.buckets import Bucket
from gateway.ledger.journal import amount_of, write_transaction
from gateway.ledger.slice_store import (
    SliceState,
    WindowState,
    delete_slices,
    locked_windows,
    save_slices,
    save_windows,
    slices_of,
    slices_on,
)
from gateway.ledger.tables import BudgetSlice


async def close_owner(session: AsyncSession, owner_id: str, *, now_ms: int) -> None:
    """Give back whatever is lent to a process; it has booked all that it spent."""
    named = await slices_of(session, owner_id)
    if not named:
        return
    windows = await locked_windows(session, named)
    mine = await slices_of(session, owner_id, named)  # anew: they may have changed before the lock
    for bucket, state in mine.items():
        await take_back(session, bucket, state, window=windows[bucket], now_ms=now_ms)
    await save_windows(session, windows)
    await delete_slices(session, ((bucket, owner_id) for bucket in mine))


async def take_back(
    session: AsyncSession, bucket: Bucket, state: SliceState, *, window: WindowState, now_ms: int
) -> None:
    """Take what is left of a slice out of its locked bucket; the caller saves both.

    Args:
        session: the caller's.
        bucket: which.
        state: the slice.
        window: its bucket, locked.
        now_ms: the database's clock.
    """
    amount = state.amount_usd_nanos
    if not state.is_unattributed:
        window.leased_usd_nanos -= amount
        return
    window.unattributed_usd_nanos -= amount
    if state.journal_id is not None:
        await _reverse(session, bucket, state.journal_id, now_ms=now_ms)


async def set_unattributed(session: AsyncSession, *, before_ms: int, now_ms: int) -> int:
    """Book the slices that have been over since before that instant; how many those are.

    Args:
        session: the caller's.
        before_ms: those whose time was up before; the database's clock.
        now_ms: the database's clock.
    """
    over = await session.execute(
        select(BudgetSlice.budget_id, BudgetSlice.window_start_ms).where(  # type: ignore[call-overload]  # columns of a table
            col(BudgetSlice.expires_at_ms) < before_ms, col(BudgetSlice.is_unattributed).is_(False)
        )
    )
    buckets = {Bucket(*row) for row in over}
    if not buckets:
        return 0
    windows = await locked_windows(session, buckets)
    count = 0
    for bucket, state in await slices_on(session, buckets):
        if state.expires_at_ms >= before_ms or state.is_unattributed:
            continue
        amount = state.amount_usd_nanos
        if not amount:
            await delete_slices(session, [(bucket, state.owner_id)])
            continue
        window = windows[bucket]
        window.leased_usd_nanos -= amount
        window.unattributed_usd_nanos += amount
        state.is_unattributed = True
        state.journal_id = new_id("jtx_", now_ms)
        await write_transaction(
            session,
            state.journal_id,
            kind="unattributed",
            owed=_owed(bucket, amount),
            now_ms=now_ms,
            note=f"lent to {state.owner_id}, of which nothing was heard",
        )
        await save_slices(session, [(bucket, state)])
        count += 1
    await save_windows(session, windows)
    return count


async def _reverse(session: AsyncSession, bucket: Bucket, journal_id: str, *, now_ms: int) -> None:
    amount = await amount_of(session, journal_id, f"unattributed:{bucket.budget_id}")
    await write_transaction(
        session,
        new_id("jtx_", now_ms),
        kind="reversal",
        owed=_owed(bucket, -amount),
        now_ms=now_ms,
        note="its process's records turned up",
        reverses=journal_id,
    )


def _owed(bucket: Bucket, amount: int) -> dict[str, int]:
    return {f"unattributed:{bucket.budget_id}": amount, f"suspense:{bucket.budget_id}": -amount}
