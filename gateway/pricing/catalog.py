"""Which rates does each target have right now?

Builds an immutable price book from the pools' rate cards. A version's name holds a hash of its rates, so
that the same rates are the same version on every machine and a changed rate can never hide behind an old
name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from backends.pool import PoolSpec, RateCard
from gateway.errors import Unpriced
from gateway.money import usd_nanos_from_decimal
from gateway.pricing.rates import Price, Rates


@dataclass(frozen=True, slots=True)
class PriceBook:
    """Prices by target."""

    prices: Mapping[str, Price]

    def price_of(self, target: str) -> Price:
        """The target's price.

        Raises:
            Unpriced: there is none; an unpriced target is refused, never served for nothing.
        """
        price = self.prices.get(target)
        if price is None:
            raise Unpriced(f"'{target}' has no price, so it cannot be used until finance sets one")
        return price


def rates_from_card(card: RateCard, *, pool: str) -> Rates:
    """Integer rates of a pool file's decimal ones.

    Raises:
        ConfigurationError: a rate finer than a nano-USD per million tokens.
    """

    def nanos(meter: str) -> int:
        amount = getattr(card, meter)
        return usd_nanos_from_decimal(amount, what=f"pool {pool!r}, rates.{meter}")

    return Rates(
        input=nanos("input"),
        cached_input=nanos("cached_input"),
        cache_write=nanos("cache_write"),
        output=nanos("output"),
        reasoning=nanos("output" if card.reasoning is None else "reasoning"),
    )


def price_book(pools: Mapping[str, PoolSpec]) -> PriceBook:
    """The price book of the given pools.

    Raises:
        ConfigurationError: a rate that cannot be kept exactly.
    """
    prices = {}
    for name, spec in pools.items():
        rates = rates_from_card(spec.rates, pool=name)
        prices[name] = Price(version=_version_name(name, rates), rates=rates)
    return PriceBook(prices=prices)


def _version_name(target: str, rates: Rates) -> str:
    text = f"{target}|{rates.input}|{rates.cached_input}|{rates.cache_write}|{rates.output}|{rates.reasoning}"
    return f"{target}@{hashlib.sha256(text.encode()).hexdigest()[:12]}"
