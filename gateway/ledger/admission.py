"""May this caller spend so much now? The door between the pipeline and the budgets.

Where the process has slices enough, an answer costs a few additions and no wait; only otherwise the
database is asked, which is the authority. A process without slices never admits.
"""

from __future__ import annotations

from gateway.clock import Clock
from gateway.ledger.buckets import Account, BudgetBook, window_at
from gateway.ledger.budgets import Holds, Reservation
from gateway.ledger.lessor import Lessor
from gateway.ledger.levels import Fullest, Levels
from gateway.money import UsdNanos


class Budgets:
    """Every budget, as this process knows it."""

    def __init__(self, holds: Holds, lessor: Lessor, clock: Clock) -> None:
        self.book = BudgetBook()
        """Replaced when budgets change."""
        self.holds = holds
        self.levels = Levels()
        """Replaced as they are read."""
        self._lessor = lessor
        self._clock = clock

    def reserve_now(self, account: Account, bound: UsdNanos) -> Reservation | None:
        """Hold `bound` in every budget over the account if that needs no wait; None: `reserve` may wait."""
        binding = self.book.binding(account, self._clock.epoch_ms())
        if not binding.counted:
            return Reservation(self.holds, bound)
        now_s = self._clock.monotonic_s()
        return self.holds.try_reserve(bound, binding.hard_buckets, counted=binding.counted, now_s=now_s)

    async def reserve(self, account: Account, bound: UsdNanos) -> Reservation:
        """Hold `bound` in every budget over the account, or in none.

        Raises:
            BudgetExceeded: a hard budget cannot hold it, whatever other processes give back.
            Overloaded: the database cannot be asked.
        """
        held = self.reserve_now(account, bound)
        if held is not None:
            return held
        binding = self.book.binding(account, self._clock.epoch_ms())
        await self._lessor.obtain(binding.hard, bound)
        lots = [self.holds.lot(bucket) for bucket in binding.hard_buckets]
        return Reservation(self.holds, bound, lots, counted=binding.counted, is_held=True)

    def fullest(self, account: Account) -> Fullest | None:
        """The budget over the account of which the greatest share is used; None: there is none, or no limit.

        At most a second behind what other processes have spent.
        """
        found: Fullest | None = None
        for bucket, record in self.book.binding(account, self._clock.epoch_ms()).budgets:
            if not record.limit_usd_nanos:
                continue
            used = self.levels.booked.get(bucket, 0) + self.holds.unseen(bucket)
            percent = 100 * used / record.limit_usd_nanos
            if found is None or percent > found.used_percent:
                _, until_ms = window_at(record.window, bucket.window_start_ms)
                found = Fullest(record.name, percent, until_ms)
        return found

    def is_bound(self, account: Account) -> bool:
        """A hard budget is over the account."""
        return bool(self.book.binding(account, self._clock.epoch_ms()).hard)
