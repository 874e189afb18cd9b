"""Is a test that may be looked at for ever wrong as rarely as it says, and does it see what is there?"""

import math
import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.harm import (
    COST,
    FAILURES,
    MEASURES,
    Evidence,
    Observation,
    Suspicion,
    Tolerance,
    quantile,
)

VALUES = st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0, 3.0]), min_size=2, max_size=7)


def one(
    *, candidate: bool = False, failure: bool = False, total_ms: int = 100, cost: int = 1000
) -> Observation:
    if failure:
        return Observation(candidate, True, "default", None, None, None)
    return Observation(candidate, False, "default", None, total_ms, cost)


@given(values=VALUES, data=st.data(), rate=st.floats(0.05, 4))
def test_over_all_draws_the_evidence_of_a_stretch_is_one_at_most(
    values: list[float], data: st.DataObject, rate: float
) -> None:
    drawn = data.draw(st.integers(1, len(values) - 1))
    total, count = 0.0, 0
    for places in combinations(range(len(values)), drawn):
        seen = Evidence([0.0])
        seen.add(
            [rate],
            [values[place] for place in places],
            [value for place, value in enumerate(values) if place not in places],
        )
        total += math.exp(seen.log_e)
        count += 1
    assert total / count <= 1 + 1e-9


@given(values=VALUES, rate=st.floats(0.05, 4))
def test_a_worse_candidate_is_never_more_trusted(values: list[float], rate: float) -> None:
    first, *rest = values
    logs = []
    for value in (first, first + 1):
        seen = Evidence([0.0])
        seen.add([rate], [value], rest)
        logs.append(seen.log_e)
    assert logs[0] <= logs[1] + 1e-12


def test_without_the_one_or_the_other_nothing_is_learned() -> None:
    seen = Evidence([0.0, 0.0])
    seen.add([1.0, 2.0], [], [1.0])
    seen.add([1.0, 2.0], [1.0], [])
    assert (seen.log_e, seen.units, seen.control_units) == (0.0, 0, 0)


def test_the_mixture_is_the_mean_and_its_height_is_kept() -> None:
    seen = Evidence([0.0, 0.0])
    seen.add([1.0, 2.0], [1.0], [0.0])
    ones = [math.exp(rate) / ((math.exp(rate) + 1) / 2) for rate in (1.0, 2.0)]
    assert seen.log_e == pytest.approx(math.log(sum(ones) / 2))
    height = seen.log_e
    seen.add([1.0, 2.0], [0.0], [1.0])
    assert seen.most == height > seen.log_e


@pytest.mark.parametrize(("share", "found"), [(0.5, 2), (0.95, 4), (0.01, 1), (0.75, 3)])
def test_quantiles(share: float, found: int) -> None:
    assert quantile([4, 2, 1, 3], share) == found


def _suspicion(before: int = 100) -> Suspicion:
    suspicion = Suspicion(Tolerance())
    suspicion.begin([one(total_ms=100 + number, cost=1000 + number) for number in range(before)])
    return suspicion


@pytest.mark.parametrize(
    ("bad", "harmed"),
    [
        ({"failure": True}, FAILURES),
        ({"total_ms": 500}, "total_default"),
        ({"cost": 3000}, COST),
    ],
)
def test_harm_is_seen_where_it_is(bad: dict[str, int], harmed: str) -> None:
    suspicion = _suspicion()
    for number in range(30):
        control = [one(total_ms=100 + each, cost=1000 + each) for each in range(number, number + 20)]
        suspicion.add([*control, one(candidate=True, **bad)])  # type: ignore[arg-type]
    assert suspicion.harmed(error_probability=0.01, units_min=31) is None
    assert suspicion.harmed(error_probability=0.01, units_min=30) == harmed
    assert suspicion.units == 30


def test_what_is_tolerated_is_not_held_against_it() -> None:
    suspicion = _suspicion()
    for number in range(400):
        control = [one(total_ms=100 + each, cost=1000 + each) for each in range(0, 100, 5)]
        suspicion.add([*control, one(candidate=True, total_ms=100 + number % 100, cost=1049)])
    assert suspicion.harmed(error_probability=0.01, units_min=1) is None


def test_nothing_is_said_of_times_before_the_control_is_known() -> None:
    suspicion = _suspicion(before=10)
    suspicion.add([one(), one(candidate=True, total_ms=9999, cost=10**9)])
    assert set(suspicion.evidence) == {FAILURES}
    assert Suspicion(Tolerance()).harmed(error_probability=0.01, units_min=0) is None


def test_an_outage_of_both_is_nobodys_harm() -> None:
    suspicion = _suspicion()
    for _ in range(50):
        suspicion.add(
            [*(one(failure=True) for _ in range(20)), *(one(candidate=True, failure=True) for _ in range(2))]
        )
    assert suspicion.harmed(error_probability=0.01, units_min=1) is None
    assert suspicion.evidence[FAILURES].log_e == pytest.approx(0)


def test_pure_chance_rarely_exceeds_the_bound() -> None:
    draw, runs, above = random.Random(5), 300, 0
    for _ in range(runs):
        seen = Evidence([0.0, 0.0])
        for _ in range(60):
            values = [float(draw.random() < 0.1) for _ in range(12)]
            seen.add([0.9, 2.3], values[:2], values[2:])
        above += seen.most >= math.log(10)
    assert above <= runs * 0.1  # Ville's bound; far from it, so that chance does not fail the test
    assert len(MEASURES) == 8
