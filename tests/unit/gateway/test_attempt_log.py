"""Is what is held for a call never less than what it can come to?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.attempt_log import TEMPLATE_TOKENS, hold_for
from gateway.errors import Unpriced
from gateway.inference import TokenUsage
from gateway.pricing.book import Prices
from gateway.pricing.rates import Price, Rates, charge
from tests.support.factories import make_call, make_decision, make_target

rates = st.builds(Rates, *[st.integers(0, 10**12)] * 6)


def book(**by_pool: Rates) -> Prices:
    return Prices({name: Price(f"{name}@0", each) for name, each in by_pool.items()})


def test_a_hold_bounds_input_and_output_of_every_choice() -> None:
    prices = book(plain=Rates(10**6, 0, 0, 10**7, 0))
    call = make_call(body_bytes=100, choices=3, max_tokens=7)
    assert hold_for(call, make_decision(), prices) == 3 * (100 + TEMPLATE_TOKENS) + 3 * 7 * 10


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


@given(
    prices=rates,
    choices=st.integers(1, 4),
    max_tokens=st.none() | st.integers(1, 4_000),
    body_bytes=st.integers(1, 5_000),
    data=st.data(),
)
def test_no_answer_costs_more_than_was_held(
    *, prices: Rates, choices: int, max_tokens: int | None, body_bytes: int, data: st.DataObject
) -> None:
    call = make_call(choices=choices, max_tokens=max_tokens, body_bytes=body_bytes)
    decision = make_decision()
    input_max = choices * min(body_bytes + TEMPLATE_TOKENS, decision.targets[0].max_model_len)
    output_max = choices * (max_tokens or decision.max_tokens_default)
    cached = data.draw(st.integers(0, input_max))
    reasoning = data.draw(st.integers(0, output_max))
    usage = TokenUsage(input_max - cached, cached, 0, output_max - reasoning, reasoning)
    assert hold_for(call, decision, book(plain=prices)) >= charge(usage, prices)
