"""What becomes of a sequence of requests when a rule sends them to a fleet of simulated engines?

The engines are `backends.simulator`'s. A rule sees what it is given: a request when it comes, the end of
those that it sent, and once a second the clock. Nothing is measured of the first fifth of the requests
(queues fill, Tollgate learns) and of the last twentieth (queues drain).
"""

from __future__ import annotations

import math
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Final, Protocol

from backends.simulator.fleet import quantile
from backends.simulator.replica import Replica
from backends.simulator.requests import Sequence, SimulatedRequest
from tests.load.fleet.pools import Fleet, Pool, simulated
from tests.load.fleet.traffic import Arrival

TICK_S: Final = 1.0
WARM_UP: Final = 0.20
COOL_DOWN: Final = 0.05
P95: Final = 0.95


class Site:
    """The replicas, by number."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        """Idle engines.

        Args:
            fleet: which.
            seed: of the acceptance, the same for all rules, and of what engines draw.
        """
        self.fleet = fleet
        self.pools: list[Pool] = [pool for pool, count in fleet.pools for _ in range(count)]
        self.models = [simulated(pool, seed) for pool in self.pools]
        self.ended: list[tuple[int, Sequence]] = []
        """Since somebody last looked."""
        self.replicas = [
            Replica(model, seed=seed * 1_000_003 + number, on_end=self._noting(number))
            for number, model in enumerate(self.models)
        ]
        first = 0
        self.numbers: dict[str, range] = {}
        """Of each pool's replicas."""
        for pool, count in fleet.pools:
            self.numbers[pool.name] = range(first, first + count)
            first += count

    def _noting(self, number: int) -> _Noting:
        return _Noting(self.ended, number)

    def advance(self, now_s: float) -> None:
        """Let time pass."""
        for replica in self.replicas:
            replica.advance(now_s)


class _Noting:
    """Remembers which replica ended what."""

    __slots__ = ("_ended", "_number")

    def __init__(self, ended: list[tuple[int, Sequence]], number: int) -> None:
        self._ended = ended
        self._number = number

    def __call__(self, sequence: Sequence) -> None:
        self._ended.append((self._number, sequence))


class Rule(Protocol):
    """Sends requests to replicas."""

    def route(self, arrival: Arrival, now_s: float) -> int:
        """The number of the replica that gets a request."""

    def sent(self, arrival: Arrival, number: int, sequence: Sequence) -> None:
        """It is there now."""

    def ended(self, number: int, sequence: Sequence) -> None:
        """It is answered."""

    def tick(self, now_s: float) -> None:
        """Another second has passed."""


class MakeRule(Protocol):
    """Makes a rule for a site."""

    def __call__(self, site: Site, *, seed: int, rate: float) -> Rule:
        """The rule, knowing nothing of what will come but perhaps its rate."""


@dataclass(frozen=True, slots=True)
class Played:
    """What came of it, of the requests that count."""

    ttft_p95_s: float
    tpot_p95_s: float
    ttft_p50_s: float
    tpot_p50_s: float
    output_tokens: int
    duration_s: float
    busy_usd: float
    """Of the time in which engines stepped, at the price of their hours."""
    busy_ratio: float
    """Share of all hours in which engines stepped."""
    running: float
    """Requests under way per replica, on average."""
    to_pool: dict[str, float]
    """Share of the output by pool."""
    to_first_by_task: dict[str, float]
    """Share of each task's output that the fleet's first pool gave."""
    prompt_tokens_by_pool: dict[str, float]
    """Of a request that came to the pool, on average."""

    @property
    def tokens_per_hour(self) -> float:
        """Of output."""
        return self.output_tokens / self.duration_s * 3600

    def excess(self, ttft_s: float, tpot_s: float) -> float:
        """How many times too slow, by the worse of both targets; up to 1 they are met."""
        return max(self.ttft_p95_s / ttft_s, self.tpot_p95_s / tpot_s)


def play(
    arrivals: SequenceOf[Arrival], fleet: Fleet, make_rule: MakeRule, *, seed: int, rate: float
) -> Played:
    """Send the requests, let them end, and sum up.

    Args:
        arrivals: in order of time.
        fleet: idle.
        make_rule: who sends.
        seed: of the engines' chances and of the rule's.
        rate: requests a second.
    """
    site = Site(fleet, seed)
    rule = make_rule(site, seed=seed, rate=rate)
    first, last = int(len(arrivals) * WARM_UP), int(len(arrivals) * (1 - COOL_DOWN))
    marks: list[list[float]] = []
    sequences: list[Sequence] = []
    numbers: list[int] = []
    tick_at_s = 0.0
    for place, arrival in enumerate(arrivals):
        now_s = arrival.at_s
        while tick_at_s <= now_s:
            _pass(site, rule, tick_at_s)
            rule.tick(tick_at_s)
            tick_at_s += TICK_S
        _pass(site, rule, now_s)
        if place in {first, last}:
            marks.append([replica.busy_s for replica in site.replicas])
        number = rule.route(arrival, now_s)
        request = SimulatedRequest(now_s, arrival.input_tokens, arrival.output_tokens, arrival.task.value)
        sequence = site.replicas[number].offer(request)
        rule.sent(arrival, number, sequence)
        sequences.append(sequence)
        numbers.append(number)
    site.advance(math.inf)
    return _sum_up(
        site,
        sequences[first:last],
        numbers[first:last],
        duration_s=arrivals[last].at_s - arrivals[first].at_s,
        busy_s=[after - before for before, after in zip(*marks, strict=True)],
    )


def _pass(site: Site, rule: Rule, now_s: float) -> None:
    site.advance(now_s)
    if site.ended:
        for number, sequence in site.ended:
            rule.ended(number, sequence)
        site.ended.clear()


def _sum_up(
    site: Site,
    sequences: SequenceOf[Sequence],
    numbers: SequenceOf[int],
    *,
    duration_s: float,
    busy_s: SequenceOf[float],
) -> Played:
    ttfts = [one.ttft_s for one in sequences]
    tpots = [found for one in sequences if (found := one.tpot_s) is not None]
    tokens = sum(one.request.output_tokens for one in sequences)
    by_pool: dict[str, int] = {}
    prompts: dict[str, list[int]] = {}
    by_task: dict[str, list[int]] = {}
    first_pool = site.pools[0].name
    for number, one in zip(numbers, sequences, strict=True):
        pool, count = site.pools[number].name, one.request.output_tokens
        by_pool[pool] = by_pool.get(pool, 0) + count
        prompts.setdefault(pool, []).append(one.request.input_tokens)
        sums = by_task.setdefault(one.request.task, [0, 0])
        sums[0] += count if pool == first_pool else 0
        sums[1] += count
    usd_per_s = [float(pool.usd_per_hour) / 3600 for pool in site.pools]
    return Played(
        quantile(ttfts, P95),
        quantile(tpots, P95),
        quantile(ttfts, 0.5),
        quantile(tpots, 0.5),
        tokens,
        duration_s,
        sum(busy * usd for busy, usd in zip(busy_s, usd_per_s, strict=True)),
        sum(busy_s) / (duration_s * len(busy_s)),
        sum(one.end_s - one.sent_s for one in sequences) / (duration_s * len(busy_s)),
        {pool: count / tokens for pool, count in sorted(by_pool.items())},
        {task: sums[0] / sums[1] for task, sums in sorted(by_task.items())},
        {pool: sum(tokens) / len(tokens) for pool, tokens in sorted(prompts.items())},
    )
