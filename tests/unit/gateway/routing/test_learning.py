"""Does evidence fade, follow a change, and stay as sure as it may be?"""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.learning import (
    LOG_RATIO_MAX,
    SAMPLES_HALF,
    SECONDS_HALF,
    Belief,
    Evidence,
    Lesson,
    Sums,
    Tracked,
    after,
    believe,
    fold,
    has_drifted,
    tpot_ms,
)

PRIOR = Belief(1.0, 0.5, 4.0)


def lesson(**changes: object) -> Lesson:
    usual = Lesson(
        pool="speculative",
        task="code",
        tenant_id="ten_1",
        output_tokens=40,
        cached_ratio=0.25,
        draft_steps=10,
        accepted_tokens=20,
        queue_ms=1.0,
        ttft_ms=30.0,
        step_ms=12.0,
        modelled_ttft_ms=15.0,
        modelled_step_ms=12.0,
    )
    return msgspec.structs.replace(usual, **changes)


def steps(rate: float, count: int, *, seed: int = 1, drafts: int = 4) -> list[tuple[float, float]]:
    """Requests of 10 steps each, whose guesses are accepted so often until the first that is not."""
    draw = random.Random(seed)

    def accepted() -> int:
        number = 0
        while number < drafts and draw.random() < rate:
            number += 1
        return number

    return [(10, sum(accepted() for _ in range(10))) for _ in range(count)]


def test_a_lesson_is_folded_into_every_figure_that_it_has() -> None:
    evidence = fold(Evidence(), [lesson(), lesson(draft_steps=None, step_ms=None, ttft_ms=None)])
    assert evidence.accepted.slow == Sums(1, 10, 20, 100, 200, 400)
    assert evidence.step_log.slow.ratio == 0
    assert math.isclose(evidence.ttft_log.slow.ratio, math.log(2))
    assert evidence.output_tokens.ratio == 40
    assert evidence.cached_ratio.ratio == 0.25
    assert (evidence.tpot_ms.weight, evidence.tpot_ms.ratio) == (1, 4.0)


def test_time_per_token_is_a_steps_divided_by_what_it_yields() -> None:
    assert tpot_ms(lesson()) == 4.0
    assert tpot_ms(lesson(draft_steps=None)) == 12.0
    assert tpot_ms(lesson(step_ms=None)) is None


def test_evidence_is_kept_as_text_without_loss() -> None:
    evidence = fold(Evidence(), [lesson(output_tokens=length) for length in (1, 70, 300)])
    assert msgspec.json.decode(msgspec.json.encode(evidence), type=Evidence) == evidence


@pytest.mark.parametrize("measured", [0.0, 1e-9, 1e9])
def test_an_absurd_time_teaches_only_so_much(measured: float) -> None:
    found = fold(Evidence(), [lesson(step_ms=measured)]).step_log.slow.ratio
    assert math.isclose(abs(found), LOG_RATIO_MAX)


def test_evidence_is_worth_half_after_so_many_requests_and_after_so_long() -> None:
    once = Tracked().plus([(1, 1.0)])
    many = int(SAMPLES_HALF)
    assert math.isclose(once.plus([(1, 0.0)] * many).slow.value, 0.5)
    assert math.isclose(after(fold(Evidence(), [lesson()]), SECONDS_HALF).output_tokens.weight, 0.5)
    assert after(Evidence(), -5) == Evidence()


pairs = st.lists(
    st.tuples(st.floats(1, 1000, allow_subnormal=False), st.floats(0, 4000, allow_subnormal=False)),
    min_size=1,
    max_size=30,
)


@given(before=pairs, later=pairs, factor=st.floats(0.01, 1))
def test_sums_are_additive_never_negative_and_fade_alike(
    before: list[tuple[float, float]], later: list[tuple[float, float]], factor: float
) -> None:
    together = Sums().plus(before + later)
    assert together.weight == len(before) + len(later)
    assert together.variance >= 0
    low, high = (pick(value / size for size, value in before + later) for pick in (min, max))
    assert low - 1e-6 <= together.ratio <= high + 1e-6
    faded = together.faded(factor)
    assert math.isclose(faded.ratio, together.ratio, rel_tol=1e-9)
    assert math.isclose(faded.weight, together.weight * factor)
    assert math.isclose(faded.deviation, together.deviation, rel_tol=1e-3, abs_tol=1e-3)


@given(batches=st.lists(pairs, min_size=1, max_size=6))
def test_the_weight_never_exceeds_what_came_and_batches_matter_little(
    batches: list[list[tuple[float, float]]],
) -> None:
    tracked = Tracked()
    for batch in batches:
        tracked = tracked.plus(batch)
        assert 0 < tracked.slow.weight <= sum(len(each) for each in batches) + 1e-9
    assert tracked.quick.weight <= tracked.slow.weight + 1e-9


@given(data=pairs, mean=st.floats(0, 5), deviation=st.floats(0.01, 3), weight=st.floats(0.1, 50))
def test_a_belief_lies_between_what_was_thought_and_what_was_measured(
    data: list[tuple[float, float]], mean: float, deviation: float, weight: float
) -> None:
    sums = Sums().plus(data)
    found = believe(sums, Belief(mean, deviation, weight))
    low, high = sorted((mean, sums.ratio))
    assert low - 1e-6 <= found.mean <= high + 1e-6
    assert found.deviation >= 0
    assert found.interval[0] <= found.mean <= found.interval[1]


def test_without_evidence_the_prior_is_all_there_is() -> None:
    assert believe(Sums(), PRIOR) == Belief(1.0, 0.5, 0.0)


def test_more_requests_make_surer() -> None:
    few = believe(Sums().plus(steps(0.7, 10)), PRIOR)
    many = believe(Sums().plus(steps(0.7, 1000)), PRIOR)
    assert many.deviation < few.deviation < PRIOR.deviation


def test_the_interval_holds_what_is_true() -> None:
    truth = sum(0.7**position for position in range(1, 5))
    hits = 0
    for seed in range(200):
        low, high = believe(Sums().plus(steps(0.7, 60, seed=seed)), Belief(1.5, 0.4, 2.0)).interval
        hits += low <= truth <= high
    assert hits >= 180, hits


@pytest.mark.parametrize(("before", "later"), [(0.9, 0.1), (0.1, 0.9), (0.7, 0.4)])
@pytest.mark.parametrize("batch", [1, 7, 40])
def test_a_change_under_way_is_followed_within_a_few_dozen_requests(
    before: float, later: float, batch: int
) -> None:
    tracked = Tracked().plus(steps(before, 300))
    truth = sum(later**position for position in range(1, 5))
    coming = steps(later, 80, seed=2)
    for start in range(0, len(coming), batch):
        tracked = tracked.plus(coming[start : start + batch])
    assert math.isclose(1 + tracked.slow.ratio, 1 + truth, rel_tol=0.1), tracked.slow.ratio


def test_chance_is_not_taken_for_a_change() -> None:
    drifts = 0
    for seed in range(20):
        tracked = Tracked()
        for pair in steps(0.6, 200, seed=seed):
            tracked = tracked.plus([pair])
            drifts += has_drifted(tracked.slow, tracked.quick)
    assert drifts == 0
    assert not has_drifted(Sums(), Sums())
