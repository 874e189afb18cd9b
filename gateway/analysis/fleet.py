"""What would the pools do with these requests? A simulated fleet, as it was measured or as it may be.

Everything that is drawn for a request (how many steps its output takes on a speculating pool) hangs on the
request's own number, so that two policies are compared on the same luck. A pool's steps and acceptance are
set from outside: the best guess, or one of the worlds that the record does not rule out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from backends.simulator.calibration import Guessing, SimulatedPool
from backends.simulator.fleet import least_loaded
from backends.simulator.replica import NeverFits, Replica
from backends.simulator.requests import Sequence as Simulated
from backends.simulator.requests import SimulatedRequest
from gateway.analysis.speed import Ran

_PROGRESS_EVERY: Final = 2_000
Tell = Callable[[int], None]
"""Is told how many more requests are done."""


def untold(count: int) -> None:
    """Nobody wants to know."""
    del count


class Work(msgspec.Struct, frozen=True):
    """What one request asks of a pool."""

    index: int
    """Of the request, in the record."""
    at_s: float
    pool: str
    task: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    steps: int | None
    """After the first token; None: drawn."""


class Times(msgspec.Struct, frozen=True):
    """What became of it, seconds."""

    ttft_s: float
    total_s: float


@dataclass(slots=True)
class PoolRun:
    """What a pool did."""

    replicas: list[list[Ran]]
    indices: list[list[int]]
    """Which requests those were."""
    busy_s: float
    """Of all replicas together."""
    refused: int = 0
    """Requests larger than the whole cache."""


@dataclass(slots=True)
class FleetRun:
    """What became of all."""

    pools: dict[str, PoolRun] = field(default_factory=dict)
    times: dict[int, Times] = field(default_factory=dict)
    """By request."""


@dataclass(frozen=True, slots=True)
class SimulatedFleet:
    """Pools as one world has them."""

    pools: Mapping[str, SimulatedPool]
    replicas: Mapping[str, int]
    delays_s: Mapping[str, float] = field(default_factory=dict)
    """Between a request and its pool, nobody else's; by pool."""

    def run(
        self,
        works: Sequence[Work],
        luck: Sequence[float],
        *,
        seed: int = 0,
        on_requests: Tell = untold,
    ) -> FleetRun:
        """Let it do some work.

        Args:
            works: in the order of their times.
            luck: by request, normally distributed: how well its output is guessed.
            seed: of what is drawn beside.
            on_requests: told how many more are done, now and then.
        """
        found = FleetRun()
        by_pool: dict[str, list[Work]] = {}
        for work in works:
            by_pool.setdefault(work.pool, []).append(work)
        for name, of_pool in by_pool.items():
            found.pools[name] = self._run_pool(
                name, of_pool, luck, times=found.times, seed=seed, tell=on_requests
            )
        return found

    def _run_pool(
        self,
        name: str,
        works: Sequence[Work],
        luck: Sequence[float],
        *,
        times: dict[int, Times],
        seed: int,
        tell: Tell,
    ) -> PoolRun:
        pool = self.pools[name]
        fleet = [Replica(pool, seed=seed * 1_000_003 + number) for number in range(self.replicas[name])]
        refused = 0
        offered: list[list[tuple[Work, Simulated]]] = [[] for _ in fleet]
        for count, work in enumerate(works, start=1):
            request = simulated_request(work, pool, luck[work.index])
            for replica in fleet:
                replica.advance(work.at_s)
            taken = chosen(fleet, request)
            try:
                offered[taken].append((work, fleet[taken].offer(request)))
            except NeverFits:
                refused += 1
            if count % _PROGRESS_EVERY == 0:
                tell(_PROGRESS_EVERY)
        for replica in fleet:
            replica.advance()
        tell(len(works) % _PROGRESS_EVERY)
        delay_s = self.delays_s.get(name, 0.0)
        for pairs in offered:
            for work, sequence in pairs:
                since_s = sequence.sent_s - delay_s
                times[work.index] = Times(sequence.first_token_s - since_s, sequence.end_s - since_s)
        return PoolRun(
            [[_ran(work, sequence) for work, sequence in pairs] for pairs in offered],
            [[work.index for work, _ in pairs] for pairs in offered],
            sum(replica.busy_s for replica in fleet),
            refused,
        )


def _ran(work: Work, sequence: Simulated) -> Ran:
    return Ran(
        sequence.sent_s,
        sequence.scheduled_s,
        sequence.first_token_s,
        sequence.end_s,
        work.input_tokens - work.cached_tokens,
        work.input_tokens,
        work.output_tokens,
        None,
    )


def chosen(replicas: Sequence[Replica], request: SimulatedRequest) -> int:
    """Which of a pool's replicas gets a request."""
    return least_loaded(replicas, request) if len(replicas) > 1 else 0


def simulated_request(work: Work, pool: SimulatedPool, luck: float) -> SimulatedRequest:
    """What a request asks of a replica, with its luck."""
    steps = work.steps
    if steps is None and pool.draft_tokens:
        guessing = pool.guessing.get(work.task) or pool.guessing[""]
        steps = _steps(work.output_tokens - 1, guessing, luck)
    return SimulatedRequest(
        work.at_s,
        max(1, work.input_tokens),
        max(1, work.output_tokens),
        work.task,
        cached_tokens=work.cached_tokens,
        decode_steps=steps,
    )


def _steps(tokens: int, guessing: Guessing, luck: float) -> int:
    """Renewal theory: tokens / mean steps, with variance tokens * variance / mean³."""
    mean = 1.0 + sum(guessing.by_position)
    square = 1.0 + sum((2 * place + 1) * share for place, share in enumerate(guessing.by_position, start=1))
    spread = math.sqrt(max(0.0, tokens * (square - mean * mean) / mean**3))
    return max(0, round(tokens / mean + luck * spread))


def luck_of(count: int, seed: int) -> list[float]:
    """A number for each request of a record, normally distributed."""
    draw = random.Random(seed)  # noqa: S311 - a simulation
    return [draw.gauss(0.0, 1.0) for _ in range(count)]
