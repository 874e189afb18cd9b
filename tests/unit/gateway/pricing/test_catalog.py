"""Does every target get the price that its file states, under a name that changes with it?"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.pool import DerivedRates, HardwareSpec, RateCard
from gateway.errors import ConfigurationError, InvalidRequest
from gateway.pricing.catalog import (
    Card,
    Derivation,
    Source,
    cards_of,
    priced,
    rates_from_amounts,
    rates_from_card,
    rates_from_hardware,
)
from gateway.pricing.rates import Price, Rates
from tests.support.factories import make_pool_spec, make_rates


def card(**rates: str) -> RateCard:
    usual = {"input": "0.10", "cached_input": "0.01", "output": "0.60"}
    return RateCard(**{name: Decimal(amount) for name, amount in {**usual, **rates}.items()})


def price_of(found: Card) -> Price:
    assert found.price is not None
    return found.price


# ----------------------------------------------------------------------------------------------------- cards
def test_decimal_rates_become_nanos() -> None:
    found = rates_from_card(
        card(cache_write="0.125", reasoning="1.2", per_request="0.002"), owner="pool 'plain'"
    )
    assert found == Rates(
        input=100_000_000,
        cached_input=10_000_000,
        cache_write=125_000_000,
        output=600_000_000,
        reasoning=1_200_000_000,
        per_request=2_000_000,
    )


def test_reasoning_costs_as_much_as_output_unless_it_is_priced() -> None:
    assert rates_from_card(card(), owner="pool 'plain'").reasoning == 600_000_000


def test_reasoning_may_be_free() -> None:
    assert rates_from_card(card(reasoning="0"), owner="pool 'plain'").reasoning == 0


def test_a_rate_that_cannot_be_kept_is_named_with_its_owner() -> None:
    with pytest.raises(ConfigurationError, match=r"pool 'plain', rates\.cached_input: 1E-10 is finer"):
        rates_from_card(card(cached_input="0.0000000001"), owner="pool 'plain'")
    with pytest.raises(ConfigurationError, match=r"external target 'outside', rates\.input: 1E-10 is finer"):
        cards_of({}, {"outside": card(input="0.0000000001")})


def test_every_pool_and_every_external_target_has_a_card() -> None:
    pools = {name: make_pool_spec(name) for name in ("plain", "speculative")}
    cards = cards_of(pools, {"outside": card(reasoning="7", cached_input="0.7501"), "bare": None})
    assert list(cards) == ["plain", "speculative", "outside", "bare"]
    assert {name: one.source for name, one in cards.items()} == {
        "plain": Source.POOL,
        "speculative": Source.POOL,
        "outside": Source.POLICY,
        "bare": Source.POLICY,
    }
    assert price_of(cards["outside"]).rates == make_rates(cached_input=750_100_000, reasoning=7_000_000_000)
    assert cards["bare"].price is None


# -------------------------------------------------------------------------------------------------- versions
def test_versions_from_before_there_were_rates_per_request_keep_their_names() -> None:
    # Written down when there were none: rows refer to them.
    cards = cards_of(
        {"plain": make_pool_spec("plain")}, {"outside": card(input="0.15", cached_input="0.075")}
    )
    assert price_of(cards["plain"]).version == "plain@3cad42c9df19"
    assert price_of(cards["outside"]).version == "outside@b7de2be4d803"
    assert priced("plain", make_rates(per_request=1)).version == "plain@bbbe82d49e3d"


@pytest.mark.parametrize(
    "meter", ["input", "cached_input", "cache_write", "output", "reasoning", "per_request"]
)
def test_a_changed_rate_is_another_version(meter: str) -> None:
    assert priced("plain", make_rates(**{meter: 7})).version != priced("plain", make_rates()).version


def test_two_targets_with_the_same_rates_have_versions_of_their_own() -> None:
    names = [priced(target, make_rates()).version.split("@")[1] for target in ("plain", "other")]
    assert names[0] != names[1]


# --------------------------------------------------------------------------------------------------- derived
def derived(usd_per_hour: str = "0.12", **declared: str) -> Derivation:
    usual = {"utilisation": "0.4", "input_tokens_per_s": "5000", "output_tokens_per_s": "600"}
    numbers = {name: Decimal(value) for name, value in {**usual, **declared}.items()}
    return Derivation(Decimal(usd_per_hour), DerivedRates(**numbers))


def test_rates_are_derived_from_what_the_hardware_costs() -> None:
    # 0.12 USD/h / (5000/s * 3600) * 1e6 / 0.4 = 0.016666… and / (600/s * 3600) … = 0.138888… USD per million
    found = rates_from_hardware(derived(cached_input_ratio="0.1"), owner="pool 'plain'")
    assert found == Rates(
        input=16_666_667,
        cached_input=1_666_667,
        cache_write=16_666_667,
        output=138_888_889,
        reasoning=138_888_889,
    )


def test_a_pool_with_derived_rates_says_how_they_came_about() -> None:
    found = derived()
    spec = make_pool_spec(
        rates=None,
        derived_rates=found.declared,
        hardware=HardwareSpec(gpu="cpu", usd_per_hour=found.usd_per_hour),
    )
    one = cards_of({"plain": spec})["plain"]
    assert (one.source, one.derivation) == (Source.DERIVED, found)
    assert price_of(one).rates == rates_from_hardware(found, owner="")
    assert found.formula() == (
        "0.12 USD/h / (tokens/s * 3600) * 1,000,000 / 0.4 utilisation;"
        " tokens/s: 5000 input, 600 output; cached input: 1 of input"
    )


@pytest.mark.parametrize(("usd_per_hour", "tokens_per_s"), [("0.0001", "1E+15"), ("1E+9", "0.001")])
def test_a_derived_rate_of_nothing_or_of_too_much_is_refused(usd_per_hour: str, tokens_per_s: str) -> None:
    wrong = derived(usd_per_hour, input_tokens_per_s=tokens_per_s)
    with pytest.raises(ConfigurationError, match="pool 'plain', derived_rates: input would cost"):
        rates_from_hardware(wrong, owner="pool 'plain'")


amounts = st.decimals("0.01", "1000", places=4)


@given(amounts, st.decimals("0.01", "1", places=3), amounts, amounts, st.decimals(0, 1, places=3))
def test_derived_rates_are_the_formula_rounded_once(
    usd_per_hour: Decimal, utilisation: Decimal, reads: Decimal, writes: Decimal, ratio: Decimal
) -> None:
    found = rates_from_hardware(
        Derivation(
            usd_per_hour,
            DerivedRates(
                utilisation=utilisation,
                input_tokens_per_s=reads,
                output_tokens_per_s=writes,
                cached_input_ratio=ratio,
            ),
        ),
        owner="pool",
    )
    with localcontext() as context:
        context.prec = 60

        def exact(tokens_per_s: Decimal, share: Decimal = Decimal(1)) -> int:
            usd = usd_per_hour / (tokens_per_s * 3600) * 1_000_000 / utilisation * share
            return int((usd * 10**9).quantize(Decimal(1), ROUND_HALF_UP))

        assert (found.input, found.output) == (exact(reads), exact(writes))
        assert abs(found.cached_input - exact(reads, ratio)) <= 1
    assert (found.cache_write, found.reasoning, found.per_request) == (found.input, found.output, 0)


# ----------------------------------------------------------------------------------------------------- typed
def test_what_is_not_typed_costs_as_much_as_what_it_might_have_been() -> None:
    found = rates_from_amounts({"input": "0.15", "output": " 0.6 ", "reasoning": None})
    assert found == Rates(150_000_000, 150_000_000, 150_000_000, 600_000_000, 600_000_000)
    found = rates_from_amounts(
        {
            "input": "0.15",
            "cached_input": "0",
            "cache_write": "0.3",
            "output": "1",
            "reasoning": "2",
            "per_request": "0.01",
        }
    )
    assert found == Rates(150_000_000, 0, 300_000_000, 10**9, 2 * 10**9, per_request=10_000_000)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"input": "cheap"}, "`input`: 'cheap' is not a decimal amount such as 0.15."),
        ({"input": "0"}, "`input` must be above 0"),
        ({"output": "0.0"}, "`output` must be above 0"),
        ({"cached_input": "-1"}, "`cached_input`: -1 must be a finite amount of 0 or more."),
        ({"reasoning": "nan"}, "`reasoning`: nan must be a finite amount"),
        ({"per_request": "1E-10"}, "`per_request`: 1E-10 is finer than"),
        ({"cache_write": "1E+10"}, "is more than 9000000000 USD"),
    ],
)
def test_an_amount_that_is_none_is_named(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        rates_from_amounts({"input": "1", "output": "1", **wrong})
    assert said.lower() in str(caught.value).lower()
    assert caught.value.param == next(iter(wrong))
