"""How long may an engine keep us waiting, where its connection is ours?

A deadline that its connection carries. Nothing is set up or taken down for a request or for a piece of a
stream: `client.py` has one timer, for the first deadline of all connections, and progress only moves a
number. `stall.py` is for what others' libraries carry.
"""

from __future__ import annotations

import math
import time

from gateway.errors import UpstreamTimeout


class Patience:
    """So long, for that."""

    __slots__ = ("_limit_s", "_until_s", "_what", "deadline_s", "is_renewed")

    def __init__(
        self, limit_s: float, what: str, *, is_renewed: bool = False, until_s: float = math.inf
    ) -> None:
        """Begin to wait.

        Args:
            limit_s: how long.
            what: for what, behind "no".
            is_renewed: it begins anew with every piece, and is over only while somebody waits for one.
            until_s: for all pieces together, by time.monotonic().
        """
        self._limit_s = limit_s
        self._until_s = until_s
        self._what = what
        self.is_renewed = is_renewed
        self.deadline_s = min(until_s, time.monotonic() + limit_s)

    def renew(self) -> None:
        """Something arrived, or nobody waited until now: begin anew."""
        deadline_s = time.monotonic() + self._limit_s
        self.deadline_s = min(self._until_s, deadline_s)

    def error(self) -> UpstreamTimeout:
        """What to say when it is over."""
        return UpstreamTimeout(
            "The model took too long to answer.",
            operator_detail="too long in all"
            if self.deadline_s == self._until_s
            else f"no {self._what} within {self._limit_s:g} s",
        )
