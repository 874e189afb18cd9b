"""Is a replica fit to be asked, going by how it answered lately?

One circuit breaker per replica. Closed: it gets requests. It opens after failures in a row, or when more
than a share of the last requests failed; then it gets none until its backoff is over. The monitor then has
it generate one token, and if that works it is on trial: the first request that succeeds closes the breaker,
the first that fails opens it again, for twice as long. Waiting times are drawn between half and all of the
backoff, so that several gateways do not come back to an ailing replica in the same moment.

Slow is not broken: a replica that is the last one of its pool is not taken out for answers that were merely
too slow, because the others' load is exactly what makes the last one slow. It is suspected instead, and the
monitor looks whether its engine moves (`liveness.py`). A refused connection opens at once and without a
backoff: whether somebody listens again is cheap to find out.

Pure: times are seconds of time.monotonic() and come from outside.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

FAILURES_TO_EJECT: Final = 3


class BreakerState(StrEnum):
    """Whether requests go through."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    """It has generated a token; the next request decides."""
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class BreakerRule:
    """When a breaker opens, and for how long."""

    failures_in_a_row: int = FAILURES_TO_EJECT
    failure_ratio: float = 0.5
    """Of about the last `ratio_requests`, the newest weighing most."""
    ratio_requests: int = 20
    backoff_s: float = 1.0
    """After the first opening; doubled each time that it opens again without a success in between."""
    backoff_s_max: float = 30.0


@dataclass(frozen=True, slots=True)
class Standing:
    """A breaker at one moment."""

    state: BreakerState = BreakerState.CLOSED
    opened: int = 0
    """How often it has opened."""
    spared: int = 0
    """How often it would have, but for being slow and the last one."""
    is_suspected: bool = False
    """It was spared: somebody shall look whether it still generates."""
    retry_at_s: float = 0.0
    """When it may be made to generate a token again."""


class Breaker:
    """Counts how one replica answers."""

    __slots__ = ("_openings", "_rule", "_share", "_standing", "in_a_row")

    def __init__(self, rule: BreakerRule) -> None:
        self._rule = rule
        self._share = 0.0
        """Of requests that failed: a moving average."""
        self._openings = 0
        """Since it was last closed."""
        self._standing = Standing()
        self.in_a_row = 0
        """Failures since the last success."""

    @property
    def standing(self) -> Standing:
        """As it is now."""
        return self._standing

    def succeeded(self) -> bool:
        """A request was answered as it should be; whether that changed anything that can be seen."""
        if self._share:
            faded = self._share * (1 - 1 / self._rule.ratio_requests)
            self._share = faded if faded > 0.001 else 0.0  # noqa: PLR2004 - a hundredth of one request
        if not self.in_a_row and self._standing.state is BreakerState.CLOSED:
            return False
        self.in_a_row = 0
        if self._standing.state is BreakerState.HALF_OPEN:
            self._openings = 0
            self._standing = replace(self._standing, state=BreakerState.CLOSED)
        return True

    def failed(self) -> bool:
        """A request failed through the replica's fault; whether it shall be taken out for that."""
        self.in_a_row += 1
        weight = 1 / self._rule.ratio_requests
        self._share += (1 - self._share) * weight
        if self._standing.state is BreakerState.HALF_OPEN:
            return True
        return self.in_a_row >= self._rule.failures_in_a_row or self._share >= self._rule.failure_ratio

    def open(self, now_s: float, *, backs_off: bool = True) -> None:
        """Let nothing through, until a token proves it after a while.

        Args:
            now_s: the moment.
            backs_off: wait before the proof; not where it can be seen from outside when it is back.
        """
        wait_s = 0.0
        if backs_off:
            self._openings += 1
            longest_s = self._rule.backoff_s * 2 ** min(self._openings - 1, 30)
            longest_s = min(longest_s, self._rule.backoff_s_max)
            wait_s = longest_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreads, hides nothing
        opened = self._standing.opened + (self._standing.state is not BreakerState.OPEN)
        self._standing = replace(
            self._standing,
            state=BreakerState.OPEN,
            opened=opened,
            is_suspected=False,
            retry_at_s=now_s + wait_s,
        )

    def proved(self) -> None:
        """It has generated a token: what went before is forgotten, and if it was open it is on trial."""
        self.in_a_row = 0
        self._share = 0.0
        is_open = self._standing.state is BreakerState.OPEN
        state = BreakerState.HALF_OPEN if is_open and self._openings else BreakerState.CLOSED
        self._standing = replace(self._standing, state=state, is_suspected=False)

    def spare(self) -> None:
        """It is not taken out though it should be: somebody shall look at it."""
        self._standing = replace(self._standing, spared=self._standing.spared + 1, is_suspected=True)
