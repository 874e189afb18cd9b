"""Is an amount of money kept exactly, or refused?"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ConfigurationError
from gateway.money import NANOS_PER_USD, USD_MAX, round_half_up, usd_nanos_from_decimal, usd_text


def refusal(amount: Decimal | str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        usd_nanos_from_decimal(amount, what="pool 'a', rates.input")
    return caught.value.caller_detail


@pytest.mark.parametrize(
    ("amount", "nanos"),
    [
        ("0.15", 150_000_000),
        (Decimal("0.60"), 600_000_000),
        ("0", 0),
        ("-0", 0),
        ("0.000000001", 1),
        ("1e-9", 1),
        ("1E+3", 1_000 * NANOS_PER_USD),
        ("0.1500000000000000000000000000000000000000000000000000", 150_000_000),
        (str(USD_MAX), USD_MAX * NANOS_PER_USD),
    ],
)
def test_an_amount_is_read_exactly(amount: Decimal | str, nanos: int) -> None:
    assert usd_nanos_from_decimal(amount, what="a rate") == nanos


@pytest.mark.parametrize(
    "amount",
    [
        "0.0000000001",
        "0.1234567891",
        "1.0000000000000000000000000001",
        "1." + "0" * 80 + "1",
        "1e-999999",
    ],
)
def test_an_amount_finer_than_a_nano_is_refused_and_never_rounded(amount: str) -> None:
    assert refusal(amount).endswith("is finer than 0.000000001 USD, the smallest amount kept")


@pytest.mark.parametrize("amount", ["9000000000.000000001", "1e30", "1e999999"])
def test_an_amount_that_64_bits_cannot_hold_is_refused(amount: str) -> None:
    assert refusal(amount).endswith("is more than 9000000000 USD, the largest amount kept")


@pytest.mark.parametrize("amount", ["-0.01", "NaN", "sNaN", "Infinity", "-Infinity"])
def test_an_amount_is_finite_and_not_negative(amount: str) -> None:
    assert refusal(amount).endswith("must be a finite amount of 0 or more")


@pytest.mark.parametrize("amount", ["", "a lot", "0,15", "$1", "0x10"])
def test_an_amount_is_a_decimal_number(amount: str) -> None:
    assert refusal(amount) == f"pool 'a', rates.input: {amount!r} is not a decimal amount such as 0.15"


@pytest.mark.parametrize(
    ("numerator", "denominator", "expected"),
    [(0, 1, 0), (1, 2, 1), (1, 3, 0), (2, 3, 1), (3, 2, 2), (5, 2, 3), (499_999, 1_000_000, 0)],
)
def test_halves_are_rounded_up(numerator: int, denominator: int, expected: int) -> None:
    assert round_half_up(numerator, denominator) == expected


@given(st.integers(0, 10**30), st.integers(1, 10**9))
def test_rounding_errs_by_half_at_most(numerator: int, denominator: int) -> None:
    error = round_half_up(numerator, denominator) - Fraction(numerator, denominator)
    assert -Fraction(1, 2) < error <= Fraction(1, 2)


@pytest.mark.parametrize(
    ("nanos", "text"),
    [
        (0, "0.000000000"),
        (1, "0.000000001"),
        (1_234_567, "0.001234567"),
        (NANOS_PER_USD, "1.000000000"),
        (-1, "-0.000000001"),
        (-1_500_000_000, "-1.500000000"),
    ],
)
def test_an_amount_is_shown_with_nine_places(nanos: int, text: str) -> None:
    assert usd_text(nanos) == text


@given(st.integers(0, USD_MAX * NANOS_PER_USD))
def test_what_is_shown_reads_back_as_the_same_amount(nanos: int) -> None:
    assert usd_nanos_from_decimal(usd_text(nanos), what="an amount") == nanos
