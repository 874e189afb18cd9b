"""Is a prediction sane, and is the policy's order overturned for a reason only?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.economics import (
    GATE_NEVER,
    NO_TARGET,
    LatencyTarget,
    Outlook,
    Rule,
    Why,
    choose,
    gate_of,
    outlook_of,
    predict,
)
from gateway.routing.learning import Belief, Evidence, Lesson, fold
from gateway.routing.priors import Pace
from tests.support.factories import make_outlook as outlook

PACE = Pace(0.010, 0.0002, 0.0001, 0.002, 32, 2048, is_measured=False)
RULE = Rule(is_enabled=True)


def speculative(tokens_per_step: float = 2.5, **changes: Any) -> Outlook:
    """A step that takes half as long again, and more for each request."""
    return outlook(
        "speculative",
        **{
            "fixed_s": 0.015,
            "sequence_s": 0.001,
            "tokens_per_step": tokens_per_step,
            "is_speculative": True,
            **changes,
        },
    )


def chosen(
    *outlooks: Outlook,
    loads: Sequence[float] = (0, 0),
    targets: Sequence[LatencyTarget] = (NO_TARGET, NO_TARGET),
    tier: str = "default",
    rule: Rule = RULE,
) -> tuple[str, Why]:
    share = sum(loads) / len(loads) + 1
    predictions = [
        predict(each, load, share, input_tokens=100, output_tokens=100)
        for each, load in zip(outlooks, loads, strict=True)
    ]
    first, why = choose(
        outlooks,
        predictions,
        rule,
        targets=targets,
        is_urgent=tier == "priority",
        is_patient=tier == "flex",
    )
    return outlooks[first].pool, why


# ---------------------------------------------------------------------------------------------- predictions
def test_a_step_costs_its_time_divided_by_who_shares_it_and_what_it_yields() -> None:
    found = predict(speculative(2.0), 3, 4, input_tokens=0, output_tokens=100)
    assert math.isclose(found.tpot_s, 0.019 / 2)
    assert math.isclose(found.cost_usd_nanos, 1e9 * 100 * 0.019 / (4 * 2))
    assert math.isclose(found.total_s, found.ttft_s + 100 * found.tpot_s)
    assert found.queue_s == 0


def test_what_the_prefix_cache_has_is_not_read_again() -> None:
    cold = predict(outlook(), 0, 1, input_tokens=1000, output_tokens=10)
    warm = predict(outlook(fresh_ratio=0.1), 0, 1, input_tokens=1000, output_tokens=10)
    assert math.isclose(cold.read_s - warm.read_s, 0.09)
    assert warm.ttft_s < cold.ttft_s
    assert warm.cost_usd_nanos < cold.cost_usd_nanos


def test_beyond_its_seats_a_pool_queues() -> None:
    last = predict(outlook(), 31, 32, input_tokens=10, output_tokens=100)
    queued = predict(outlook(), 40, 32, input_tokens=10, output_tokens=100)
    assert last.queue_s == 0 < queued.queue_s
    assert queued.share == 32
    assert queued.tpot_s == last.tpot_s


def test_what_was_modelled_does_not_know_what_was_learned() -> None:
    plain = predict(outlook(), 5, 6, input_tokens=100, output_tokens=10)
    factor = 3.0
    slow = outlook(
        fixed_s=0.010 * factor,
        sequence_s=0.0002 * factor,
        prompt_token_s=0.0001 * factor,
        step_factor=factor,
        ttft_factor=2.0,
    )
    corrected = predict(slow, 5, 6, input_tokens=100, output_tokens=10)
    assert math.isclose(corrected.modelled_step_s, plain.modelled_step_s)
    assert math.isclose(corrected.modelled_ttft_s, plain.modelled_ttft_s)
    assert corrected.tpot_s == pytest.approx(plain.tpot_s * factor)


loads = st.floats(0, 200)
outlooks = st.builds(
    outlook,
    fixed_s=st.floats(1e-4, 0.1),
    sequence_s=st.floats(0, 0.01),
    prompt_token_s=st.floats(0, 1e-3),
    tokens_per_step=st.floats(1, 6),
    seats=st.integers(1, 256),
    fresh_ratio=st.floats(0, 1),
    deviation=st.floats(0, 1),
    is_known=st.booleans(),
    is_speculative=st.booleans(),
    gate=st.one_of(st.just(GATE_NEVER), st.floats(1, 64)),
)


@given(pool=outlooks, load=loads, more=loads, tokens=st.integers(0, 100_000), out=st.floats(1, 4000))
def test_more_load_is_never_faster_and_nothing_is_negative(
    pool: Outlook, load: float, more: float, *, tokens: int, out: float
) -> None:
    one = predict(pool, load, load + 1, input_tokens=tokens, output_tokens=out)
    other = predict(pool, load + more, load + more + 1, input_tokens=tokens, output_tokens=out)
    assert all(value >= 0 and math.isfinite(value) for value in msgspec.structs.astuple(one))
    assert other.ttft_s >= one.ttft_s - 1e-9
    assert other.tpot_s >= one.tpot_s - 1e-12
    assert other.cost_usd_nanos <= one.cost_usd_nanos + 1e-6  # the step is shared by more


@given(
    first=outlooks, second=outlooks, busy=st.tuples(loads, loads), tier=st.sampled_from(["flex", "default"])
)
def test_nothing_is_overturned_for_less_than_the_margin(
    first: Outlook, second: Outlook, busy: tuple[float, float], *, tier: str
) -> None:
    second = msgspec.structs.replace(second, pool="other")
    pool, why = chosen(first, second, loads=busy, tier=tier)
    assert (pool == "plain") == (why is Why.POLICY)
    if why is Why.COST:
        share = sum(busy) / 2 + 1
        # What a call takes from everybody were both as full, at the price of the engine.
        dear, cheap = (
            each.usd_nanos_per_s
            * predict(each, load, share, input_tokens=100, output_tokens=100).even_burden_s
            for each, load in zip((first, second), busy, strict=True)
        )
        assert cheap <= dear * (1 - RULE.switch_margin) + 1e-6
        assert first.is_known
        assert second.is_known


# --------------------------------------------------------------------------------------------------- choices
def test_the_policys_order_holds_while_speculation_pays() -> None:
    assert chosen(speculative(2.5), outlook()) == ("speculative", Why.POLICY)


def test_a_pool_whose_guesses_are_wrong_is_left_for_the_cheaper_one() -> None:
    assert chosen(speculative(1.1), outlook()) == ("plain", Why.COST)


def test_a_doubt_keeps_the_policys_order() -> None:
    assert chosen(speculative(1.1, deviation=0.5), outlook())[1] is Why.POLICY
    assert chosen(speculative(1.1, is_known=False), outlook())[1] is Why.POLICY
    assert chosen(speculative(1.1), outlook(is_known=False))[1] is Why.POLICY


def test_less_than_the_margin_is_no_reason() -> None:
    near = speculative(1.45)
    assert chosen(near, outlook())[1] is Why.POLICY
    assert chosen(near, outlook(), rule=Rule(is_enabled=True, switch_margin=0.01)) == ("plain", Why.COST)


def test_an_empty_pool_does_not_look_dear_for_being_empty() -> None:
    assert chosen(speculative(2.0), outlook(), loads=(0, 8))[1] is Why.POLICY


def test_a_dearer_machine_has_to_be_worth_it() -> None:
    assert chosen(speculative(2.5, usd_nanos_per_s=4e9), outlook()) == ("plain", Why.COST)


def test_a_loaded_speculating_pool_is_left_beyond_its_gate() -> None:
    gated = speculative(2.5, gate=6.0)
    assert chosen(gated, outlook(), loads=(5, 0)) == ("speculative", Why.POLICY)
    assert chosen(gated, outlook(), loads=(6, 0)) == ("plain", Why.GATE)
    # Where the other one has a queue and this has none, there is nothing to gain.
    assert chosen(gated, outlook(seats=4), loads=(6, 9))[0] == "speculative"


def test_a_latency_target_that_would_be_missed_overturns_at_once() -> None:
    target = LatencyTarget(ttft_s=0.2)
    slow = speculative(2.5, ttft_factor=20.0, is_known=False)
    assert chosen(slow, outlook(), targets=(target, target)) == ("plain", Why.LATENCY)
    assert chosen(slow, outlook(), targets=(target, target), tier="flex")[1] is Why.POLICY
    tokens = LatencyTarget(tpot_s=0.008)
    assert chosen(outlook(), speculative(2.5), targets=(tokens, tokens)) == ("speculative", Why.LATENCY)


def test_where_nobody_keeps_the_target_the_soonest_goes_first() -> None:
    target = LatencyTarget(ttft_s=0.001)
    soon = outlook(request_s=0.0, prompt_token_s=0.0)
    assert chosen(outlook(ttft_factor=5), soon, targets=(target, target))[1] is Why.LATENCY
    assert chosen(outlook(), outlook(), targets=(target, target))[1] is Why.POLICY


def test_the_highest_class_is_routed_for_speed_and_the_lowest_for_cost() -> None:
    quick = speculative(2.5, usd_nanos_per_s=3e9)
    assert chosen(outlook(), quick, tier="priority") == ("speculative", Why.SPEED)
    assert chosen(outlook(), quick, tier="flex") == ("plain", Why.POLICY)
    assert chosen(quick, outlook(), tier="priority") == ("speculative", Why.POLICY)
    assert chosen(quick, outlook(), tier="flex") == ("plain", Why.COST)


def test_a_crowd_is_avoided_before_anything_is_known_of_the_pools() -> None:
    first, other = speculative(2.0, is_known=False), outlook(is_known=False)
    assert chosen(first, other, loads=(2, 2)) == ("speculative", Why.POLICY)
    assert chosen(first, other, loads=(24, 2)) == ("plain", Why.LOAD)
    assert chosen(first, other, loads=(24, 28)) == ("speculative", Why.POLICY)


def test_where_no_prefixes_are_left_behind_one_request_more_is_a_crowd() -> None:
    first, other = outlook(is_sticky=False, is_known=False), outlook("other", is_known=False)
    assert chosen(first, other, loads=(2, 2)) == ("plain", Why.POLICY)
    assert chosen(first, other, loads=(3, 2)) == ("other", Why.LOAD)
    assert chosen(outlook(), other, loads=(3, 2)) == ("plain", Why.POLICY)
    # Those who have time go by cost alone.
    assert chosen(first, other, loads=(3, 2), tier="flex") == ("plain", Why.POLICY)


def test_where_no_prefixes_are_left_behind_what_is_more_probable_is_enough() -> None:
    # 1.1 tokens in a step that takes half as long again: the other pool is better.
    guessed = speculative(1.1, is_sticky=False, is_known=False, deviation=0.5)
    assert chosen(guessed, outlook(is_known=False), loads=(2, 2)) == ("plain", Why.EXPECTED)
    assert chosen(guessed, outlook(is_known=False), loads=(2, 2), tier="flex")[1] is Why.POLICY
    measured = speculative(1.1, is_sticky=False, deviation=0.5)
    assert chosen(measured, outlook(), loads=(2, 2)) == ("plain", Why.COST)


def test_what_is_believed_may_speak_for_the_policys_order() -> None:
    better = speculative(2.5, is_sticky=False, is_known=False)
    assert chosen(better, outlook(is_known=False), loads=(3, 2)) == ("speculative", Why.POLICY)
    assert chosen(better, outlook(is_known=False), loads=(30, 2)) == ("plain", Why.LOAD)


def test_a_target_that_both_would_miss_by_about_as_much_moves_nothing() -> None:
    target = LatencyTarget(tpot_s=0.0125)
    near = outlook("near", fixed_s=0.0100)
    assert chosen(outlook(fixed_s=0.0105), near, targets=(target, target))[1] is Why.POLICY
    assert chosen(outlook(fixed_s=0.0150), near, targets=(target, target)) == ("near", Why.LATENCY)


def test_a_late_call_makes_no_others_late_where_pools_are_balanced() -> None:
    target = LatencyTarget(tpot_s=0.014)
    # On time there with up to eight, who wait while the prompt is read.
    late, crowded = outlook(fixed_s=0.0150, is_sticky=False), outlook("near", prompt_token_s=0.001)
    assert chosen(late, crowded, loads=(0, 2), targets=(target, target)) == ("near", Why.LATENCY)
    # It takes 15 % more from everybody there with five, 24 % with six: the margin lies between.
    assert chosen(late, crowded, loads=(0, 5), targets=(target, target)) == ("near", Why.LATENCY)
    assert chosen(late, crowded, loads=(0, 6), targets=(target, target)) == ("plain", Why.POLICY)
    assert chosen(late, crowded, loads=(0, 7), targets=(target, target)) == ("plain", Why.POLICY)
    # The highest class goes first, and prefixes are left behind for the target alone.
    urgent = chosen(late, crowded, loads=(0, 7), targets=(target, target), tier="priority")
    assert urgent == ("near", Why.LATENCY)
    sticky = outlook(fixed_s=0.0150)
    assert chosen(sticky, crowded, loads=(0, 7), targets=(target, target)) == ("near", Why.LATENCY)


def test_neither_load_nor_cost_leaves_a_kept_target_for_one_that_would_be_missed() -> None:
    # Kept by the first with three requests, just missed by the other, which is empty and costs half.
    first = outlook(is_sticky=False)
    other = outlook("other", fixed_s=0.0110, usd_nanos_per_s=0.5e9)
    assert chosen(first, other, loads=(3, 0)) == ("other", Why.COST)
    kept, missed = LatencyTarget(tpot_s=0.0132), LatencyTarget(tpot_s=0.0126)
    assert chosen(first, other, loads=(3, 0), targets=(kept, kept)) == ("plain", Why.POLICY)
    # Where both miss it by about as much, the rest decides.
    assert chosen(first, other, loads=(3, 0), targets=(missed, missed)) == ("other", Why.COST)
    assert chosen(first, other, loads=(3, 0), targets=(kept, kept), tier="flex") == ("other", Why.COST)


def test_a_dear_pool_that_is_on_time_takes_a_late_call() -> None:
    target = LatencyTarget(tpot_s=0.014)
    late, dear = outlook(fixed_s=0.0150, is_sticky=False), outlook("dear", usd_nanos_per_s=9e9)
    assert chosen(late, dear, loads=(2, 2), targets=(target, target)) == ("dear", Why.LATENCY)


def test_a_pool_beyond_its_gate_takes_requests_while_the_other_has_more() -> None:
    gated = speculative(2.5, gate=6.0, is_known=False)
    plain = outlook(is_sticky=False, is_known=False)
    assert chosen(plain, gated, loads=(30, 8))[0] == "speculative"
    assert chosen(plain, gated, loads=(7, 7))[1] is Why.POLICY


def test_what_was_measured_and_how_full_pools_are_count_together() -> None:
    better, worse = speculative(2.5), outlook()
    assert chosen(worse, better, loads=(4, 4)) == ("speculative", Why.COST)
    assert chosen(worse, better, loads=(4, 31)) == ("plain", Why.POLICY)


def test_a_prompt_is_not_brought_where_many_wait_for_it() -> None:
    alone = predict(outlook(), 0, 1, input_tokens=1_000, output_tokens=10)
    among = predict(outlook(), 20, 21, input_tokens=1_000, output_tokens=10)
    assert among.burden_s - among.total_s == pytest.approx(20 * (0.1 + 0.5 * 10 * 0.0002))
    assert alone.burden_s == pytest.approx(alone.total_s)
    assert among.even_burden_s == pytest.approx(among.burden_s)


def test_cost_never_moves_work_to_a_longer_queue() -> None:
    assert chosen(speculative(1.1), outlook(seats=2), loads=(0, 9))[1] is Why.POLICY


# ------------------------------------------------------------------------------------------------------ gate
def test_the_gate_is_where_time_times_cost_meet() -> None:
    pool, plain = speculative(2.0, usd_nanos_per_s=1.2e9), outlook()
    gate = gate_of(pool, plain).middle
    assert 1 < gate < 32

    def product(each: Outlook, batch: float) -> float:
        found = predict(each, batch - 1, batch, input_tokens=0, output_tokens=1)
        return found.tpot_s * found.cost_usd_nanos

    assert product(pool, gate) == pytest.approx(product(plain, gate))
    assert product(pool, gate - 0.5) < product(plain, gate - 0.5)


@given(pool=outlooks, plain=outlooks)
def test_a_gate_lies_in_its_interval_and_within_the_seats(pool: Outlook, plain: Outlook) -> None:
    gate = gate_of(pool, plain)
    assert 0 <= gate.least <= gate.middle + 1e-6
    assert gate.middle <= gate.most + 1e-6
    assert all(each < pool.seats or each == GATE_NEVER for each in (gate.least, gate.middle, gate.most))


@given(better=st.floats(1.0, 2.0))
def test_better_guesses_never_lower_the_gate(better: float) -> None:
    assert gate_of(speculative(2.0 * better), outlook()).middle >= gate_of(speculative(2.0), outlook()).middle


# -------------------------------------------------------------------------------------------------- outlooks
def learned(count: int, *, step_ms: float, accepted: int | None = None) -> Evidence:
    one = Lesson(
        pool="p",
        task="code",
        tenant_id="t",
        output_tokens=30,
        cached_ratio=0.5,
        draft_steps=None if accepted is None else 10,
        accepted_tokens=accepted,
        queue_ms=0.0,
        ttft_ms=20.0,
        step_ms=step_ms,
        modelled_ttft_ms=20.0,
        modelled_step_ms=10.0,
    )
    return fold(Evidence(), [one] * count)


def made(task: Evidence, whole: Evidence, *, accepted: Belief | None = None, pace: Pace = PACE) -> Outlook:
    return outlook_of(
        "p", pace, accepted=accepted, task=task, whole=whole, lengths=task, usd_per_hour=3.6, is_sticky=True
    )


def test_what_was_measured_corrects_the_model() -> None:
    evidence = learned(100, step_ms=25.0, accepted=15)
    found = made(evidence, evidence, accepted=Belief(3.0, 0.5, 2.0))
    assert found.is_known
    assert found.fixed_s == pytest.approx(0.025, rel=0.05)
    assert found.tokens_per_step == pytest.approx(2.5, rel=0.05)
    assert found.output_tokens == pytest.approx(30, rel=0.2)
    assert found.fresh_ratio == 0.5
    assert found.usd_nanos_per_s == pytest.approx(1e6)


def test_a_pool_that_nobody_measured_is_not_known() -> None:
    assert not made(Evidence(), Evidence()).is_known
    assert made(Evidence(), Evidence()).deviation > made(Evidence(), learned(50, step_ms=10.0)).deviation
    own = msgspec.structs.replace(PACE, is_measured=True)
    assert made(Evidence(), Evidence(), pace=own).is_known  # by its bench


def test_a_tasks_acceptance_has_to_be_measured_itself() -> None:
    whole = learned(100, step_ms=10.0, accepted=20)
    assert not made(Evidence(), whole, accepted=Belief(2.0, 0.5, 2.0)).is_known
    assert made(Evidence(), whole).is_known
