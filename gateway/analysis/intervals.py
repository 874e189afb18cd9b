"""How far may an estimate be off, and when is there no claim at all?

An estimate of a measure m under another policy is `simulated * correction`, and its interval comes from five
things that have nothing to do with each other, as deviations of its logarithm:

- the pools: worlds that the record does not rule out are drawn from what is believed of steps and acceptance
  (`beliefs`), and the policy is simulated in each; with it comes the luck of guessing;
- the correction: what the record measured over what the simulator makes of the same requests on the same
  pools, by pool; its deviation is a bootstrap over blocks of time, for what is near in time is alike;
- the simulator: its error against real vLLM that no pool's correction takes away (`SIMULATOR`), for the
  part of the work that the change moves to other pools or to another load;
- the answers: another draw of a sampled answer has another length;
- the drift within the record, once more for the hour that is asked about.

No claim is made where more than `UNSUPPORTED_MAX` of a group's requests rest on nothing: a pool and a task
that the record has never seen together and no bench has measured.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.analysis.figures import COST, TIMES, times_of

Z: Final = 1.96
SIMULATOR: Final = {
    COST: 0.073,
    "ttft_p50_s": 0.088,
    "ttft_p95_s": 0.30,
    "total_p50_s": 0.073,
    "total_p95_s": 0.155,
}
"""The simulator's error against real vLLM, deviation of the logarithm over loads, each pool's own median
error taken out: tests/load/results/simulator_error.json of 2026-11-28, 20 loads of 2 pools, median absolute
deviation / 0.6745. Cost and the whole answer's median by the time per output token's median, its P95 by that
one's P95."""
UNSUPPORTED_MAX: Final = 0.05
GROUP_MIN: Final = 30
"""Requests of a group before its times are claimed."""
BLOCKS: Final = 24
BOOTSTRAPS: Final = 40
BOOTSTRAP_REQUESTS: Final = 20_000


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and where the truth is, 95 of 100 times."""

    estimate: float
    low: float
    high: float

    @property
    def width_ratio(self) -> float:
        """Of the estimate."""
        return (self.high - self.low) / self.estimate if self.estimate else 0.0


@dataclass(frozen=True, slots=True)
class Claim:
    """An interval, or why there is none."""

    interval: Interval | None
    refused: str | None = None
    rests_on: str = "recorded"


def lognormal(estimate: float, deviation: float) -> Interval:
    """95 of 100 of an estimate whose logarithm is off by so much."""
    spread = math.exp(Z * deviation)
    return Interval(estimate, estimate / spread, estimate * spread)


def difference(one: float, other: float, deviation: float) -> Interval:
    """Of two estimates, with the deviation of their difference."""
    middle = one - other
    return Interval(middle, middle - Z * deviation, middle + Z * deviation)


@dataclass(frozen=True, slots=True)
class Correction:
    """What was measured over what was simulated, of one pool: logarithms and their deviations, by measure."""

    logs: Mapping[str, float]
    deviations: Mapping[str, float]


NO_CORRECTION: Final = Correction({}, {})


def correction_of(
    measured: Sequence[tuple[float, float]],
    simulated: Sequence[tuple[float, float]],
    *,
    seed: int,
) -> Correction:
    """Of one pool's requests, in the order of time.

    Args:
        measured: (first token, total) of each, seconds.
        simulated: the same of the simulator.
        seed: of the bootstrap.
    """
    pairs = list(zip(measured, simulated, strict=True))
    if len(pairs) > BOOTSTRAP_REQUESTS:
        stride = len(pairs) / BOOTSTRAP_REQUESTS
        pairs = [pairs[int(number * stride)] for number in range(BOOTSTRAP_REQUESTS)]
    logs = _log_ratios(pairs)
    size = min(BLOCKS, max(2, len(pairs) // 10))
    blocks = [
        pairs[number * len(pairs) // size : (number + 1) * len(pairs) // size] for number in range(size)
    ]
    draw = random.Random(seed)  # noqa: S311 - a bootstrap
    squares: dict[str, float] = defaultdict(float)
    for _ in range(BOOTSTRAPS):
        again = [pair for _ in blocks for pair in blocks[draw.randrange(size)]]
        for name, value in _log_ratios(again).items():
            squares[name] += (value - logs[name]) ** 2
    return Correction(logs, {name: math.sqrt(total / BOOTSTRAPS) for name, total in squares.items()})


def _log_ratios(pairs: Sequence[tuple[tuple[float, float], tuple[float, float]]]) -> dict[str, float]:
    measured = times_of([pair[0][0] for pair in pairs], [pair[0][1] for pair in pairs])
    simulated = times_of([pair[1][0] for pair in pairs], [pair[1][1] for pair in pairs])
    return {name: _log_ratio(measured[name], simulated[name]) for name in TIMES}


def _log_ratio(measured: float, simulated: float) -> float:
    return math.log(measured / simulated) if measured > 0 and simulated > 0 else 0.0


def mixed(
    corrections: Mapping[str, Correction], shares: Mapping[str, float], name: str
) -> tuple[float, float]:
    """The correction of requests of which each pool answered a share, and its deviation."""
    log, square = 0.0, 0.0
    for pool, share in shares.items():
        found = corrections.get(pool, NO_CORRECTION)
        log += share * found.logs.get(name, 0.0)
        square += (share * found.deviations.get(name, 0.0)) ** 2
    return log, math.sqrt(square)


def deviation_of_logs(center: float, drawn: Sequence[float]) -> float:
    """Of draws around the best guess."""
    logs = [math.log(value / center) for value in drawn if value > 0 and center > 0]
    if len(logs) < 2:  # noqa: PLR2004 - one draw has no spread
        return 0.0
    mean = sum(logs) / len(logs)
    variance = sum((each - mean) ** 2 for each in logs) / (len(logs) - 1)
    # The guess need not be the middle of what may be; and so few draws know their own spread only roughly.
    return math.sqrt(variance * (1 + 1 / len(logs)) + min(variance, mean * mean))


def deviation(values: Sequence[float]) -> float:
    """Standard deviation."""
    if len(values) < 2:  # noqa: PLR2004 - see above
        return 0.0
    mean = sum(values) / len(values)
    return math.sqrt(sum((each - mean) ** 2 for each in values) / (len(values) - 1))
