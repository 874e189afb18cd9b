"""How are amounts, counts, shares and instants written for people?

Only for the eye: thousands separators appear here and nowhere else, so that what machines read stays a plain
decimal string. Instants are UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from markupsafe import Markup, escape

from gateway.money import usd_text

_CENTS_PLACES = 2
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def count(number: int) -> str:
    """`1,234,567`."""
    return f"{number:,}"


def usd_to_cents(nanos: int) -> str:
    """What stands before the third decimal: `1,234.56` of `1,234.567890123`. Cut, not rounded."""
    whole, _, fraction = usd_text(nanos).partition(".")
    sign = "-" if whole.startswith("-") else ""
    return f"{sign}{int(whole.removeprefix('-')):,}.{fraction[:_CENTS_PLACES]}"


def usd_below_cents(nanos: int) -> str:
    """The rest of the exact amount: `7890123` of `1,234.567890123`."""
    return usd_text(nanos).partition(".")[2][_CENTS_PLACES:]


def usd_short(nanos: int) -> str:
    """Exact, without zeros at the end beyond cents: `0.002`, `1,500.00`."""
    return usd_to_cents(nanos) + usd_below_cents(nanos).rstrip("0")


def usd_plain(nanos: int) -> str:
    """As a field takes it, without separators: `1500.00`, `0.002`."""
    return usd_short(nanos).replace(",", "")


def percent(ratio: float) -> str:
    """`37 %`; a little is never shown as nothing."""
    rounded = round(ratio * 100)
    return "< 1 %" if rounded == 0 and ratio > 0 else f"{rounded} %"


def minute(moment: datetime | int) -> str:
    """`2026-11-03 14:05` in UTC, of an instant or of epoch milliseconds."""
    at = moment if isinstance(moment, datetime) else _EPOCH + timedelta(milliseconds=moment)
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"


def with_code(text: str) -> Markup:
    """What stands between backticks as code; all of it is text."""
    parts = [escape(part) for part in text.split("`")]
    return Markup("").join(
        Markup("<code>%s</code>") % part if place % 2 else part for place, part in enumerate(parts)
    )


def second(moment: datetime | int) -> str:
    """`2026-11-03 14:05:09` in UTC."""
    at = moment if isinstance(moment, datetime) else _EPOCH + timedelta(milliseconds=moment)
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def milliseconds(value: float | None) -> str:
    """`12.3 ms`, `1,240 ms`; a dash where nothing is known."""
    if value is None:
        return "–"  # noqa: RUF001 - the dash that stands for unknown on all pages
    return f"{value:,.1f} ms" if value < 100 else f"{value:,.0f} ms"  # noqa: PLR2004 - three digits are enough
