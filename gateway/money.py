"""How is an amount of money held, read, rounded and shown?

Inside: integers of nano-USD (10⁻⁹ USD), which hold 9.2 billion USD in 64 bits; rates are integer nano-USD
per million tokens. Outside: decimal strings. No float, in either direction.
"""

from __future__ import annotations

from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import NewType

from gateway.errors import ConfigurationError

UsdNanos = NewType("UsdNanos", int)

NANOS_PER_USD = 1_000_000_000
USD_MAX = 9_000_000_000
"""A larger amount would not fit into 64 bits of nano-USD."""
UNPRICED = "unpriced"
_DIGITS = 60
TOKENS_PER_RATE = 1_000_000
"""A rate is stated per this many tokens."""


def usd_nanos_from_decimal(amount: Decimal | str, *, what: str) -> UsdNanos:
    """Exact nano-USD of a decimal amount.

    Raises:
        ConfigurationError: not a number, negative, too large, or finer than a nano-USD (never rounded).
    """
    try:
        decimal = Decimal(amount)
    except InvalidOperation:
        raise ConfigurationError(f"{what}: {amount!r} is not a decimal amount such as 0.15") from None
    if not decimal.is_finite() or decimal < 0:
        raise ConfigurationError(f"{what}: {amount} must be a finite amount of 0 or more")
    if decimal > USD_MAX:
        raise ConfigurationError(f"{what}: {amount} is more than {USD_MAX} USD, the largest amount kept")
    try:
        # Not `*`, which rounds to 28 digits without a word.
        nanos = Context(prec=_DIGITS, traps=[Inexact]).multiply(decimal, Decimal(NANOS_PER_USD))
        is_whole = nanos == nanos.to_integral_value()
    except Inexact:
        is_whole = False
    if not is_whole:
        raise ConfigurationError(f"{what}: {amount} is finer than 0.000000001 USD, the smallest amount kept")
    return UsdNanos(int(nanos))


def round_half_up(numerator: int, denominator: int) -> int:
    """The non-negative quotient, halves away from zero; the one place where money is rounded."""
    return (2 * numerator + denominator) // (2 * denominator)


def charge_text(nanos: int | None) -> str:
    """A charge for people and programs: `unpriced` where there is none, which is not zero."""
    return UNPRICED if nanos is None else usd_text(nanos)


def usd_text(nanos: int) -> str:
    """Nano-USD as a plain decimal string with nine places, such as `0.001234567`."""
    sign = "-" if nanos < 0 else ""
    whole, fraction = divmod(abs(nanos), NANOS_PER_USD)
    return f"{sign}{whole}.{fraction:09d}"
