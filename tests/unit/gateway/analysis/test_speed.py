"""Does the record teach how fast pools really are, and how sure one may be?"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from backends.profile import Engine, StepTime
from backends.simulator.calibration import SimulatedPool
from gateway.analysis.fleet import SimulatedFleet, Work, luck_of
from gateway.analysis.speed import (
    Ran,
    Shape,
    _times_as_slow,
    accepted,
    cholesky,
    guessing_of,
    inverse,
    learn,
    occupancy,
    prior,
)
from gateway.routing.learning import Belief

ENGINE = Engine(max_num_seqs=32, max_num_batched_tokens=2048, kv_cache_tokens=100_000)
THOUGHT = SimulatedPool(ENGINE, StepTime(fixed_s=0.01, batched_token_s=0.0002, kv_token_s=1e-6))


def hour(pool: SimulatedPool, *, per_s: float, count: int = 900, seed: int = 1) -> list[Ran]:
    """What runs on one replica of a pool, as the record has it."""
    draw, at_s, works = random.Random(seed), 0.0, []
    for index in range(count):
        at_s += draw.expovariate(per_s)
        works.append(Work(index, at_s, "p", "", draw.randint(20, 300), 0, draw.randint(5, 150), None))
    run = SimulatedFleet({"p": pool}, {"p": 1}).run(works, luck_of(count, seed))
    return [replace(ran, steps=ran.output_tokens - 1) for ran in run.pools["p"].replicas[0]]


def test_steps_that_are_slower_than_the_profile_are_found_out() -> None:
    shape = Shape.of(THOUGHT)
    scales = (1.2, 0.85, 1.0, 1.1)
    real = shape.scaled(scales).put_into(THOUGHT, request_s=0.0)
    found = learn([hour(real, per_s=1.5)], shape, prior())
    assert found.mean[0] == pytest.approx(1.2, rel=0.05)
    # What a usual step takes is known far better than before.
    usual = [part * size for part, size in zip(shape.parts, (1, 6, 1500, 5), strict=True)]
    assert found.deviation(usual) < 0.1 * prior().deviation(usual)
    assert sum(a * b for a, b in zip(found.mean, usual, strict=True)) == pytest.approx(
        sum(a * b for a, b in zip(scales, usual, strict=True)), rel=0.02
    )


@pytest.mark.parametrize("times", [0.3, 5.0])
def test_a_profile_of_another_machine_gives_way_to_the_record(times: float) -> None:
    shape = Shape.of(THOUGHT)
    slow = shape.scaled([times] * 4).put_into(THOUGHT, request_s=0.0)
    found = learn([hour(slow, per_s=0.5 / times)], shape, prior())
    usual = [part * size for part, size in zip(shape.parts, (1, 6, 1500, 5), strict=True)]
    thought_s = sum(usual)
    really_s = sum(scale * part for scale, part in zip(found.mean, usual, strict=True))
    assert really_s / thought_s == pytest.approx(times, rel=0.03)
    assert found.deviation(usual) < 0.2 * times * thought_s
    # In proportion less sure of it than where the profile is right, but of the same order.
    right = learn([hour(THOUGHT, per_s=0.5)], shape, prior())
    assert 1 < found.deviation(usual) / (times * right.deviation(usual)) < 2


@pytest.mark.parametrize(
    ("sums", "times"),
    [
        pytest.param([0.2] * 10, 5.0, id="beyond belief"),
        pytest.param([3.0] * 10, 1 / 3, id="the other way"),
        pytest.param([0.8] * 10, 1.0, id="within what was believed"),
        pytest.param([0.1, 0.6] * 3, 1.0, id="within what chance makes of it"),
    ],
)
def test_a_profile_is_given_up_only_where_it_is_beyond_belief(sums: list[float], times: float) -> None:
    rows = [[each / 4] * 4 for each in sums]
    assert _times_as_slow(rows, prior()) == pytest.approx(times)


def test_noise_is_what_remains_of_a_machine_that_is_slow_by_fits_and_starts() -> None:
    shape, draw = Shape.of(THOUGHT), random.Random(3)
    runs = [
        replace(run, end_s=run.first_s + (run.end_s - run.first_s) * draw.uniform(3, 7))
        for run in hour(THOUGHT, per_s=0.02, count=200)
    ]
    found = learn([runs], shape, prior())
    alone = [part * size for part, size in zip(shape.parts, (1, 1, 200, 0), strict=True)]
    really_s = sum(scale * part for scale, part in zip(found.mean, alone, strict=True))
    assert really_s / sum(alone) == pytest.approx(5, rel=0.1)


def test_a_profile_that_was_contradicted_is_less_sure_of_its_proportions_too() -> None:
    shape, scales = Shape.of(THOUGHT), (4.0, 1.0, 1.0, 1.0)
    real = shape.scaled(scales).put_into(THOUGHT, request_s=0.0)
    found = learn([hour(real, per_s=0.5, count=120)], shape, prior())
    many = [part * size for part, size in zip(shape.parts, (1, 20, 5000, 0), strict=True)]
    said_s = sum(scale * part for scale, part in zip(found.mean, many, strict=True))
    truth_s = sum(scale * part for scale, part in zip(scales, many, strict=True))
    assert abs(said_s - truth_s) < 1.96 * found.deviation(many)


def test_too_little_of_a_record_changes_nothing() -> None:
    before = prior()
    assert learn([hour(THOUGHT, per_s=1.0, count=4)], Shape.of(THOUGHT), before) is before
    assert learn([], Shape.of(THOUGHT), before) is before


def test_another_load_than_the_records_is_less_sure() -> None:
    shape = Shape.of(THOUGHT)
    found = learn([hour(THOUGHT, per_s=0.3)], shape, prior())
    few = [part * size for part, size in zip(shape.parts, (1, 1, 200, 0), strict=True)]
    many = [part * size for part, size in zip(shape.parts, (1, 24, 5000, 0), strict=True)]
    assert found.deviation(many) / sum(many) > 2 * found.deviation(few) / sum(few)


def test_somebody_elses_profile_is_hardly_believed() -> None:
    assert prior(own=False).deviation((1, 0, 0, 0)) > 5 * prior().deviation((1, 0, 0, 0))


def test_parts_of_the_busy_time_add_up_to_it() -> None:
    runs = [
        Ran(0.0, 0.0, 1.0, 4.0, 10, 10, 5, 4),
        Ran(0.0, 2.0, 3.0, 6.0, 10, 10, 5, 4),
        Ran(9.0, 9.0, 9.5, 10.0, 10, 10, 2, 1),
    ]
    found = occupancy(runs, Shape.of(THOUGHT))
    assert found.busy_s == pytest.approx(7.0)
    assert found.shares_s == pytest.approx([3.0, 3.0, 1.0])
    assert found.prompts == [10, 0, 0]
    # Of its steps from 1 to 4 s, those from 3 to 4 had two in them.
    assert 1.2 < found.sequences[0] < 1.4
    assert occupancy([], Shape.of(THOUGHT)).busy_s == 0.0


def test_put_into_a_pool_steps_take_what_the_shape_says() -> None:
    pool = Shape((0.02, 0.001, 2e-6, 0.0003)).put_into(THOUGHT, request_s=0.5)
    took_s = pool.step_s(tokens=8 + 100, context_tokens=1000, sequences=8, proposed=0)
    assert took_s == pytest.approx(0.02 + 8 * 0.001 + 1000 * 2e-6 + 100 * 0.0003)
    assert pool.step_time.request_s == 0.5


def test_acceptance_is_drawn_from_thought_to_record() -> None:
    thought = Belief(1.0, 0.3, 6.0)
    assert accepted([], thought) == Belief(1.0, 0.3, 0.0)
    few = accepted([(10, 20)] * 6, thought)
    many = accepted([(10, 20)] * 600, thought)
    assert few.mean == pytest.approx(1.5)
    assert many.mean == pytest.approx(2.0, abs=0.02)
    assert many.deviation < 0.01 < few.deviation
    drifting = accepted([(10, 15 + index // 60) for index in range(600)], thought)
    assert drifting.deviation > 3 * many.deviation


@pytest.mark.parametrize("mean", [0.4, 1.5, 2.9])
def test_a_guess_of_another_mean(mean: float) -> None:
    found = guessing_of((0.8, 0.6, 0.5, 0.4), mean).by_position
    assert sum(found) == pytest.approx(mean, rel=1e-3)
    assert list(found) == sorted(found, reverse=True)


def test_small_matrices() -> None:
    matrix = [[4.0, 2.0, 0.6], [2.0, 5.0, 1.0], [0.6, 1.0, 3.0]]
    root, back = cholesky(matrix), inverse(matrix)
    for i in range(3):
        for j in range(3):
            assert sum(root[i][k] * root[j][k] for k in range(3)) == pytest.approx(matrix[i][j])
            unit = sum(matrix[i][k] * back[k][j] for k in range(3))
            assert unit == pytest.approx(1.0 if i == j else 0.0, abs=1e-12)
