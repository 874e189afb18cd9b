"""What does a number of tokens cost at given rates?

Pure integer arithmetic on five disjoint meters. Rates are nano-USD per million tokens; an amount is rounded
once, half up, when it becomes a record (LiteLLM's 8,631 published rates are whole in this unit but for
float artefacts). Takes no database, logs nothing, and has no default rate: unknown means unpriced.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.inference import TokenUsage
from gateway.money import TOKENS_PER_RATE, UsdNanos, round_half_up


@dataclass(frozen=True, slots=True)
class Rates:
    """Nano-USD per million tokens, by meter."""

    input: int
    cached_input: int
    cache_write: int
    output: int
    reasoning: int

    def __post_init__(self) -> None:
        if min(self.input, self.cached_input, self.cache_write, self.output, self.reasoning) < 0:
            raise ValueError(f"a rate below zero: {self}")


@dataclass(frozen=True, slots=True)
class Price:
    """The rates of one target in one version of the price book."""

    version: str
    rates: Rates


def charge(usage: TokenUsage, rates: Rates) -> UsdNanos:
    """What `usage` costs at `rates`.

    Raises:
        ValueError: a count below zero.
    """
    if min(usage.input, usage.cached_input, usage.cache_write, usage.output, usage.reasoning) < 0:
        raise ValueError(f"a token count below zero: {usage}")
    return UsdNanos(
        round_half_up(
            usage.input * rates.input
            + usage.cached_input * rates.cached_input
            + usage.cache_write * rates.cache_write
            + usage.output * rates.output
            + usage.reasoning * rates.reasoning,
            TOKENS_PER_RATE,
        )
    )


def charge_bound(*, input_tokens: int, output_tokens: int, rates: Rates) -> UsdNanos:
    """The most that so many tokens can cost, whichever meters they turn out to be in."""
    dearest_input = max(rates.input, rates.cached_input, rates.cache_write)
    dearest_output = max(rates.output, rates.reasoning)
    total = input_tokens * dearest_input + output_tokens * dearest_output
    return UsdNanos(-(-total // TOKENS_PER_RATE))
