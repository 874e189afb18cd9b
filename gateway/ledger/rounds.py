"""Who gets how much of which bucket? One round of a process, worked out while the buckets are locked.

Pure but for its reads and writes of the locked rows. Memory is changed so that it is right whether the
transaction commits or not: what is given back is gone at once, what is lent is there only after the commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncSession

from gateway.clock import instant_text
from gateway.errors import BudgetExceeded, GatewayError, Overloaded
from gateway.ledger.buckets import Bucket, BudgetRecord, window_at
from gateway.ledger.budgets import Holds, Lot
from gateway.ledger.owners import take_back
from gateway.ledger.slice_store import SliceState, WindowState, save_slices, save_windows
from gateway.money import usd_text

SCARCE_S = 10.0
"""After a recall nothing is kept in reserve for so long."""
RESERVE_SHARE = 4
"""A reserve takes at most this part of what is free: others need some too."""
HOLDS_IN_RESERVE = 4
"""A reserve covers at least so many of the largest holds, beside a while's burn."""


@dataclass(slots=True, eq=False)
class Waiter:
    """A request that its process's lots could not cover."""

    needs: dict[Bucket, int]
    records: dict[Bucket, BudgetRecord]
    done: asyncio.Future[None]
    give_up_s: float
    """By the monotonic clock: then it is refused, whoever has not answered the recall."""
    recalls: dict[Bucket, int] = field(default_factory=dict)
    """The numbers of the recalls that were made for it."""


def reserve_of(lot: Lot, reserve_s: float) -> int:
    """What should be free in a lot where there is plenty, nano-USD.

    Twice what `reserve_s` burns, for a lot is filled up when it is half empty.
    """
    if not lot.used_usd_nanos:
        return 0
    return int(2 * lot.burn_usd_nanos_per_s * reserve_s) + HOLDS_IN_RESERVE * lot.largest_hold_usd_nanos


class Round:
    """The plan of one round."""

    def __init__(
        self,
        holds: Holds,
        windows: dict[Bucket, WindowState],
        slices: Sequence[tuple[Bucket, SliceState]],
        *,
        owner_id: str,
        now_s: float,
        now_ms: int,
    ) -> None:
        self._windows = windows
        self._now_s = now_s
        self._now_ms = now_ms
        self._lots = {bucket: holds.lot(bucket) for bucket in windows}
        self._mine = {bucket: SliceState(owner_id, 0, False, 0, 0) for bucket in windows}
        self._others: dict[Bucket, list[SliceState]] = {bucket: [] for bucket in windows}
        for bucket, state in slices:
            if state.owner_id == owner_id:
                self._mine[bucket] = state
            elif state.amount_usd_nanos and not state.is_unattributed:
                self._others[bucket].append(state)
        self._served: list[Waiter] = []
        self.answers: list[tuple[Waiter, GatewayError | None]] = []
        """Who is served, and who is refused, and why."""
        self.has_recalled = False

    async def revive(self, session: AsyncSession) -> None:
        """Begin from what the database says; a slice that was given up for lost is closed.

        What of it is held or spent is lent again in the same step: nobody else may have it in between.
        """
        for bucket, mine in self._mine.items():
            lot = self._lots[bucket]
            if mine.is_unattributed:
                await take_back(session, bucket, mine, window=self._windows[bucket], now_ms=self._now_ms)
                self._mine[bucket] = SliceState(mine.owner_id, 0, False, mine.recall_seen, 0)
                self._lend(bucket, min(mine.amount_usd_nanos, lot.held_usd_nanos + lot.spent_usd_nanos))
            lot.granted_usd_nanos = self._mine[bucket].amount_usd_nanos

    def serve(self, waiters: Sequence[Waiter]) -> None:
        """Hold what is needed, in the waiters' order, in all their buckets or in none."""
        for waiter in waiters:
            if not waiter.needs.keys() <= self._windows.keys():
                gone = Overloaded("A budget over this request is being changed. Try again shortly.")
                self.answers.append((waiter, gone))
                continue
            lacking = [bucket for bucket, need in waiter.needs.items() if need > self._reach(bucket)]
            if lacking:
                self._call_for(waiter, lacking)
                continue
            for bucket, need in waiter.needs.items():
                self._lend(bucket, max(0, need - self._free(bucket)))
                self._lots[bucket].hold(need)
            self._served.append(waiter)
            self.answers.append((waiter, None))

    def keep_reserves(self, reserve_s: float, *, is_renewing: bool) -> None:
        """Give back what others call for; otherwise have a while's burn in reserve, and not much more.

        Of a budget that does not refuse any more, all is given back.
        """
        for bucket, window in self._windows.items():
            lot, mine = self._lots[bucket], self._mine[bucket]
            free = self._free(bucket)
            if window.is_retired or not window.is_hard:
                lot.scarce_until_s = self._now_s + SCARCE_S
                self._give_back(bucket, free)
            elif window.recall_number > mine.recall_seen:
                mine.recall_seen = window.recall_number
                lot.scarce_until_s = self._now_s + SCARCE_S
                self._give_back(bucket, free)
            elif lot.scarce_until_s <= self._now_s:
                reserve = reserve_of(lot, reserve_s)
                if free < reserve:
                    self._lend(bucket, min(reserve - free, max(window.free_usd_nanos, 0) // RESERVE_SHARE))
                elif is_renewing:
                    self._give_back(bucket, free - 2 * reserve)

    def renew(self, expires_at_ms: int) -> None:
        """Keep the slices until then, by the database's clock."""
        for mine in self._mine.values():
            mine.expires_at_ms = expires_at_ms

    async def save(self, session: AsyncSession) -> None:
        """Write the locked rows back."""
        await save_windows(session, self._windows)
        await save_slices(session, self._mine.items())

    def undo(self) -> None:
        """The transaction may not have been committed: nobody is served, and what was given back stays so."""
        for waiter in self._served:
            for bucket, need in waiter.needs.items():
                self._lots[bucket].held_usd_nanos -= need

    def apply(self, *, expires_s: float) -> None:
        """The transaction was committed.

        Args:
            expires_s: until when the slices may be spent, by the monotonic clock.
        """
        for bucket, mine in self._mine.items():
            lot = self._lots[bucket]
            lot.granted_usd_nanos = mine.amount_usd_nanos
            lot.expires_s = expires_s

    # ------------------------------------------------------------------------------------- arithmetic
    def _free(self, bucket: Bucket) -> int:
        """What this process has and does not need, by what the round has planned so far."""
        lot = self._lots[bucket]
        return self._mine[bucket].amount_usd_nanos - lot.held_usd_nanos - lot.spent_usd_nanos

    def _reach(self, bucket: Bucket) -> int:
        return self._free(bucket) + max(self._windows[bucket].free_usd_nanos, 0)

    def _lend(self, bucket: Bucket, amount: int) -> None:
        if amount > 0:
            self._mine[bucket].amount_usd_nanos += amount
            self._windows[bucket].leased_usd_nanos += amount

    def _give_back(self, bucket: Bucket, amount: int) -> None:
        if amount > 0:
            self._mine[bucket].amount_usd_nanos -= amount
            self._windows[bucket].leased_usd_nanos -= amount
            self._lots[bucket].granted_usd_nanos -= amount

    # ----------------------------------------------------------------------------------------- refusing
    def _call_for(self, waiter: Waiter, lacking: list[Bucket]) -> None:
        """Have others give back what they hold idle, or refuse if that is done or cannot help."""
        for bucket in lacking:
            lent = sum(other.amount_usd_nanos for other in self._others[bucket])
            if waiter.needs[bucket] > self._reach(bucket) + lent:
                self._refuse(waiter, bucket, left=self._reach(bucket) + lent)
                return
        uncalled = [bucket for bucket in lacking if bucket not in waiter.recalls]
        for bucket in uncalled:
            window, mine = self._windows[bucket], self._mine[bucket]
            if window.recall_number <= mine.recall_seen:
                window.recall_number += 1
                self.has_recalled = True
            waiter.recalls[bucket] = window.recall_number
        if not uncalled and (self._now_s >= waiter.give_up_s or not self._is_awaited(waiter, lacking)):
            self._refuse(waiter, lacking[0], left=self._reach(lacking[0]))

    def _is_awaited(self, waiter: Waiter, lacking: list[Bucket]) -> bool:
        return any(
            other.recall_seen < waiter.recalls[bucket] and other.expires_at_ms > self._now_ms
            for bucket in lacking
            for other in self._others[bucket]
        )

    def _refuse(self, waiter: Waiter, bucket: Bucket, *, left: int) -> None:
        refusal = refusal_of(
            waiter.records[bucket],
            self._windows[bucket],
            bound=waiter.needs[bucket],
            left=left,
            now_ms=self._now_ms,
        )
        self.answers.append((waiter, refusal))


def refusal_of(
    record: BudgetRecord, window: WindowState, *, bound: int, left: int, now_ms: int
) -> BudgetExceeded:
    """What a caller is told whose request a budget cannot hold."""
    _, resets_at_ms = window_at(record.window, now_ms)
    resets_at = None if resets_at_ms is None else instant_text(resets_at_ms)
    anew = "It never begins anew." if resets_at is None else f"It begins anew at {resets_at}."
    return BudgetExceeded(
        f"The budget {record.name!r} ({record.window}, {usd_text(window.limit_usd_nanos)} USD) has"
        f" at most {usd_text(max(left, 0))} USD left for new requests, and this one may come to"
        f" {usd_text(bound)} USD. {anew} A smaller max_tokens makes a request smaller; finance can"
        " raise the limit.",
        resets_at=resets_at,
    )
