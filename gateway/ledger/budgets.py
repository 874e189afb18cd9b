"""How much may still be spent while requests are under way?

A hold is an upper bound of what a request can come to. It is open until it is settled or released; only the
first of these counts, so that a clean-up after an explicit end changes nothing. Holds are counted per
process; limits to hold them against do not exist yet, so none is refused.
"""

from __future__ import annotations

from gateway.money import UsdNanos


class Holds:
    """All holds of this process."""

    def __init__(self) -> None:
        self.held_usd_nanos = 0
        self.open_count = 0

    def reserve(self, bound: UsdNanos) -> Reservation:
        """Hold `bound` until the reservation ends."""
        return Reservation(self, bound)


class Reservation:
    """One hold; ends once."""

    __slots__ = ("_holds", "_is_open", "bound_usd_nanos")

    def __init__(self, holds: Holds, bound: UsdNanos) -> None:
        self._holds = holds
        self._is_open = True
        self.bound_usd_nanos = bound
        holds.held_usd_nanos += bound
        holds.open_count += 1

    def end(self) -> bool:
        """Give the hold back, the request being settled or never sent; true for the first call only."""
        if not self._is_open:
            return False
        self._is_open = False
        self._holds.held_usd_nanos -= self.bound_usd_nanos
        self._holds.open_count -= 1
        return True
