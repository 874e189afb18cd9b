"""Is the price in force the one of the newest entry that has come into force, else the card's, else none?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import NotFound, Unpriced
from gateway.pricing.book import Entry, PriceBook
from gateway.pricing.catalog import Card, Source, priced
from gateway.pricing.rates import UNPRICED
from tests.support.factories import make_rates

CARDS = {
    "plain": Card(priced("plain", make_rates(input=1)), Source.POOL),
    "bare": Card(None, Source.POLICY),
}


def entry(
    target: str = "plain",
    rate: int | None = 2,
    *,
    at: int = 100,
    made: int | None = None,
    name: str = "prc_1",
) -> Entry:
    price = None if rate is None else priced(target, make_rates(input=rate))
    return Entry(
        id=name,
        target=target,
        price=price,
        source=Source.FINANCE,
        note=None,
        effective_from_ms=at,
        created_at_ms=at if made is None else made,
    )


def rate_at(book: PriceBook, at_ms: int, target: str = "plain") -> int | None:
    price = book.at(at_ms).find(target)
    assert price == book.quote(target, at_ms).price
    return None if price is None or price.rates is None else price.rates.input


def test_an_entry_holds_from_its_instant_on() -> None:
    book = PriceBook(CARDS, [entry(at=100), entry(rate=3, at=200), entry(rate=None, at=300)])
    assert [rate_at(book, at) for at in (0, 99, 100, 199, 200, 299, 300, 10**15)] == [1, 1, 2, 2, 3, 3, 1, 1]
    quote = book.quote("plain", 150)
    assert (quote.source, quote.since_ms) == (Source.FINANCE, 100)
    assert quote.following is not None
    assert quote.following.effective_from_ms == 200
    back = book.quote("plain", 300)
    assert (back.source, back.since_ms, back.following) == (Source.POOL, 300, None)
    assert book.quote("plain", 0).since_ms is None


def test_of_entries_for_the_same_instant_the_last_one_counts() -> None:
    first, second = entry(rate=2, made=1, name="prc_9"), entry(rate=3, made=2, name="prc_1")
    assert rate_at(PriceBook(CARDS, [first, second]), 100) == 3
    assert rate_at(PriceBook(CARDS, [second, first]), 100) == 3


def test_a_target_without_a_price_is_refused_and_never_free() -> None:
    book = PriceBook(CARDS, [entry("bare", 5, at=100), entry("bare", None, at=200)])
    for at_ms, refused in ((99, {"bare"}), (100, set()), (200, {"bare"})):
        assert book.at(at_ms).refused == refused
    prices = book.at(0)
    assert prices.find("bare") is None
    assert book.quote("bare", 0).source is None
    for target in ("bare", "nowhere"):
        with pytest.raises(
            Unpriced, match=rf"'{target}' has no price.* tollgate prices set {target} --input"
        ):
            prices.price_of(target)


def test_where_the_policy_allows_it_unpriced_targets_are_used_as_such() -> None:
    prices = PriceBook(CARDS, allows_unpriced=True).at(0)
    assert prices.refused == frozenset()
    assert prices.find("bare") is None
    assert prices.price_of("bare") is UNPRICED


def test_entries_of_targets_that_are_gone_are_nobodys() -> None:
    assert set(PriceBook(CARDS, [entry("gone")]).at(1000).by_target) == {"plain"}


def test_a_target_that_there_is_not_is_answered_with_the_near_ones() -> None:
    book = PriceBook(CARDS)
    with pytest.raises(NotFound, match=r"no target 'plian' .* Did you mean 'plain'\?"):
        book.quote("plian", 0)
    with pytest.raises(NotFound, match="Known: plain, bare"):
        book.require("zzz")


def test_prices_are_worked_out_once_between_two_changes() -> None:
    book = PriceBook(CARDS, [entry(at=100), entry(rate=3, at=200)])
    assert book.at(100) is book.at(150) is book.at(199)
    kept = book.at(199)
    later = book.at(200)
    assert later is not kept
    assert kept.price_of("plain").rates == make_rates(input=2), "what a request took with it stays"
    assert book.at(199).by_target == kept.by_target, "a clock may go back"


entries = st.builds(
    entry,
    target=st.sampled_from(["plain", "bare"]),
    rate=st.none() | st.integers(2, 9),
    at=st.integers(0, 20),
    made=st.integers(0, 20),
    name=st.uuids().map(str),
)


@given(st.lists(entries, max_size=12), st.lists(st.integers(-1, 22), max_size=12))
def test_the_book_is_what_its_rule_says(made: list[Entry], instants: list[int]) -> None:
    book = PriceBook(CARDS, made)
    for at_ms in instants:
        prices = book.at(at_ms)
        for target, card in CARDS.items():
            begun = [one for one in made if one.target == target and one.effective_from_ms <= at_ms]
            newest = max(begun, key=lambda one: one.order, default=None)
            expected = card.price if newest is None or newest.price is None else newest.price
            assert prices.find(target) == expected
            assert (target in prices.refused) == (expected is None)
