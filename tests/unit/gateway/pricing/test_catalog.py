"""Does every pool get the price that its file states, under a name that changes with it?"""

from __future__ import annotations

from decimal import Decimal

import pytest

from backends.pool import RateCard
from gateway.errors import ConfigurationError, Unpriced
from gateway.pricing.catalog import price_book, rates_from_card
from gateway.pricing.rates import Rates
from tests.support.factories import make_pool_spec


def card(**rates: str) -> RateCard:
    usual = {"input": "0.10", "cached_input": "0.01", "output": "0.60"}
    return RateCard(**{name: Decimal(amount) for name, amount in {**usual, **rates}.items()})


def test_decimal_rates_become_nanos() -> None:
    found = rates_from_card(card(cache_write="0.125", reasoning="1.2"), owner="pool 'plain'")
    assert found == Rates(
        input=100_000_000,
        cached_input=10_000_000,
        cache_write=125_000_000,
        output=600_000_000,
        reasoning=1_200_000_000,
    )


def test_reasoning_costs_as_much_as_output_unless_it_is_priced() -> None:
    assert rates_from_card(card(), owner="pool 'plain'").reasoning == 600_000_000


def test_reasoning_may_be_free() -> None:
    assert rates_from_card(card(reasoning="0"), owner="pool 'plain'").reasoning == 0


def test_a_rate_that_cannot_be_kept_is_named_with_its_pool() -> None:
    with pytest.raises(ConfigurationError, match=r"pool 'plain', rates\.cached_input: 1E-10 is finer"):
        rates_from_card(card(cached_input="0.0000000001"), owner="pool 'plain'")


def test_the_book_has_every_pool() -> None:
    book = price_book({name: make_pool_spec(name) for name in ("plain", "speculative")})
    assert set(book.prices) == {"plain", "speculative"}
    assert book.price_of("plain").rates.output == 600_000_000


def test_a_target_without_a_price_is_refused_and_never_free() -> None:
    with pytest.raises(Unpriced, match="'other' has no price"):
        price_book({}).price_of("other")


def test_the_same_rates_are_the_same_version_everywhere() -> None:
    versions = {price_book({"plain": make_pool_spec("plain")}).price_of("plain").version for _ in range(2)}
    assert len(versions) == 1
    assert versions.pop().startswith("plain@")


@pytest.mark.parametrize("meter", ["input", "cached_input", "cache_write", "output", "reasoning"])
def test_a_changed_rate_is_another_version(meter: str) -> None:
    before = price_book({"plain": make_pool_spec("plain")}).price_of("plain").version
    changed = price_book({"plain": make_pool_spec("plain", rates=card(**{meter: "0.33"}))})
    assert changed.price_of("plain").version != before


def test_two_pools_with_the_same_rates_have_versions_of_their_own() -> None:
    book = price_book({name: make_pool_spec(name) for name in ("plain", "other")})
    assert book.price_of("plain").version.split("@")[1] != book.price_of("other").version.split("@")[1]


def test_external_targets_are_priced_like_pools() -> None:
    book = price_book(
        {"plain": make_pool_spec("plain")}, {"outside": card(reasoning="7", cached_input="0.7501")}
    )
    assert set(book.prices) == {"plain", "outside"}
    price = book.price_of("outside")
    assert price.version.startswith("outside@")
    assert (price.rates.cached_input, price.rates.reasoning) == (750_100_000, 7_000_000_000)
    assert book.price_of("plain") == price_book({"plain": make_pool_spec("plain")}).price_of("plain")


def test_a_rate_of_an_external_target_that_cannot_be_kept_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"external target 'outside', rates\.input: 1E-10 is finer"):
        price_book({}, {"outside": card(input="0.0000000001")})
