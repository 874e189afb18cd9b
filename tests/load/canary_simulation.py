"""What would a guard have seen of simulated traffic? Times and costs of requests, a candidate, its evidence.

Times to the first token are lognormal with a heavy upper tail, as serving traces show them; the whole time
adds a lognormal answer; costs are lognormal with the answer's length. The base rates drift, and one in fifty
stretches has an outage that hits both versions.
"""

import math
import random
from dataclasses import dataclass

from gateway.jobs.canary_guard import STRETCH_UNITS
from gateway.routing.harm import Observation, Suspicion, Tolerance

CONTROL_BEFORE = 300
"""Requests of the control before the canary began."""
OUTAGE = 0.02
OUTAGE_FAILURES = 0.3
STRETCHES_PER_DRIFT = 40


@dataclass(frozen=True, slots=True)
class World:
    """What there is to be seen."""

    failures: float = 0.002
    """Share of the requests that fail under the control."""
    candidate_failures: float | None = None
    """Of the candidate's; None: the same."""
    slower: float = 1.0
    """How many times as long the candidate takes."""
    dearer: float = 1.0
    """How many times as much it costs."""
    share: float = 0.05


class Traffic:
    """Requests of a world, one after the other."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._random = random.Random(seed)
        self._phase = self._random.random() * 2 * math.pi
        self._stretch = 0
        self._is_outage = False

    def request(self, *, is_candidate: bool) -> Observation:
        """One that ended."""
        world, draw = self._world, self._random
        drift = 1 + 0.3 * math.sin(self._phase + self._stretch / STRETCHES_PER_DRIFT)
        failures = world.failures
        if is_candidate and world.candidate_failures is not None:
            failures = world.candidate_failures
        if self._is_outage:
            failures = max(failures, OUTAGE_FAILURES)
        tier = draw.choices(("default", "priority", "flex"), (0.8, 0.15, 0.05))[0]
        if draw.random() < failures:
            return Observation(is_candidate, True, tier, None, None, None)
        slower, dearer = (world.slower, world.dearer) if is_candidate else (1.0, 1.0)
        ttft_ms = 120 * drift * slower * math.exp(draw.gauss(0, 0.6))
        if draw.random() < 0.03:  # behind a long prompt
            ttft_ms *= 4
        tokens = 180 * math.exp(draw.gauss(0, 0.9))
        total_ms = ttft_ms + tokens * 12 * drift * slower * math.exp(draw.gauss(0, 0.15))
        cost = (400 + tokens) * 250 * dearer * math.exp(draw.gauss(0, 0.3))
        streams = draw.random() < 0.7
        return Observation(
            is_candidate, False, tier, int(ttft_ms) if streams else None, int(total_ms), int(cost)
        )

    def stretch(self) -> list[Observation]:
        """So many requests as the guard's job takes in at once."""
        self._stretch += 1
        self._is_outage = self._random.random() < OUTAGE
        share, draw = self._world.share, self._random
        return [
            self.request(is_candidate=draw.random() < share) for _ in range(math.ceil(STRETCH_UNITS / share))
        ]


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of a candidate."""

    units: int
    """Of the candidate, when it was rolled back; all, if it was not."""
    harmed: str | None


def watch(
    world: World, seed: int, *, units_max: int, error_probability: float = 0.01, units_min: int = 20
) -> Seen:
    """Send traffic until the guard takes the candidate back, or until it has had enough."""
    traffic = Traffic(world, seed)
    suspicion = Suspicion(Tolerance())
    suspicion.begin([traffic.request(is_candidate=False) for _ in range(CONTROL_BEFORE)])
    while suspicion.units < units_max:
        suspicion.add(traffic.stretch())
        harmed = suspicion.harmed(error_probability=error_probability, units_min=units_min)
        if harmed is not None:
            return Seen(suspicion.units, harmed)
    return Seen(suspicion.units, None)
