"""What does a provider's invoice or a GPU bill say, line by line?

Two forms are read: a plain CSV (`day,pool,quantity,amount` and, if need be, `currency` and `rate`), and FOCUS
1.2 (`ChargePeriodStart`, `BilledCost`, `BillingCurrency`, `ConsumedQuantity`, `ConsumedUnit`, and one of
`ResourceId`, `SkuId`, `ServiceName` for what it is about). Names of theirs become pools by a mapping. Amounts
in another currency are in USD by the line's own rate; what our rate makes less of them is of class currency.
Nothing is guessed: what cannot be read is told with its line and column, and what to write instead.

A file is the same file however it came: what a system writes at the ends of lines, or before the first one,
is no part of it (`plain_text`), and the hash by which a bill is known again is of the rest.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Final

from gateway.errors import InvalidRequest
from gateway.money import NANOS_PER_USD, USD_MAX

PROVIDER: Final = "provider"
GPU: Final = "gpu"
KINDS: Final = (PROVIDER, GPU)
LINES_MAX: Final = 1_000_000
MS_PER_HOUR: Final = 3_600_000
_PLAIN: Final = ("day", "pool", "quantity", "amount")
_FOCUS: Final = ("ChargePeriodStart", "BilledCost", "BillingCurrency", "ConsumedQuantity")
_ABOUT: Final = ("ResourceId", "SkuId", "ServiceName")
_UNITS: Final = {
    PROVIDER: {"": 1, "tokens": 1, "1000000 tokens": 1_000_000, "1000 tokens": 1_000},
    GPU: {"": MS_PER_HOUR, "hours": MS_PER_HOUR, "seconds": 1_000},
}
_EPOCH: Final = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class BillLine:
    """What is billed for a pool's day."""

    day: int
    """Since 1970, as the bill names it."""
    pool: str
    quantity: int
    """Tokens, or milliseconds of one GPU."""
    usd_nanos: int
    """At the bill's own rate."""
    currency_usd_nanos: int = 0
    """Part of it that our rate would not have made."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a bill is to be read."""

    kind: str
    name: str
    """The file's, for messages."""
    pools: Mapping[str, str] = field(default_factory=dict)
    """Our pool by their name of it; others keep their names."""
    rates: Mapping[str, Decimal] = field(default_factory=dict)
    """Ours: USD for one unit, by currency."""


class _Cell:
    """One cell, and where it is."""

    def __init__(self, place: str, text: str | None) -> None:
        """Take where it is, for messages, and what it says."""
        self._place = place
        self.text = (text or "").strip()

    def refuse(self, write: str) -> InvalidRequest:
        """An error that says what to write."""
        return InvalidRequest(
            f"{self._place}: {self.text[:40]!r} cannot be read; write {write}.", param="file"
        )

    def number(self, write: str) -> Decimal:
        try:
            value = Decimal(self.text)
        except InvalidOperation:
            raise self.refuse(write) from None
        if not value.is_finite() or abs(value) > USD_MAX * NANOS_PER_USD:
            raise self.refuse(write)
        return value

    def day(self) -> int:
        try:
            if len(self.text) == len("2026-10-05"):
                return (date.fromisoformat(self.text) - _EPOCH).days
            moment = datetime.fromisoformat(self.text)
        except ValueError:
            raise self.refuse(
                "a day such as 2026-10-05, or an instant such as 2026-10-05T00:00:00Z"
            ) from None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return (moment.astimezone(UTC).date() - _EPOCH).days


_Parse = Callable[[dict[str, str], Reading, int], BillLine]
_MARK: Final = "\ufeff"


def plain_text(content: str) -> str:
    """A file's text with a line feed at every line's end and without a byte order mark."""
    return content.removeprefix(_MARK).replace("\r\n", "\n").replace("\r", "\n")


def bill_hash(content: str) -> str:
    """SHA-256, hex, by which a bill is known again, whoever sent it and however its lines end."""
    return _hash_of(plain_text(content))


def hashes_before(content: str) -> frozenset[str]:
    """Hashes that the same file may have been written down with before line ends were made alike."""
    plain = plain_text(content)
    ended = plain.replace("\n", "\r\n")
    return frozenset(map(_hash_of, (content, plain, ended, _MARK + plain, _MARK + ended)))


def _hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_bill(text: str, reading: Reading) -> list[BillLine]:
    """The lines of a bill.

    Raises:
        InvalidRequest: names the line, the column and what to write.
    """
    if reading.kind not in KINDS:
        raise InvalidRequest(f"`kind` is one of {', '.join(KINDS)}, not {reading.kind[:40]!r}.", param="kind")
    rows = csv.DictReader(io.StringIO(plain_text(text)))
    columns = tuple(rows.fieldnames or ())
    if set(_FOCUS) <= set(columns):
        parse = _focus_line
        if not set(_ABOUT) & set(columns):
            raise InvalidRequest(
                f"{reading.name}, line 1: none of the columns {', '.join(_ABOUT)} says what it is about.",
                param="file",
            )
    elif set(_PLAIN) <= set(columns):
        parse = _plain_line
    else:
        missing = [name for name in _PLAIN if name not in columns]
        raise InvalidRequest(
            f"{reading.name}, line 1: the columns {', '.join(missing)} are missing. Write a first line"
            f" `{','.join(_PLAIN)}` (and `currency`, `rate` where it is not USD), or the columns of FOCUS 1.2"
            f" ({', '.join(_FOCUS)}).",
            param="file",
        )
    lines = list(_lines(rows, reading, parse))
    if not lines:
        raise InvalidRequest(f"{reading.name}: there is no line below the first one.", param="file")
    return lines


def _lines(rows: csv.DictReader[str], reading: Reading, parse: _Parse) -> Iterator[BillLine]:
    try:
        for count, row in enumerate(rows):
            if count >= LINES_MAX:
                raise InvalidRequest(f"{reading.name}: more than {LINES_MAX:,} lines.", param="file")
            if None in row or None in row.values():
                raise InvalidRequest(
                    f"{reading.name}, line {rows.line_num}: it has another number of columns than line 1.",
                    param="file",
                )
            yield parse(row, reading, rows.line_num)
    except csv.Error as error:
        raise InvalidRequest(f"{reading.name}, line {rows.line_num}: {error}.", param="file") from None


def _plain_line(row: dict[str, str], reading: Reading, line: int) -> BillLine:
    def cell(column: str) -> _Cell:
        return _Cell(f"{reading.name}, line {line}, column {column}", row.get(column))

    rate = cell("rate") if "rate" in row else None
    usd, by_currency = _amount(cell("amount"), cell("currency"), rate=rate, reading=reading)
    return BillLine(
        day=cell("day").day(),
        pool=_pool(cell("pool"), reading),
        quantity=_quantity(cell("quantity"), cell("unit"), reading),
        usd_nanos=usd,
        currency_usd_nanos=by_currency,
    )


def _focus_line(row: dict[str, str], reading: Reading, line: int) -> BillLine:
    def cell(column: str) -> _Cell:
        return _Cell(f"{reading.name}, line {line}, column {column}", row.get(column))

    about = next(
        (found for name in _ABOUT if (found := cell(name)).text in reading.pools),
        next((found for name in _ABOUT if (found := cell(name)).text), cell(_ABOUT[0])),
    )
    usd, by_currency = _amount(cell("BilledCost"), cell("BillingCurrency"), rate=None, reading=reading)
    quantity = cell("ConsumedQuantity")
    return BillLine(
        day=cell("ChargePeriodStart").day(),
        pool=_pool(about, reading),
        quantity=_quantity(quantity, cell("ConsumedUnit"), reading) if quantity.text else 0,
        usd_nanos=usd,
        currency_usd_nanos=by_currency,
    )


def _pool(cell: _Cell, reading: Reading) -> str:
    if not cell.text:
        raise cell.refuse("which pool it is for")
    name = reading.pools.get(cell.text, cell.text)
    return name.removeprefix("pool/")


def _quantity(cell: _Cell, unit: _Cell, reading: Reading) -> int:
    units = _UNITS[reading.kind]
    factor = units.get(unit.text.lower())
    if factor is None:
        raise unit.refuse(f"one of {', '.join(name for name in units if name)}")
    what = "a number of tokens such as 120000" if reading.kind == PROVIDER else "GPU-hours such as 24.5"
    return int((cell.number(what) * factor).to_integral_value(ROUND_HALF_EVEN))


def _amount(amount: _Cell, currency: _Cell, *, rate: _Cell | None, reading: Reading) -> tuple[int, int]:
    """Nano-USD at the bill's rate, and what of it our rate would not have made."""
    value = amount.number("an amount such as 12.34, with a point and without separators")
    code = currency.text.upper() or "USD"
    if code == "USD":
        return _nanos(value), 0
    ours = reading.rates.get(code)
    theirs = rate.number("the rate that was used, such as 1.0834") if rate is not None and rate.text else ours
    if theirs is None:
        raise currency.refuse(
            f"a column `rate` with USD for one {code[:8]}, or give ours with --rate {code[:8]}=1.0834"
        )
    at_theirs = _nanos(value * theirs)
    return at_theirs, at_theirs - _nanos(value * (ours if ours is not None else theirs))


def _nanos(usd: Decimal) -> int:
    return int((usd * NANOS_PER_USD).to_integral_value(ROUND_HALF_EVEN))
