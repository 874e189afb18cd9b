"""May a failed attempt be tried again, or would that make an outage worse?

When engines fail, each request that is tried three times is three requests: retries are what turns a slow
fleet into a dead one. So retries (attempts beyond a request's first) may be no more than a share of the
requests of the last seconds, and a few more that are always allowed, so that a quiet gateway retries too. A
try that followed a refused connection is not counted: nobody had any work with it. Per process; nothing is
shared, because a share of each process's own requests adds up to the same share of all of them.

The same rule as Finagle's and Linkerd's retry budgets; counted in two halves of a window, which forget
requests without a timer.
"""

from __future__ import annotations

from typing import Final

WINDOW_S: Final = 10.0
"""Requests and retries of this half of the window and of the one before count: 10 to 20 s."""


class RetryBudget:
    """Counts requests and retries. Touched by the event loop alone."""

    __slots__ = (
        "_ends_s",
        "_floor",
        "_ratio",
        "_requests",
        "_requests_before",
        "_retries",
        "_retries_before",
        "made",
        "refused",
    )

    def __init__(self, *, ratio: float, floor_per_s: float) -> None:
        """Start with nothing counted.

        Args:
            ratio: retries per request, 0 to 1 in practice.
            floor_per_s: so many more per second, however few requests there are.
        """
        self._ratio = ratio
        self._floor = floor_per_s * WINDOW_S
        self._requests = self._requests_before = 0
        self._retries = self._retries_before = 0
        self._ends_s = 0.0
        self.made = 0
        """Retries that were allowed."""
        self.refused = 0
        """Retries that were not."""

    def began(self, now_s: float) -> None:
        """A request's first attempt begins."""
        if now_s >= self._ends_s:
            self._roll(now_s)
        self._requests += 1

    def allows(self, now_s: float) -> bool:
        """Whether one more attempt may be made; counts it if so."""
        if now_s >= self._ends_s:
            self._roll(now_s)
        allowed = self._ratio * (self._requests + self._requests_before) + self._floor
        if self._retries + self._retries_before + 1 > allowed:
            self.refused += 1
            return False
        self._retries += 1
        self.made += 1
        return True

    def _roll(self, now_s: float) -> None:
        is_next = now_s < self._ends_s + WINDOW_S
        self._requests_before = self._requests if is_next else 0
        self._retries_before = self._retries if is_next else 0
        self._requests = self._retries = 0
        self._ends_s = now_s + WINDOW_S
