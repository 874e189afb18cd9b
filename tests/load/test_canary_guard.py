"""Does the proof of the canary's guard still run, in small?"""

from tests.load.canary_guard import BAD, SEED, STATED, mistakes, simulated
from tests.load.canary_simulation import World


def test_the_guard_in_small() -> None:
    figures = {name: simulated(world, runs=2, units_max=600, seed=SEED) for name, world in BAD.items()}
    figures["good"] = simulated(World(), runs=2, units_max=100, seed=SEED)
    assert {name: figures[name]["rolled_back"] for name in (*BAD, "good")} == dict.fromkeys(BAD, 2) | {
        "good": 0
    }
    assert not mistakes(figures)
    figures["good"]["rolled_back"] = 1
    figures["twice_as_slow"]["candidate_requests_p95"] = STATED["twice_as_slow"] + 1
    figures["fails_10_percent"]["rolled_back"] = 1
    assert len(mistakes(figures)) == 3
