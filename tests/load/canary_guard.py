"""How many requests does a bad candidate get before its guard takes it back? And is a good one taken back?

    python -m tests.load.canary_guard

The statistics by simulation (`canary_simulation.py`), a hundred runs each: a candidate of which 10 % of the
requests fail (0.2 % of the control's), one that is twice as slow, one that is 30 % dearer, each with 5 % of
the traffic; and a hundred that are the same as the control, watched over 2,000 units of theirs. Then one real
run each of the first two through a gateway with mock engines, in which nothing else is wrong with the
candidate: the time and the requests from the start of the canary to the guard's entry in the audit.

Exit status 0: every bad one is rolled back, 95 of 100 within what is stated, the real ones for what is wrong
with them, and at most 2 of 100 good ones are; 1: not so.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Final

from gateway.routing.harm import LATENCIES
from tests.load.canary_real import rolled_back
from tests.load.canary_simulation import World, watch
from tests.load.measured import write_result

STATED: Final = {"fails_10_percent": 150, "twice_as_slow": 250, "30_percent_dearer": 350}
"""Requests of the candidate (each a unit) within which 95 of 100 bad ones are rolled back."""
BAD: Final = {
    "fails_10_percent": World(candidate_failures=0.10),
    "twice_as_slow": World(slower=2.0),
    "30_percent_dearer": World(dearer=1.3),
}
REAL: Final = {"fails": ("failures",), "slow": LATENCIES}
"""The measures by which a real one may be found out."""
GOOD_MAX: Final = 2
UNITS_MAX: Final = 2_000
SEED: Final = 20_261_128
_SHARE: Final = 0.95


def simulated(world: World, *, runs: int, units_max: int, seed: int, jobs: int = 1) -> dict[str, Any]:
    """What became of so many candidates; the same however many processes are at it."""
    one_run = functools.partial(watch, world, units_max=units_max)
    seeds = range(seed, seed + runs)
    if jobs == 1:
        seen = list(map(one_run, seeds))
    else:
        with ProcessPoolExecutor(jobs) as pool:
            seen = list(pool.map(one_run, seeds))
    found = sorted(one.units for one in seen if one.harmed is not None)
    return {
        "runs": runs,
        "seeds": [seed, seed + runs - 1],
        "rolled_back": len(found),
        "because_of": dict(Counter(one.harmed for one in seen if one.harmed is not None)),
        "candidate_requests_p50": _at(found, 0.5),
        "candidate_requests_p95": _at(found, _SHARE),
        "candidate_requests_max": found[-1] if found else None,
    }


def _at(found: Sequence[int], share: float) -> int | None:
    return found[min(len(found) - 1, int(share * len(found)))] if found else None


def mistakes(figures: dict[str, Any]) -> list[str]:
    """What is not as it is stated."""
    told = []
    for name, most in STATED.items():
        one = figures[name]
        if one["rolled_back"] < one["runs"]:
            told.append(f"{name}: {one['runs'] - one['rolled_back']} were not rolled back")
        elif one["candidate_requests_p95"] > most:
            told.append(f"{name}: P95 is {one['candidate_requests_p95']} requests, {most} are stated")
    good = figures["good"]
    if good["rolled_back"] > GOOD_MAX * good["runs"] / 100:
        told.append(f"{good['rolled_back']} of {good['runs']} good ones were rolled back")
    for name, one in figures.get("real", {}).items():
        if one["harmed"] not in REAL[name]:
            told.append(
                f"the real one that is {name} was rolled back for its {one['harmed']}: {one['reason']}"
            )
    return told


def main() -> int:
    """Measure, write the result, say whether it holds."""
    parser = argparse.ArgumentParser(description="How soon is a bad candidate rolled back?")
    parser.add_argument("--runs", type=int, default=100, help="simulated ones of each kind")
    parser.add_argument("--units", type=int, default=UNITS_MAX, help="of each good candidate")
    parser.add_argument("--jobs", type=int, default=1, help="processes that simulate")
    parser.add_argument("--only-simulated", action="store_true", help="no gateway")
    wanted = parser.parse_args()
    figures: dict[str, Any] = {
        name: simulated(world, runs=wanted.runs, units_max=UNITS_MAX, seed=SEED, jobs=wanted.jobs)
        for name, world in BAD.items()
    }
    figures["good"] = simulated(
        World(), runs=wanted.runs, units_max=wanted.units, seed=SEED, jobs=wanted.jobs
    )
    if not wanted.only_simulated:
        figures["real"] = {name: rolled_back(name) for name in REAL}
    told = mistakes(figures)
    write_result("canary_guard", {"stated_p95": STATED, **figures, "mistakes": told})
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
