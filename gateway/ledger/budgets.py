"""May this request be afforded, and what is held for it while it runs?

In memory and without a wait: this process has slices of the buckets that it serves (`lessor.py` gets them
from the database, which is the authority) and admits against them by integer arithmetic. Free is what was
granted, less what is held for requests under way, less what was spent and is not booked yet. A hold is an
upper bound of what a request can come to; all its buckets are held, or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.ledger.buckets import Bucket
from gateway.money import UsdNanos

MEASURE_S = 1.0
BURN_AVERAGE_S = 60.0


@dataclass(slots=True)
class Lot:
    """What this process may spend of one bucket."""

    bucket: Bucket
    granted_usd_nanos: int = 0
    """As the database has it: booking takes from it."""
    held_usd_nanos: int = 0
    spent_usd_nanos: int = 0
    """Settled here, not booked yet."""
    expires_s: float = 0.0
    """By the monotonic clock; a slice that may be taken back any time is not spent."""
    used_usd_nanos: int = 0
    """Ever spent here: what the burn rate is measured by."""
    burn_usd_nanos_per_s: float = 0.0
    """A moving average over about a minute."""
    measured_s: float = 0.0
    measured_usd_nanos: int = 0
    largest_hold_usd_nanos: int = 0
    scarce_until_s: float = 0.0
    """Until then nothing is kept in reserve: somebody was short of it."""

    @property
    def free_usd_nanos(self) -> int:
        """What may still be held; below zero where more was spent than was granted."""
        return self.granted_usd_nanos - self.held_usd_nanos - self.spent_usd_nanos

    @property
    def is_empty(self) -> bool:
        """Nothing is lent, held or waiting to be booked."""
        return not (self.granted_usd_nanos or self.held_usd_nanos or self.spent_usd_nanos)

    def measure(self, now_s: float) -> None:
        """Bring the burn rate up to date."""
        passed_s = now_s - self.measured_s
        if passed_s < MEASURE_S:
            return
        if self.measured_s:
            rate = (self.used_usd_nanos - self.measured_usd_nanos) / passed_s
            # The first rate that is seen is the best guess there is.
            weight = min(1.0, passed_s / BURN_AVERAGE_S) if self.burn_usd_nanos_per_s else 1.0
            self.burn_usd_nanos_per_s += weight * (rate - self.burn_usd_nanos_per_s)
        self.measured_s, self.measured_usd_nanos = now_s, self.used_usd_nanos

    def hold(self, amount: int) -> None:
        """Set it aside."""
        self.held_usd_nanos += amount
        self.largest_hold_usd_nanos = max(self.largest_hold_usd_nanos, amount)

    def settle(self, held: int, spent: int) -> None:
        """Turn a hold into what was spent."""
        self.held_usd_nanos -= held
        self.spent_usd_nanos += spent
        self.used_usd_nanos += spent


class Holds:
    """All holds and lots of this process."""

    def __init__(self) -> None:
        self.held_usd_nanos = 0
        self.open_count = 0
        self.lots: dict[Bucket, Lot] = {}
        self._counted: dict[Bucket, int] = {}
        """Settled here without a lot and not booked yet: what soft budgets only count. Booking draws it from
        a slice all the same, if the budget has become a hard one by then."""
        self.booked_here: dict[Bucket, int] | None = None
        """Booked by this process since somebody last looked at the database; None: nobody looks."""

    def lot(self, bucket: Bucket) -> Lot:
        """The process's lot of a bucket; a new one has nothing."""
        found = self.lots.get(bucket)
        if found is None:
            found = self.lots[bucket] = Lot(bucket, spent_usd_nanos=self._counted.pop(bucket, 0))
        return found

    def count(self, bucket: Bucket, amount: int) -> None:
        """So much was settled in a bucket in which nothing was held; below zero: it is booked now."""
        if (lot := self.lots.get(bucket)) is not None:
            lot.spent_usd_nanos += amount
            return
        left = self._counted.get(bucket, 0) + amount
        if left:
            self._counted[bucket] = left
        else:
            self._counted.pop(bucket, None)

    def unseen(self, bucket: Bucket) -> int:
        """What was settled here in a bucket and was not in the database when somebody last looked."""
        lot, booked = self.lots.get(bucket), self.booked_here
        waiting = self._counted.get(bucket, 0) if lot is None else lot.spent_usd_nanos
        return waiting if booked is None else waiting + booked.get(bucket, 0)

    def try_reserve(
        self, bound: UsdNanos, hard: Sequence[Bucket], *, counted: Sequence[Bucket], now_s: float
    ) -> Reservation | None:
        """Hold `bound` in every hard bucket, or in none; None: a lot is too small, or too old.

        Args:
            bound: the most that the request can come to.
            hard: buckets that must have room.
            counted: all buckets in which the charge will count.
            now_s: the monotonic clock.
        """
        lots = [self.lots.get(bucket) for bucket in hard]
        for lot in lots:
            if lot is None or lot.free_usd_nanos < bound or lot.expires_s <= now_s:
                return None
        return Reservation(self, bound, [lot for lot in lots if lot is not None], counted=counted)

    def booked(self, charges: dict[Bucket, int], left: dict[Bucket, int]) -> None:
        """Take over what the database says after a batch of this process's was booked.

        Args:
            charges: what of each bucket is not waiting any more.
            left: the process's slices now.
        """
        for bucket, amount in charges.items():
            self.count(bucket, -amount)
            if self.booked_here is not None:
                self.booked_here[bucket] = self.booked_here.get(bucket, 0) + amount
        for bucket, amount in left.items():
            if (lot := self.lots.get(bucket)) is not None:
                lot.granted_usd_nanos = amount


class Reservation:
    """What is held for one request; ends once."""

    __slots__ = ("_holds", "_is_open", "_lots", "_spent", "bound_usd_nanos", "counted")

    def __init__(
        self,
        holds: Holds,
        bound: UsdNanos,
        lots: Sequence[Lot] = (),
        *,
        counted: Sequence[Bucket] = (),
        is_held: bool = False,
    ) -> None:
        self._holds = holds
        self._is_open = True
        self._lots = lots
        self._spent = 0
        self.bound_usd_nanos = bound
        self.counted = tuple(counted)
        """The buckets in which the charge counts; its attempts are written down with them."""
        holds.held_usd_nanos += bound
        holds.open_count += 1
        if not is_held:
            for lot in lots:
                lot.hold(bound)

    def is_held_by(self, budget_id: str) -> bool:
        """That budget has set it aside."""
        return any(lot.bucket.budget_id == budget_id for lot in self._lots)

    def spend(self, amount: int) -> None:
        """Whoever it is held for pays so much more; known before the reservation ends."""
        self._spent += amount

    def end(self) -> bool:
        """Give back what was not spent; true for the first call only."""
        if not self._is_open:
            return False
        self._is_open = False
        self._holds.held_usd_nanos -= self.bound_usd_nanos
        self._holds.open_count -= 1
        for lot in self._lots:
            lot.settle(self.bound_usd_nanos, self._spent)
        if self._spent and len(self._lots) < len(self.counted):
            held = {lot.bucket for lot in self._lots}
            for bucket in self.counted:
                if bucket not in held:
                    self._holds.count(bucket, self._spent)
        return True
