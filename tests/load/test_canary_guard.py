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


def test_a_real_one_counts_only_if_it_is_found_out_for_what_is_wrong_with_it() -> None:
    simulation = {"runs": 1, "rolled_back": 1, "candidate_requests_p95": 1}
    figures = {**dict.fromkeys(BAD, simulation), "good": {"runs": 1, "rolled_back": 0}}
    right = {"fails": {"harmed": "failures"}, "slow": {"harmed": "ttft_default"}}
    assert not mistakes({**figures, "real": right})
    wrong = {name: {"harmed": "cost", "reason": "it costs more"} for name in right}
    assert len(mistakes({**figures, "real": wrong})) == 2


def test_processes_change_no_figure() -> None:
    world, how = BAD["30_percent_dearer"], {"runs": 2, "units_max": 40, "seed": SEED}
    assert simulated(world, **how, jobs=2) == simulated(world, **how)
