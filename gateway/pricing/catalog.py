"""What do the pool files and the policy say that each target costs?

The rate cards: a pool's own rates, rates derived from what its hardware costs, the policy's rates of external
targets. They are what is charged as long as finance has entered nothing else (`pricing/book.py`). A version's
name holds a hash of its rates, so that the same rates are the same version on every machine and a changed
rate can never hide behind an old name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction

from backends.pool import DerivedRates, PoolSpec, RateCard
from gateway.errors import ConfigurationError, InvalidRequest
from gateway.money import NANOS_PER_USD, TOKENS_PER_RATE, USD_MAX, round_half_up, usd_nanos_from_decimal
from gateway.pricing.rates import Price, Rates

_SECONDS_PER_HOUR = 3600
DEFAULTS = {"cached_input": "input", "cache_write": "input", "reasoning": "output"}
"""Which meter's rate stands in for one that was not given: never less than it may have cost."""
METERS = ("input", "cached_input", "cache_write", "output", "reasoning")


class Source(StrEnum):
    """Where a price comes from."""

    FINANCE = "finance"
    """Somebody entered it."""
    LITELLM = "litellm"
    """Imported from litellm's map."""
    POOL = "pool"
    """The pool file's rates."""
    DERIVED = "derived"
    """Derived from the pool file's hardware price."""
    POLICY = "policy"
    """The policy's rates of an external target."""


@dataclass(frozen=True, slots=True)
class Derivation:
    """What derived rates were derived from."""

    usd_per_hour: Decimal
    """Of one replica's hardware."""
    declared: DerivedRates

    def formula(self) -> str:
        """How the input rate came about, for people; the output rate likewise."""
        declared = self.declared
        return (
            f"{self.usd_per_hour} USD/h / (tokens/s * 3600) * 1,000,000 / {declared.utilisation} utilisation;"
            f" tokens/s: {declared.input_tokens_per_s} input, {declared.output_tokens_per_s} output;"
            f" cached input: {declared.cached_input_ratio} of input"
        )


@dataclass(frozen=True, slots=True)
class Card:
    """What a file says about a target's price."""

    price: Price | None
    """None: nothing."""
    source: Source
    derivation: Derivation | None = None


def cards_of(
    pools: Mapping[str, PoolSpec], external: Mapping[str, RateCard | None] | None = None
) -> dict[str, Card]:
    """The card of every pool and external target there is; no name is in both.

    Raises:
        ConfigurationError: a rate that cannot be kept.
    """
    cards = {name: _card_of_pool(name, spec) for name, spec in pools.items()}
    for name, card in (external or {}).items():
        price = None
        if card is not None:
            price = priced(name, rates_from_card(card, owner=f"external target {name!r}"))
        cards[name] = Card(price, Source.POLICY)
    return cards


def _card_of_pool(name: str, spec: PoolSpec) -> Card:
    owner = f"pool {name!r}"
    if spec.rates is not None:
        return Card(priced(name, rates_from_card(spec.rates, owner=owner)), Source.POOL)
    if spec.derived_rates is None:
        raise ConfigurationError(f"{owner}: it has neither rates nor derived_rates")
    derivation = Derivation(spec.hardware.usd_per_hour, spec.derived_rates)
    return Card(priced(name, rates_from_hardware(derivation, owner=owner)), Source.DERIVED, derivation)


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
        per_request=nanos("per_request"),
    )


def rates_from_hardware(derivation: Derivation, *, owner: str) -> Rates:
    """Rates at which the declared part of the hours pays for all of them.

    Exact arithmetic, each rate rounded once, half up, to a nano-USD per million tokens.

    Args:
        derivation: what the hardware costs, and what was declared of it.
        owner: whose rates they are, for messages.

    Raises:
        ConfigurationError: a rate of nothing, or one too large to be kept.
    """
    declared = derivation.declared
    per_second = Fraction(derivation.usd_per_hour) * NANOS_PER_USD / _SECONDS_PER_HOUR

    def rate(meter: str, tokens_per_s: Decimal, share: Decimal = Decimal(1)) -> int:
        exact = per_second * TOKENS_PER_RATE / Fraction(tokens_per_s) / Fraction(declared.utilisation)
        nanos = round_half_up(*(exact * Fraction(share)).as_integer_ratio())
        if nanos > USD_MAX * NANOS_PER_USD or (nanos == 0 and share == 1):
            raise ConfigurationError(
                f"{owner}, derived_rates: {meter} would cost {nanos} nano-USD per million tokens, which is"
                " nothing or more than can be kept: look at the tokens per second"
            )
        return nanos

    of_input = rate("input", declared.input_tokens_per_s)
    of_output = rate("output", declared.output_tokens_per_s)
    return Rates(
        input=of_input,
        cached_input=rate("cached_input", declared.input_tokens_per_s, declared.cached_input_ratio),
        cache_write=of_input,
        output=of_output,
        reasoning=of_output,
    )


def rates_from_amounts(amounts: Mapping[str, str | None]) -> Rates:
    """The rates of what somebody typed: decimal USD per million tokens by meter, and `per_request`.

    What is left out costs as much as the meter in `DEFAULTS`.

    Raises:
        InvalidRequest: not a decimal amount, below zero or too fine; or input or output free of charge.
    """
    given = {name: amount for name, amount in amounts.items() if amount is not None}
    nanos: dict[str, int] = {}
    for name, amount in given.items():
        try:
            nanos[name] = usd_nanos_from_decimal(amount.strip()[:80], what=f"`{name}`")
        except ConfigurationError as error:
            raise InvalidRequest(f"{error}.", param=name) from None
        if name in {"input", "output"} and not nanos[name]:
            raise InvalidRequest(
                f"`{name}` must be above 0: what costs nothing cannot be budgeted.", param=name
            )
    rates = {meter: nanos[meter if meter in nanos else DEFAULTS[meter]] for meter in METERS}
    return Rates(**rates, per_request=nanos.get("per_request", 0))


def priced(target: str, rates: Rates) -> Price:
    """The rates as a version of the target's price."""
    meters = astuple(rates)
    # What was added to the rates later is left out where it says nothing: stored versions keep their names.
    shown = meters if rates.per_request else meters[:-1]
    text = "|".join([target, *(str(rate) for rate in shown)])
    return Price(f"{target}@{hashlib.sha256(text.encode()).hexdigest()[:12]}", rates)
