"""Which replica would a balancer take that knows nothing of tasks?

*Round robin* takes all replicas of all pools in turn. *Least loaded* takes the one with the fewest
requests, by what a gateway knows: its own at once, those of the other gateways from the last looks at the
engines, averaged as Tollgate's own registry does (`backends.choice.others_now`).
"""

from __future__ import annotations

import random
from typing import Final

from backends.choice import others_now
from backends.simulator.requests import Sequence
from tests.load.fleet.play import Site
from tests.load.fleet.traffic import Arrival

GATEWAYS: Final = 2
"""That requests come to by chance, under every rule; each knows its own requests."""


class Balancer:
    """Gateways that balance over all replicas alike."""

    def __init__(self, site: Site, *, seed: int, by_load: bool) -> None:
        """Know of idle replicas.

        Args:
            site: the replicas.
            seed: of which gateway a request comes to, and of ties.
            by_load: the least loaded instead of the next in turn.
        """
        self._site = site
        self._draw = random.Random(seed)
        self._by_load = by_load
        count = len(site.replicas)
        self._own = [[0] * count for _ in range(GATEWAYS)]
        self._others: list[list[float | None]] = [[None] * count for _ in range(GATEWAYS)]
        self._turns = [self._draw.randrange(count) for _ in range(GATEWAYS)]
        self._gateway = 0
        self._gateway_of: dict[Sequence, int] = {}

    def route(self, arrival: Arrival, now_s: float) -> int:
        """The replica for a request."""
        del arrival, now_s
        gateway = self._gateway = self._draw.randrange(GATEWAYS)
        count = len(self._site.replicas)
        if not self._by_load:
            self._turns[gateway] = (self._turns[gateway] + 1) % count
            return self._turns[gateway]
        own, others, draw = self._own[gateway], self._others[gateway], self._draw.random
        return min(range(count), key=lambda number: (own[number] + round(others[number] or 0), draw()))

    def sent(self, arrival: Arrival, number: int, sequence: Sequence) -> None:
        """Count it."""
        del arrival
        self._own[self._gateway][number] += 1
        self._gateway_of[sequence] = self._gateway

    def ended(self, number: int, sequence: Sequence) -> None:
        """Count it no more."""
        self._own[self._gateway_of.pop(sequence)][number] -= 1

    def tick(self, now_s: float) -> None:
        """Look at the engines."""
        del now_s
        for own, others in zip(self._own, self._others, strict=True):
            for number, replica in enumerate(self._site.replicas):
                others[number] = others_now(others[number], replica.requests - own[number])


def round_robin(site: Site, *, seed: int, rate: float) -> Balancer:
    """Every replica in turn."""
    del rate
    return Balancer(site, seed=seed, by_load=False)


def least_loaded(site: Site, *, seed: int, rate: float) -> Balancer:
    """The replica with the fewest requests."""
    del rate
    return Balancer(site, seed=seed, by_load=True)
