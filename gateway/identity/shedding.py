"""May this process take this call now, or has it as much under way as its engines can work off?

Beyond that bound a call would only wait in an engine's queue until its client gives up, and so would all that
come behind it: it is refused at once with 503 and when to come back. There is no queue here. Decided in
memory by a few additions (about a microsecond), after the cache and before anything is held for the call.

Who is refused first (an idea of Google's SRE book, "Handling overload", and of WeChat's DAGOR: by importance,
then by who uses most):

- By latency class: each may fill a share of the bound, whatever else is under way. At 70 % `flex` is refused,
  at 90 % `default`, at 100 % `priority`: what is dearer to its caller always finds the room behind.
- Within a class by weighted share: the last tenth of its part is only for tenants that have less under way
  than their share of what the class has under way, by weight. Whoever uses most is refused there, and as its
  calls end it comes down to its share.

The bound is per process, and a fleet's other gateways have one of their own: it says when to stop, not how
the fleet is divided.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Final

from gateway.errors import Overloaded

LOOK_INTERVAL_S: Final = 0.25
"""Between two looks at how much the engines can take: replicas come and go in seconds."""
RETRY_AFTER_S: Final = {"priority": 1, "default": 2, "flex": 5}
"""Up to twice as much is said, at random: who was refused together shall not come back together."""


@dataclass(frozen=True, slots=True)
class Shares:
    """How a bound is divided, each 0 to 1."""

    flex: float = 0.7
    default: float = 0.9
    priority: float = 1.0
    reserved: float = 0.1
    """Of each class's part, for those who use less than their share."""


class _Room:
    """One latency class: how far it may fill the process, and who of it is under way."""

    __slots__ = ("full_at", "name", "reserved_from", "share", "shed", "under_way", "weight", "whose")

    def __init__(self, name: str, share: float) -> None:
        self.name = name
        self.share = share
        self.full_at = self.reserved_from = 0
        """Of the process's calls under way, whichever class they are of."""
        self.under_way = 0
        self.whose: dict[str, int] = {}
        """Calls under way by tenant, those with any."""
        self.weight = 0.0
        """Of all tenants in `whose`."""
        self.shed = 0


class Seat:
    """One call that was let in; leaves once, however it ends."""

    __slots__ = ("_is_taken", "_room", "_shedder", "_tenant", "_weight")

    def __init__(self, shedder: Shedder, room: _Room, tenant: str, *, weight: float) -> None:
        self._shedder = shedder
        self._room = room
        self._tenant = tenant
        self._weight = weight
        self._is_taken = True

    def leave(self) -> None:
        """The call is over; twice does no harm."""
        if not self._is_taken:
            return
        self._is_taken = False
        room, tenant = self._room, self._tenant
        self._shedder.under_way -= 1
        room.under_way -= 1
        count = room.whose[tenant] - 1
        if count:
            room.whose[tenant] = count
        else:
            del room.whose[tenant]
            # Exactly nothing when nobody is there: sums of fractions would drift for ever.
            room.weight = room.weight - self._weight if room.whose else 0.0

    def __enter__(self) -> None:
        """It is taken already."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The call is over."""
        self.leave()


class Shedder:
    """Everything this process has under way, and what it may have."""

    def __init__(
        self, bound: Callable[[], int], *, shares: Shares | None = None, weights: Mapping[str, float]
    ) -> None:
        """Start with nothing under way.

        Args:
            bound: how many calls may be under way now; asked four times a second at most.
            shares: how it is divided; None: as `Shares` says.
            weights: of tenants, by name; 1 for others. A tenant of weight 2 has twice the share.
        """
        shares = shares or Shares()
        self._bound = bound
        self._reserved = shares.reserved
        self._weights = weights
        self._due_s = 0.0
        self._rooms = {
            "flex": _Room("flex", shares.flex),
            "default": _Room("default", shares.default),
            "priority": _Room("priority", shares.priority),
        }
        self.under_way = 0
        self.in_flight_max = 0
        """As it was at the last look."""

    @property
    def shed(self) -> dict[str, int]:
        """Calls that were refused, by latency class."""
        return {room.name: room.shed for room in self._rooms.values()}

    def admit(self, latency_class: str, tenant: str) -> Seat:
        """Let a call in.

        Args:
            latency_class: which it runs in.
            tenant: whose it is, by name.

        Raises:
            Overloaded: there is no room for it now.
        """
        now_s = monotonic()
        if now_s >= self._due_s:
            self._look(now_s)
        room = self._rooms[latency_class]
        whose = room.whose
        count = whose.get(tenant, 0)
        weight = self._weights.get(tenant, 1.0)
        if self.under_way >= room.reserved_from:
            self._refuse_if_full(room, count, weight)
        whose[tenant] = count + 1
        if not count:
            room.weight += weight
        room.under_way += 1
        self.under_way += 1
        return Seat(self, room, tenant, weight=weight)

    def _refuse_if_full(self, room: _Room, count: int, weight: float) -> None:
        if self.under_way >= room.full_at:
            why = "the gateway has as many requests under way as it may"
        else:
            present = room.weight if count else room.weight + weight
            # A tenant alone uses all there is: it fills its class up to what is kept for others.
            if not room.under_way or count * present < room.under_way * weight:
                return
            why = "the gateway is nearly full, and this tenant has its share of it under way"
        room.shed += 1
        least_s = RETRY_AFTER_S[room.name]
        retry_after_s = random.randint(least_s, 2 * least_s)  # noqa: S311 - spreads, hides nothing
        raise Overloaded(
            f"Too much is going on ({why}, for service tier {room.name!r}). Try again in {retry_after_s} s.",
            retry_after_s=retry_after_s,
            operator_detail=f"shed {room.name}: {self.under_way} of {self.in_flight_max} under way, {why}",
        )

    def _look(self, now_s: float) -> None:
        self._due_s = now_s + LOOK_INTERVAL_S
        self.in_flight_max = bound = self._bound()
        for room in self._rooms.values():
            room.full_at = max(1, int(bound * room.share))
            room.reserved_from = int(room.full_at * (1 - self._reserved))
