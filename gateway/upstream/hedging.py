"""When is a stream that has not begun asked for a second time, and who of the two answers?

A hedge ("The Tail at Scale", Dean and Barroso, 2013): where the first content of a stream takes longer than
it does for most, another replica of the same pool is asked too, and who is first answers. Off by default,
but where a rule of the policy asks for it, because it buys time with tokens. What bounds it: only after the
pool's own 95th percentile of the time to the first content, of its last streams; only for a share of the
streams that may be hedged, counted like retries; only before any content, only inside, never for whole
answers, whose length nobody knows. The loser is cancelled, which closes its connection, and is the
platform's account.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Sequence
from typing import Final, TypeVar

from gateway.errors import UpstreamError, UpstreamRejected
from gateway.inference import RouteTerms
from gateway.upstream.retry_budget import RetryBudget

RATIO_OF_RULES: Final = 0.05
"""Hedges per stream where only rules ask for them."""
SAMPLES_MAX: Final = 200
"""Of a pool's last streams."""
SAMPLES_MIN: Final = 20
"""Before that nobody knows what is slow."""
_EVERY: Final = 10
"""Samples between two times that the percentile is worked out."""
_Won = TypeVar("_Won")


class Hedging:
    """How long the first content takes at each pool, and how many hedges may be made."""

    def __init__(self, *, ratio: float, quantile: float, delay_s_min: float, is_usual: bool = True) -> None:
        """Begin without samples.

        Args:
            ratio: hedges per stream, above 0.
            quantile: of the times to the first content, beyond which a stream is slow; 0 to 1.
            delay_s_min: no hedge is made earlier than this.
            is_usual: also where the policy's rules say nothing.
        """
        self._is_usual = is_usual
        self.allowance = RetryBudget(ratio=ratio, floor_per_s=0)
        self.won = 0
        """Hedges that answered."""
        self._quantile = quantile
        self._delay_s_min = delay_s_min
        self._times: dict[str, deque[float]] = {}
        self._seen: dict[str, int] = {}
        self._delays: dict[str, float] = {}

    def is_for(self, terms: RouteTerms) -> bool:
        """Whether such streams may be asked for twice."""
        return self._is_usual if terms.hedging is None else terms.hedging

    def saw(self, pool: str, first_content_s: float) -> None:
        """A stream of the pool began after so long."""
        times = self._times.get(pool)
        if times is None:
            times = self._times[pool] = deque(maxlen=SAMPLES_MAX)
        times.append(first_content_s)
        seen = self._seen[pool] = self._seen.get(pool, 0) + 1
        if seen >= SAMPLES_MIN and seen % _EVERY == 0:
            ordered = sorted(times)
            slow_s = ordered[min(len(ordered) - 1, int(self._quantile * len(ordered)))]
            self._delays[pool] = max(self._delay_s_min, slow_s)

    def delay_s(self, pool: str) -> float | None:
        """After how long a stream of this pool is slow; None: too few were seen."""
        return self._delays.get(pool)


async def outcome_of(trying: Awaitable[_Won]) -> _Won | UpstreamError:
    """What becomes of a try, its failure as a value: one that fails must not end the other."""
    try:
        return await trying
    except UpstreamError as error:
        return error


async def first_decisive(
    tries: Sequence[asyncio.Task[_Won | UpstreamError]],
) -> asyncio.Task[_Won | UpstreamError] | None:
    """The try that settles the matter first, all others cancelled; None: every one failed.

    An engine that refuses the request settles it too: another one would refuse it as well.
    """
    pending = set(tries)
    while pending:
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in tries:
            if task.done() and is_decisive(task.result()):
                for other in pending:
                    other.cancel()
                return task
    return None


def is_decisive(outcome: object) -> bool:
    """It is an answer, or a refusal of the request itself."""
    return not isinstance(outcome, UpstreamError) or isinstance(outcome, UpstreamRejected)
