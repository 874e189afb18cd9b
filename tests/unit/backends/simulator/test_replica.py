"""Does a simulated engine keep vLLM's rules, and do its sums come out?"""

import itertools
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.profile import DraftCost, Engine, StepTime
from backends.simulator.calibration import Guessing, SimulatedPool
from backends.simulator.fleet import Outcome, simulate, simulate_closed_loop
from backends.simulator.replica import NeverFits, Replica
from backends.simulator.requests import SimulatedRequest

TIME = StepTime(fixed_s=5e-3, batched_token_s=2e-5, kv_token_s=1e-7, sequence_s=1e-4, request_s=2e-3)
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def pool(
    *, kv: int | None = None, seqs: int = 8, batched: int = 256, draft: int = 0, **engine: Any
) -> SimulatedPool:
    limits = Engine.model_validate(
        {
            "max_num_seqs": seqs,
            "max_num_batched_tokens": batched,
            "kv_cache_tokens": kv,
            "block_size": 16,
            **engine,
        }
    )
    if not draft:
        return SimulatedPool(limits, TIME)
    return SimulatedPool(
        limits,
        TIME,
        draft=DraftCost(fixed_s=1e-3, proposed_token_s=1e-5, kv_token_s=1e-9),
        draft_tokens=draft,
        guessing={"": Guessing((0.7, 0.5, 0.3, 0.2)[:draft]), "code": Guessing((0.9, 0.8, 0.7, 0.6)[:draft])},
    )


@st.composite
def loads(draw: st.DrawFn) -> list[SimulatedRequest]:
    count = draw(st.integers(1, 40))
    moments = sorted(draw(st.lists(st.floats(0, 3), min_size=count, max_size=count)))
    lengths = st.tuples(st.integers(1, 300), st.integers(1, 60))
    shared = draw(st.integers(0, 3))
    return [
        SimulatedRequest(at_s, asked, told, prefix=tuple(range(min(shared, asked // 16))))
        for at_s, (asked, told) in zip(
            moments, draw(st.lists(lengths, min_size=count, max_size=count)), strict=True
        )
    ]


pools = st.builds(
    pool,
    kv=st.sampled_from([None, 400, 700, 2_000]),
    seqs=st.integers(1, 12),
    batched=st.sampled_from([64, 256, 2_048]),
    draft=st.sampled_from([0, 0, 2, 4]),
)


@FEW
@given(loads(), pools, st.integers(0, 5), st.integers(1, 3))
def test_every_request_ends_with_its_tokens_and_in_its_order(
    requests: list[SimulatedRequest], one: SimulatedPool, seed: int, replicas: int
) -> None:
    outcome = simulate(requests, one, replicas=replicas, seed=seed)
    assert [each.request for each in outcome.sequences] == requests
    for each in outcome.sequences:
        assert each.sent_s <= each.arrived_s <= each.scheduled_s < each.first_token_s <= each.end_s
        assert (each.end_s > each.first_token_s) == (each.request.output_tokens > 1)
        if one.draft_tokens:
            # Each verified step yields one token of its own beside those that were accepted.
            assert each.draft_steps + each.accepted_tokens == each.request.output_tokens - 1
            assert each.accepted_tokens <= one.draft_tokens * each.draft_steps
    assert outcome.output_tokens == sum(each.output_tokens for each in requests)


@FEW
@given(loads(), pools, st.integers(0, 5))
def test_the_cache_is_never_overfull_and_never_leaks(
    requests: list[SimulatedRequest], one: SimulatedPool, seed: int
) -> None:
    replica = Replica(one, seed=seed)
    for request in requests:
        replica.advance(request.at_s)
        replica.offer(request)
    replica.advance()
    assert replica.kv_peak_tokens <= one.capacity_tokens + 1e-6
    assert replica.kv_held_tokens == pytest.approx(0, abs=1e-6)
    assert replica.requests == 0


@FEW
@given(loads(), pools, st.integers(0, 5))
def test_the_engine_works_while_there_is_work(
    requests: list[SimulatedRequest], one: SimulatedPool, seed: int
) -> None:
    """It idles only while every request that has arrived has ended."""
    outcome = simulate(requests, one, seed=seed)
    spans = sorted((each.arrived_s, each.end_s) for each in outcome.sequences)
    with_work_s, (start_s, end_s) = 0.0, spans[0]
    for arrived_s, ended_s in spans[1:]:
        if arrived_s > end_s:
            with_work_s += end_s - start_s
            start_s, end_s = arrived_s, ended_s
        end_s = max(end_s, ended_s)
    assert outcome.busy_s == pytest.approx(with_work_s + end_s - start_s, rel=1e-9)


@FEW
@given(loads(), pools, st.integers(0, 5))
def test_the_same_seed_gives_the_same_result(
    requests: list[SimulatedRequest], one: SimulatedPool, seed: int
) -> None:
    def run() -> list[tuple[float, float, int]]:
        found = simulate(requests, one, replicas=2, seed=seed)
        return [(each.first_token_s, each.end_s, each.accepted_tokens) for each in found.sequences]

    assert run() == run()


@FEW
@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 60), st.integers(1, 12))
def test_more_at_once_takes_no_less_time(count: int, asked: int, told: int, seqs: int) -> None:
    def burst(size: int) -> Outcome:
        return simulate([SimulatedRequest(0, asked, told)] * size, pool(seqs=seqs, batched=512))

    fewer, more = burst(count), burst(count + 1)
    assert more.duration_s >= fewer.duration_s
    assert more.ttft_s(1.0) >= fewer.ttft_s(1.0)


@FEW
@given(st.integers(1, 900), st.integers(1, 400))
def test_one_request_alone_is_the_formula(asked: int, told: int) -> None:
    (each,) = simulate([SimulatedRequest(1.5, asked, told)], pool(batched=1_024)).sequences
    step = TIME.fixed_s + TIME.sequence_s
    first_s = TIME.request_s + step + (TIME.batched_token_s + TIME.kv_token_s) * asked
    decodes = told - 1
    contexts = decodes * (asked + 1) + decodes * (decodes - 1) / 2
    rest_s = decodes * (step + TIME.batched_token_s) + TIME.kv_token_s * contexts
    assert each.ttft_s == pytest.approx(first_s)
    assert each.end_s - each.first_token_s == pytest.approx(rest_s, abs=1e-9)
    assert each.queue_s == 0


@FEW
@given(loads(), pools, st.integers(0, 5))
def test_skipping_steps_changes_nothing(
    requests: list[SimulatedRequest], one: SimulatedPool, seed: int
) -> None:
    """A clock that stops every millisecond takes the same steps as one that jumps to the end."""
    jumping, stopping = Replica(one, seed=seed), Replica(one, seed=seed)
    for request in requests:
        for replica in (jumping, stopping):
            replica.advance(request.at_s)
            replica.offer(request)
    jumping.advance()
    for tick in itertools.count():
        if not stopping.requests:
            break
        stopping.advance(tick * 0.01)
    assert [each.end_s for each in stopping.ended] == pytest.approx([each.end_s for each in jumping.ended])
    assert stopping.steps == jumping.steps


def test_a_long_prompt_is_computed_in_parts_while_others_decode() -> None:
    short, long = SimulatedRequest(0, 16, 50), SimulatedRequest(0.02, 1_000, 2)
    outcome = simulate([short, long], pool(batched=256))
    first, second = outcome.sequences
    # 255 tokens beside the one that decodes: four steps, in which the other goes on.
    parts_s = 4 * (TIME.fixed_s + 2 * TIME.sequence_s) + (1_000 + 4) * TIME.batched_token_s
    assert second.first_token_s - second.scheduled_s == pytest.approx(parts_s, rel=0.1)
    assert first.end_s > second.end_s


def test_without_chunked_prefill_a_prompt_waits_for_a_whole_step() -> None:
    asked = [SimulatedRequest(0, 200, 30), SimulatedRequest(0, 256, 2)]
    first, second = simulate(asked, pool(batched=256, enable_chunked_prefill=False)).sequences
    assert second.scheduled_s >= first.end_s


def test_those_beyond_the_batch_wait_their_turn() -> None:
    outcome = simulate([SimulatedRequest(0, 10, 20)] * 5, pool(seqs=2))
    starts = [each.scheduled_s for each in outcome.sequences]
    assert starts == sorted(starts)
    assert outcome.sequences[2].scheduled_s >= outcome.sequences[0].end_s


def test_a_full_cache_makes_the_last_one_give_up_its_room() -> None:
    asked = [SimulatedRequest(0, 100, 200), SimulatedRequest(0, 100, 200)]
    outcome = simulate(asked, pool(kv=416))
    first, last = outcome.sequences
    assert (first.preemptions, last.preemptions) == (0, 1)
    assert outcome.preemptions == 1
    assert last.end_s > first.end_s
    assert outcome.kv_peak_tokens <= 416


def test_what_can_never_fit_is_refused() -> None:
    with pytest.raises(NeverFits, match=r"300 \+ 200 tokens does not fit into a cache of 400"):
        simulate([SimulatedRequest(0, 300, 200)], pool(kv=400))


def with_prefixes(**engine: Any) -> SimulatedPool:
    found = pool(kv=1_600, **engine)
    return SimulatedPool(found.engine, found.step_time, prefix_block_tokens=16)


def test_a_repeated_prefix_is_found_but_for_the_last_token() -> None:
    same = tuple(range(10))
    asked = [SimulatedRequest(0, 160, 4, prefix=same), SimulatedRequest(1, 160, 4, prefix=same)]
    first, second = simulate(asked, with_prefixes()).sequences
    assert (first.cached_tokens, second.cached_tokens) == (0, 144)
    assert second.ttft_s < first.ttft_s


def test_a_prefix_that_others_pushed_out_is_computed_again() -> None:
    def asked(number: int, at_s: float) -> SimulatedRequest:
        return SimulatedRequest(at_s, 800, 4, prefix=tuple(range(100 * number, 100 * number + 50)))

    trace = [asked(1, 0), asked(2, 1), asked(3, 2), asked(1, 3)]
    last = simulate(trace, with_prefixes(batched=2_048)).sequences[-1]
    assert last.cached_tokens < 784


def test_two_that_run_share_a_prefix_in_the_cache() -> None:
    same = tuple(range(40))
    asked = [SimulatedRequest(0, 640, 50, prefix=same)] * 4
    shared = simulate(asked, with_prefixes(batched=4_096))
    apart = simulate([SimulatedRequest(0, 640, 50)] * 2, with_prefixes(batched=4_096))
    assert shared.kv_peak_tokens < apart.kv_peak_tokens


def test_better_guesses_make_fewer_steps() -> None:
    def tokens_per_step(task: str) -> float | None:
        return simulate([SimulatedRequest(0, 50, 200, task)] * 30, pool(draft=4)).tokens_per_step

    guessed, code = tokens_per_step("poetry"), tokens_per_step("code")
    assert guessed == pytest.approx(1 + 0.7 + 0.5 + 0.3 + 0.2, rel=0.05)
    assert code == pytest.approx(1 + 0.9 + 0.8 + 0.7 + 0.6, rel=0.05)
    assert simulate([SimulatedRequest(0, 50, 20)], pool()).tokens_per_step is None


@pytest.mark.parametrize("tokens", [257, 1_000])
def test_long_answers_draw_their_steps_at_once_and_as_many(tokens: int) -> None:
    guessing, draw = Guessing((0.6, 0.3)), random.Random(3)
    at_once = [guessing.steps(tokens, draw) for _ in range(400)]
    pieces = [guessing.steps(200, draw) for _ in range(400)]
    assert sum(at_once) / 400 == pytest.approx(sum(pieces) / 400 * tokens / 200, rel=0.02)
    assert guessing.steps(0, draw) == 0


def test_a_closed_loop_keeps_so_many_under_way() -> None:
    asked = [SimulatedRequest(0, 20, 30)] * 12
    outcome = simulate_closed_loop(asked, pool(), concurrency=3)
    assert len(outcome.sequences) == 12
    for each in outcome.sequences[3:]:
        assert any(each.sent_s == earlier.end_s for earlier in outcome.sequences)
    alone = simulate_closed_loop(asked, pool(), concurrency=1)
    assert alone.duration_s > outcome.duration_s
    assert alone.ttft_s() < outcome.ttft_s()


def test_requests_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="order of their times"):
        simulate([SimulatedRequest(1, 1, 1), SimulatedRequest(0, 1, 1)], pool())


def test_nothing_to_do_takes_no_time() -> None:
    outcome = simulate([], pool(), replicas=2)
    assert (outcome.duration_s, outcome.output_tokens_per_s, outcome.sequences) == (0, 0, ())
    one_token = simulate([SimulatedRequest(0, 5, 1)], pool())
    assert one_token.tpot_s() is None


def test_a_request_has_tokens() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        SimulatedRequest(0, 0, 5)


def test_speculation_needs_an_acceptance_for_everybody() -> None:
    with pytest.raises(ValueError, match="not named"):
        SimulatedPool(pool().engine, TIME, draft_tokens=2, guessing={"code": Guessing((0.5,))})
