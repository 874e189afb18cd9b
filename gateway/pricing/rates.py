"""What does a number of tokens cost at given rates?

Pure integer arithmetic on five disjoint meters and an amount per request. Rates are nano-USD per million
tokens; an amount is rounded once, half up, when it becomes a record (LiteLLM's 8,631 published rates are
whole in this unit but for float artefacts). Takes no database, logs nothing, and has no default rate: unknown
means unpriced, and the charge of what is unpriced is None, never zero.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Self, overload

import msgspec

from gateway.errors import Unpriced
from gateway.inference import TokenUsage
from gateway.money import TOKENS_PER_RATE, UsdNanos, round_half_up


@dataclass(frozen=True, slots=True)
class Rates:
    """Nano-USD per million tokens, by meter, and nano-USD per request."""

    input: int
    cached_input: int
    cache_write: int
    output: int
    reasoning: int
    per_request: int = 0
    """Once for every attempt that used a token."""

    def __post_init__(self) -> None:
        if min(astuple(self)) < 0:
            raise ValueError(f"a rate below zero: {self}")


@dataclass(frozen=True, slots=True)
class Price:
    """The rates of one target in one version of the price book."""

    version: str
    rates: Rates | None
    """None: unpriced."""


UNPRICED = Price("unpriced", None)
"""Of a target without a price, where the policy lets such targets be used."""


def no_price(*targets: str) -> Unpriced:
    """The refusal of targets without a price, with what finance can do about it."""
    named = " and ".join(repr(target) for target in targets)
    has = "has no price, so it cannot" if len(targets) == 1 else "have no price, so they cannot"
    return Unpriced(
        f"{named} {has} be used until finance sets one:"
        f" tollgate prices set {targets[0]} --input USD --output USD (per million tokens)"
    )


@overload
def charge(usage: TokenUsage, rates: Rates) -> UsdNanos: ...
@overload
def charge(usage: TokenUsage, rates: None) -> None: ...
@overload
def charge(usage: TokenUsage, rates: Rates | None) -> UsdNanos | None: ...
def charge(usage: TokenUsage, rates: Rates | None) -> UsdNanos | None:
    """What `usage` costs at `rates`; None where there are none: unpriced is not zero.

    An attempt that used no token costs nothing, not even what there is to pay per request.

    Raises:
        ValueError: a count below zero.
    """
    read, cached, written = usage.input, usage.cached_input, usage.cache_write
    output, reasoning = usage.output, usage.reasoning
    if read < 0 or cached < 0 or written < 0 or output < 0 or reasoning < 0:
        raise ValueError(f"a token count below zero: {usage}")
    if rates is None:
        return None
    of_tokens = read * rates.input + output * rates.output
    if cached or written or reasoning:
        of_tokens += cached * rates.cached_input + written * rates.cache_write + reasoning * rates.reasoning
    charged = round_half_up(of_tokens, TOKENS_PER_RATE)
    if rates.per_request and (read or cached or written or output or reasoning):
        charged += rates.per_request
    return UsdNanos(charged)


class DearestRates(msgspec.Struct, frozen=True):
    """What a token costs at most, whichever meter it turns out to be in."""

    input: int
    output: int
    per_request: int

    @classmethod
    def of(cls, rates: Rates) -> Self:
        """Of some rates."""
        return cls(
            input=max(rates.input, rates.cached_input, rates.cache_write),
            output=max(rates.output, rates.reasoning),
            per_request=rates.per_request,
        )

    def bound(self, input_tokens: int, output_tokens: int) -> UsdNanos:
        """The most that one attempt with so many tokens can cost."""
        total = input_tokens * self.input + output_tokens * self.output
        return UsdNanos(-(-total // TOKENS_PER_RATE) + self.per_request)
