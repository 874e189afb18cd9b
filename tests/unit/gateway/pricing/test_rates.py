"""Is a charge exact, and never above what was held for it?"""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.inference import TokenUsage
from gateway.pricing.rates import UNPRICED, DearestRates, Price, Rates, charge
from tests.support.factories import make_rates

METERS = ("input", "cached_input", "cache_write", "output", "reasoning")

counts = st.integers(0, 10**9)
token_rates = st.builds(Rates, **dict.fromkeys(METERS, st.integers(0, 10**12)))
rates = st.builds(Rates, **dict.fromkeys((*METERS, "per_request"), st.integers(0, 10**12)))
usages = st.builds(TokenUsage, **dict.fromkeys(METERS, counts))


def test_each_meter_has_its_own_rate() -> None:
    found = charge(TokenUsage(1, 2, 3, 4, 5), Rates(10**6, 10**7, 10**8, 10**9, 10**10))
    assert found == 1 + 2 * 10 + 3 * 100 + 4 * 1_000 + 5 * 10_000


def test_nothing_costs_nothing() -> None:
    assert charge(TokenUsage(), make_rates()) == 0


@pytest.mark.parametrize(
    ("rate", "nanos"), [(499_999, 0), (500_000, 1), (500_001, 1), (1_499_999, 1), (1_500_000, 2)]
)
def test_a_charge_is_rounded_half_up(rate: int, nanos: int) -> None:
    assert charge(TokenUsage(input=1), make_rates(input=rate)) == nanos


def test_a_charge_is_rounded_once_not_per_meter() -> None:
    assert charge(TokenUsage(input=1, output=1), make_rates(input=500_000, output=500_000)) == 1


@pytest.mark.parametrize("meter", METERS)
def test_a_negative_count_is_an_error(meter: str) -> None:
    with pytest.raises(ValueError, match="a token count below zero"):
        charge(TokenUsage(**{meter: -1}), make_rates())


@pytest.mark.parametrize("meter", [*METERS, "per_request"])
def test_a_negative_rate_is_an_error(meter: str) -> None:
    with pytest.raises(ValueError, match="a rate below zero"):
        make_rates(**{meter: -1})


@given(usages, rates)
def test_what_there_is_to_pay_per_request_is_paid_once_and_only_for_what_used_a_token(
    usage: TokenUsage, prices: Rates
) -> None:
    of_tokens = charge(usage, dataclasses.replace(prices, per_request=0))
    assert charge(usage, prices) == of_tokens + (prices.per_request if usage.total else 0)
    assert charge(TokenUsage(), prices) == 0


def test_unpriced_is_not_zero() -> None:
    assert Price("unpriced", None) == UNPRICED
    assert charge(TokenUsage(input=1), None) is None
    assert charge(TokenUsage(), UNPRICED.rates) is None
    with pytest.raises(ValueError, match="below zero"):
        charge(TokenUsage(input=-1), None)


@given(usages, rates)
def test_a_charge_is_never_negative(usage: TokenUsage, prices: Rates) -> None:
    assert charge(usage, prices) >= 0


@given(usages, token_rates)
def test_the_parts_add_up_to_the_whole_but_for_their_rounding(usage: TokenUsage, prices: Rates) -> None:
    parts = [charge(TokenUsage(**{meter: getattr(usage, meter)}), prices) for meter in METERS]
    assert abs(sum(parts) - charge(usage, prices)) <= len(METERS) / 2


@given(usages, usages, token_rates)
def test_whole_nanos_are_additive_exactly(first: TokenUsage, second: TokenUsage, prices: Rates) -> None:
    whole = Rates(**{meter: getattr(prices, meter) * 10**6 for meter in METERS})
    both = TokenUsage(**{meter: getattr(first, meter) + getattr(second, meter) for meter in METERS})
    assert charge(both, whole) == charge(first, whole) + charge(second, whole)


@given(usages, rates, st.sampled_from(METERS), counts)
def test_more_tokens_never_cost_less(usage: TokenUsage, prices: Rates, meter: str, more: int) -> None:
    larger = msgspec.structs.replace(usage, **{meter: getattr(usage, meter) + more})
    assert charge(larger, prices) >= charge(usage, prices)


@given(usages, rates, st.sampled_from((*METERS, "per_request")), st.integers(0, 10**12))
def test_higher_rates_never_cost_less(usage: TokenUsage, prices: Rates, meter: str, more: int) -> None:
    dearer = dataclasses.replace(prices, **{meter: getattr(prices, meter) + more})
    assert charge(usage, dearer) >= charge(usage, prices)


@given(usages, rates)
def test_the_bound_holds_however_tokens_are_split_over_the_meters(usage: TokenUsage, prices: Rates) -> None:
    read = usage.input + usage.cached_input + usage.cache_write
    bound = DearestRates.of(prices).bound(read, usage.output + usage.reasoning)
    assert bound >= charge(usage, prices)


def test_the_bound_takes_the_dearest_meter_of_each_side() -> None:
    prices = Rates(input=10**6, cached_input=10**7, cache_write=10**5, output=10**6, reasoning=10**8)
    assert DearestRates.of(prices).bound(3, 2) == 30 + 200


def test_the_bound_is_rounded_up() -> None:
    assert DearestRates.of(Rates(1, 0, 0, 0, 0)).bound(1, 0) == 1
    assert DearestRates.of(Rates(1, 0, 0, 0, 0, per_request=5)).bound(1, 0) == 6
