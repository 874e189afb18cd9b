"""What does one unit of something cost? An exact quotient, rounded once, half to even.

All of an amount for each kind of unit: costs per request and per token do not add up.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal

TOKENS_PER_UNIT = 1_000_000
"""Tokens are priced by the million."""
_EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN)


def usd_nanos_per(usd_nanos: int, units: int) -> int | None:
    """Nano-USD for one unit; None: there are no units."""
    if units <= 0:
        return None
    quotient = _EXACT.divide(Decimal(usd_nanos), Decimal(units))
    return int(quotient.to_integral_value(ROUND_HALF_EVEN))


def usd_nanos_per_million(usd_nanos: int, tokens: int) -> int | None:
    """The same for a million tokens."""
    return usd_nanos_per(usd_nanos * TOKENS_PER_UNIT, tokens)
