"""Is what is held for a call never less than what it can come to?"""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.course import NO_FORECAST, TEMPLATE_TOKENS, Course, Courses, forecast_text
from gateway.errors import Unpriced
from gateway.inference import Call, Drop, RouteDecision, TokenUsage
from gateway.pricing.book import Prices
from gateway.pricing.rates import Price, Rates, charge
from gateway.routing.economics import Why
from gateway.routing.receipts import Candidate, Dropped, ReceiptFacts
from tests.support.factories import (
    make_call,
    make_decision,
    make_outlook,
    make_policy,
    make_prediction,
    make_target,
    make_task,
)

rates = st.builds(Rates, *[st.integers(0, 10**12)] * 6)


def book(**by_pool: Rates) -> Prices:
    return Prices({name: Price(f"{name}@0", each) for name, each in by_pool.items()})


def hold_for(call: Call, decision: RouteDecision, prices: Prices) -> int:
    return Course(decision, prices, task=make_task(), baseline=None).hold(call)


def test_a_hold_bounds_input_and_output_of_every_choice() -> None:
    prices = book(plain=Rates(10**6, 0, 0, 10**7, 0))
    call = make_call(body_bytes=100, choices=3, max_tokens=7)
    assert hold_for(call, make_decision(), prices) == 100 + TEMPLATE_TOKENS + 3 * 7 * 10


def test_the_input_is_never_more_than_the_context() -> None:
    prices = book(plain=Rates(10**6, 0, 0, 0, 0))
    assert hold_for(make_call(body_bytes=10**7), make_decision(), prices) == 1024


def test_without_a_limit_the_policys_default_is_held() -> None:
    prices = book(plain=Rates(0, 0, 0, 10**6, 0))
    assert hold_for(make_call(), make_decision(max_tokens_default=99), prices) == 99


def test_the_dearest_target_is_held_for() -> None:
    prices = book(plain=Rates(0, 0, 0, 10**6, 0), speculative=Rates(0, 0, 0, 10**7, 0))
    decision = make_decision(targets=(make_target(), make_target(pool="speculative")))
    assert hold_for(make_call(max_tokens=5), decision, prices) == 50


def test_a_target_without_a_price_is_refused() -> None:
    with pytest.raises(Unpriced):
        hold_for(make_call(), make_decision(), book())


def test_nothing_is_held_for_a_target_that_may_be_used_without_a_price() -> None:
    prices = Prices({"plain": Price("plain@0", Rates(0, 0, 0, 10**6, 0))}, allows_unpriced=True)
    outside = make_target(pool="outside")
    assert hold_for(make_call(), make_decision(targets=(outside,)), prices) == 0
    both = make_decision(targets=(outside, make_target()))
    assert hold_for(make_call(max_tokens=5), both, prices) == 5


@given(data=st.data())
def test_no_answer_costs_more_than_was_held(data: st.DataObject) -> None:
    """Whatever `n`, prompts, limits, images, fallbacks and hedges: only one attempt is the tenant's."""
    draw = data.draw
    prompts, n = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    max_tokens = draw(st.none() | st.integers(1, 4_000))
    body_bytes, has_media = draw(st.integers(prompts, 5_000)), draw(st.booleans())
    call = make_call(
        choices=n * prompts,
        prompts=prompts,
        max_tokens=max_tokens,
        body_bytes=body_bytes,
        facts={"has_media": has_media},
    )
    names = [f"target-{number}" for number in range(draw(st.integers(1, 3)))]
    contexts = {name: draw(st.integers(1, 6_000)) for name in names}
    priced = {name: draw(rates) for name in names}
    targets = tuple(make_target(pool=name, max_model_len=contexts[name]) for name in names)
    decision = make_decision(targets=targets)
    hold = hold_for(call, decision, book(**priced))
    # Any of them may answer, after the others failed or lost the race; a prompt fills its context at most.
    answering = draw(st.sampled_from(names))
    context = contexts[answering]
    if has_media:
        inputs = [draw(st.integers(1, context)) for _ in range(prompts)]
    else:
        inputs, left = [], body_bytes
        for _ in range(prompts):
            own = draw(st.integers(0, left))
            left -= own
            inputs.append(min(context, own + TEMPLATE_TOKENS))
    limit = min(max_tokens or decision.max_tokens_default, context)
    outputs = [draw(st.integers(0, limit)) for _ in range(n * prompts)]
    cached, reasoning = draw(st.integers(0, sum(inputs))), draw(st.integers(0, sum(outputs)))
    usage = TokenUsage(sum(inputs) - cached, cached, 0, sum(outputs) - reasoning, reasoning)
    assert charge(usage, priced[answering]) <= hold


def test_a_receipt_holds_the_decision_and_the_calls_own_numbers() -> None:
    prices = Prices({"plain": Price("plain@3", Rates(0, 0, 0, 10**6, 0))}, allows_unpriced=True)
    targets = (make_target(), make_target(pool="50%", is_external=True))
    decision = make_decision(targets=targets, drops=(Drop("other", "no replica is up: 100 %"),))
    course = Course(decision, prices, task=make_task(), baseline=("plain", "plain@3"))
    for call in (make_call(max_tokens=7), make_call(dropped=("priority", "cache_salt"))):
        bounds = course.bounds(call)
        facts = msgspec.json.decode(course.receipt(call, bounds), type=ReceiptFacts)
        assert facts == ReceiptFacts(
            task="extraction",
            source="declared",
            confidence=1.0,
            nature="predictable",
            reason=decision.reason,
            candidates=[Candidate("plain", bounds[0], False), Candidate("50%", None, True)],
            drops=[Dropped("other", "no replica is up: 100 %")],
            policy="test@0",
            baseline=("plain", "plain@3"),
            max_tokens=call.max_tokens or 256,
            removed=list(call.dropped),
        )


def test_where_every_target_has_a_price_its_receipt_is_the_same() -> None:
    prices = Prices({name: Price(f"{name}@3", Rates(0, 0, 0, 10**6, 0)) for name in ("plain", "50%")})
    decision = make_decision(targets=(make_target(), make_target(pool="50%")))
    course, call = Course(decision, prices, task=make_task(), baseline=None), make_call(max_tokens=7)
    bounds = course.bounds(call)
    facts = msgspec.json.decode(course.receipt(call, bounds), type=ReceiptFacts)
    assert facts.candidates == [Candidate("plain", bounds[0], False), Candidate("50%", bounds[1], False)]
    assert (facts.max_tokens, facts.removed) == (7, [])
    with pytest.raises(TypeError, match="a real number is required"):
        course.receipt(call, bounds[:1])


def test_a_course_is_made_once_for_a_policy_and_its_prices() -> None:
    courses, made = Courses(), []
    policy, prices = make_policy(), Prices({"plain": Price("plain@0", Rates(0, 0, 0, 1, 0))})

    def make() -> Course:
        made.append(Course(make_decision(), prices, task=make_task(), baseline=None))
        return made[-1]

    first = courses.find("a", make, policy=policy, prices=prices)
    assert courses.find("a", make, policy=policy, prices=prices) is first
    assert courses.find("b", make, policy=policy, prices=prices) is not first
    later = Prices(prices.by_target)
    assert courses.find("a", make, policy=policy, prices=later) is not first
    assert courses.find("a", make, policy=make_policy(), prices=later) is made[-1]
    assert len(made) == 4


# ------------------------------------------------------------------------------------------ other orders
def long_and_short() -> Course:
    prices = book(plain=Rates(0, 0, 0, 10**6, 0), speculative=Rates(0, 0, 0, 10**7, 0))
    targets = (make_target(pool="speculative", max_model_len=512), make_target(max_model_len=4096))
    return Course(make_decision(targets=targets), prices, task=make_task(), baseline=None)


def test_a_call_goes_where_its_context_is_long_enough() -> None:
    course = long_and_short()
    assert course.fitting(make_call(body_bytes=400, max_tokens=100)) is course
    fitting = course.fitting(make_call(body_bytes=400, max_tokens=500))
    assert [each.pool for each in fitting.decision.targets] == ["plain"]
    assert fitting.decision.drops == (
        Drop("speculative", "its context of 512 tokens is too short for the call"),
    )
    assert course.fitting(make_call(body_bytes=400, max_tokens=500)) is fitting
    # Where none is, the engine says so itself; and nobody knows how many tokens a picture is.
    assert course.fitting(make_call(body_bytes=400, max_tokens=50_000)) is course
    assert course.fitting(make_call(body_bytes=40_000, facts={"has_media": True})) is course


def test_another_target_first_keeps_the_others_in_order_and_what_is_held() -> None:
    course = long_and_short()
    led = course.led_by(1, Why.COST)
    assert [each.pool for each in led.decision.targets] == ["plain", "speculative"]
    assert led.decision.reason.endswith("; plain first: speculative is dearer by measurement")
    assert course.led_by(1, Why.COST) is led
    call = make_call(max_tokens=5)
    assert led.bounds(call) == [*reversed(course.bounds(call))]
    assert led.hold(call) == course.hold(call)
    assert [each.pool for each in course.led_by(0, Why.POLICY).decision.targets] == ["speculative", "plain"]


def test_a_receipt_holds_what_was_predicted_of_each_pool() -> None:
    prices = Prices({"plain": Price("plain@3", Rates(0, 0, 0, 10**6, 0))}, allows_unpriced=True)
    targets = (make_target(), make_target(pool="outside", is_external=True))
    course = Course(make_decision(targets=targets), prices, task=make_task(), baseline=None)
    assert course.pools == ("plain",)
    led, call = course.led_by(0, Why.POLICY), make_call()
    prediction = make_prediction(queue_s=0.5, ttft_s=1.25, tpot_s=0.01, total_s=2.0, cost_usd_nanos=1234.9)
    texts = [forecast_text(make_outlook(), prediction), NO_FORECAST]
    bounds = led.bounds(call)
    facts = msgspec.json.decode(led.receipt(call, bounds, texts), type=ReceiptFacts)
    assert facts.why == "policy"
    assert facts.candidates[1].forecast is None
    shown = facts.candidates[0].forecast
    assert shown is not None
    assert msgspec.structs.astuple(shown)[:5] == (500_000, 1_250_000, 10_000, 2_000_000, 1234)
    assert (shown.share_hundredths, shown.usd_nanos_per_hour) == (100, 3_600 * 10**9)
    without = msgspec.json.decode(led.receipt(call, bounds), type=ReceiptFacts)
    assert (without.why, without.candidates[0].forecast) == (None, None)


def test_receipts_from_before_there_were_predictions_can_be_read() -> None:
    old = (
        b'{"task":"code","source":"signal","confidence":0.7,"nature":"predictable","reason":"r",'
        b'"candidates":[["plain",5,false]],"drops":[],"policy":"p@1","baseline":null,"max_tokens":9,"removed":[]}'
    )
    facts = msgspec.json.decode(old, type=ReceiptFacts)
    assert facts.candidates == [Candidate("plain", 5, False)]
    assert facts.why is None
