"""Which rates does each target have right now?

Builds an immutable price book from the rate cards of the pools and of the policy's external targets. A
version's name holds a hash of its rates, so that the same rates are the same version on every machine and a
changed rate can never hide behind an old name.
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


def rates_from_card(card: RateCard, *, owner: str) -> Rates:
    """Integer rates of a card's decimal ones.

    Args:
        card: what the file says.
        owner: whose card it is, for messages, such as `pool 'plain'`.

    Raises:
        ConfigurationError: a rate finer than a nano-USD per million tokens.
    """

    def nanos(meter: str) -> int:
        amount = getattr(card, meter)
        return usd_nanos_from_decimal(amount, what=f"{owner}, rates.{meter}")

    return Rates(
        input=nanos("input"),
        cached_input=nanos("cached_input"),
        cache_write=nanos("cache_write"),
        output=nanos("output"),
        reasoning=nanos("output" if card.reasoning is None else "reasoning"),
    )


def price_book(pools: Mapping[str, PoolSpec], external: Mapping[str, RateCard] | None = None) -> PriceBook:
    """The price book of the given pools and external targets; no name is in both.

    Raises:
        ConfigurationError: a rate that cannot be kept exactly.
    """
    rates = {name: rates_from_card(spec.rates, owner=f"pool {name!r}") for name, spec in pools.items()}
    for name, card in (external or {}).items():
        rates[name] = rates_from_card(card, owner=f"external target {name!r}")
    return PriceBook({name: Price(_version_name(name, each), each) for name, each in rates.items()})


def _version_name(target: str, rates: Rates) -> str:
    text = f"{target}|{rates.input}|{rates.cached_input}|{rates.cache_write}|{rates.output}|{rates.reasoning}"
    return f"{target}@{hashlib.sha256(text.encode()).hexdigest()[:12]}"
