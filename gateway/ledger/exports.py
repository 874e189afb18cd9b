"""In which formats does the ledger leave the house, and what does every one of them promise?

An export is a cut of the ledger (or its attempts, one by one) between two instants, read in one snapshot and
streamed: rows come from a server-side cursor and go out in pieces, so that a file of any length takes the
same memory. Before the first row its control total is known, by a sum that knows nothing of the rows; an
export whose rows do not come to it ends with an error.

Libraries for files are heavy. A format is a place, `module:name`, which is loaded when somebody writes that
format: by the command line, or by a process of its own (`gateway/jobs/export_child.py`), never by one that
serves. A new format is an entry in `FORMATS` and an `Exporter` there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.clock import instant_text
from gateway.errors import GatewayError, InvalidRequest
from gateway.ledger.cuts import check_dimensions, moment_of, parse_filters
from gateway.ledger.focus_terms import FocusTerms
from gateway.ledger.period_tables import ClosedPeriod
from gateway.ledger.report_facts import BASIS, ReportFacts
from gateway.ledger.reports import cut_of
from gateway.money import usd_text

Names: TypeAlias = dict[str, dict[str, str]]
ROWS = ("groups", "attempts")


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """What is exported; travels to the process that does it as JSON."""

    format: str
    start_ms: int
    end_ms: int
    rows: Literal["groups", "attempts"] = "groups"
    group_by: tuple[str, ...] = ("tenant",)
    filters: tuple[str, ...] = ()
    """As people write them."""
    is_formula_safe: bool = True
    """Text that a spreadsheet would take for a formula is made harmless."""
    focus: FocusTerms = FocusTerms()
    """Of FOCUS files; others do not look at it."""

    @property
    def is_supply(self) -> bool:
        """It is of what pool-hours cost, not of what tenants are charged."""
        return self.format.startswith("focus") and self.focus.side == "supply"

    def check(self) -> None:
        """Refuse what cannot be exported, before anything is opened.

        Raises:
            InvalidRequest: an unknown format, dimension or filter, or an end that is not after the start.
        """
        format_of(self.format)
        check_dimensions(self.group_by)
        parse_filters(self.filters)
        cut_of(self.group_by, moment_of(self.start_ms), moment_of(self.end_ms))
        if self.rows not in ROWS:
            raise InvalidRequest(f"`rows` is {' or '.join(ROWS)}, not {self.rows[:40]!r}.", param="rows")


class Column(NamedTuple):
    """One column of a file."""

    name: str
    kind: Literal["text", "count", "usd", "instant", "number", "pico"]
    """usd: integers of nano-USD; instant: epoch ms; number: a float; pico: integers of 1e-12.

    Any value may be None.
    """
    says: str


class Amounts(msgspec.Struct, frozen=True, kw_only=True):
    """What rows come to, by whose account and why, nano-USD."""

    charge_usd_nanos: int = 0
    """What tenants pay, what came late for closed months included."""
    platform_usd_nanos: int = 0
    """On the platform's account."""
    adjustments_usd_nanos: int = 0
    """Credits and corrections that two people agreed on, of tenants."""
    platform_adjustments_usd_nanos: int = 0
    """The same on the platform's account."""

    @property
    def total_usd_nanos(self) -> int:
        """All together: what the journal has on the accounts of tenants and of the platform."""
        return sum(getattr(self, name) for name in self.__struct_fields__)

    def __add__(self, other: Amounts) -> Amounts:
        """Both together."""
        return Amounts(
            **{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__}
        )

    def lines(self) -> list[tuple[str, str]]:
        """For people and for metadata of files."""
        return [
            ("control_total_charge_usd", usd_text(self.charge_usd_nanos)),
            ("control_total_platform_usd", usd_text(self.platform_usd_nanos)),
            ("control_total_adjustments_usd", usd_text(self.adjustments_usd_nanos)),
            ("control_total_platform_adjustments_usd", usd_text(self.platform_adjustments_usd_nanos)),
            ("control_total_usd", usd_text(self.total_usd_nanos)),
        ]


Piece: TypeAlias = tuple[list[tuple[Any, ...]], Amounts]
"""Rows, and what they come to."""


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What stands beside the rows of every export, known before the first of them."""

    title: str
    start_ms: int
    end_ms: int
    generated_at_ms: int
    group_by: tuple[str, ...]
    filters: tuple[str, ...]
    row_count: int | None
    """None: only known at the end."""
    amounts: Amounts
    high_water: str | None
    price_versions: tuple[str, ...]
    are_prices_used: bool
    period_state: Literal["open", "closed"] = "open"
    """closed: nothing of it changes any more; open: what is booked by then is in it."""
    columns: tuple[Column, ...] = ()
    basis: str = BASIS
    notes: tuple[tuple[str, str], ...] = ()
    """More about it, by name."""

    def lines(self) -> list[tuple[str, str]]:
        """For people and for metadata of files."""
        prices = "price_versions" if self.are_prices_used else "price_versions_known"
        lines = [
            ("title", self.title),
            ("from", instant_text(self.start_ms)),
            ("to", instant_text(self.end_ms)),
            ("time_zone", "UTC"),
            ("currency", "USD"),
            ("basis", self.basis),
            ("group_by", ",".join(self.group_by)),
            ("filters", " ".join(self.filters)),
            ("period_state", self.period_state),
            *self.amounts.lines(),
            ("ledger_high_water", self.high_water or "none"),
            (prices, " ".join(self.price_versions)),
            ("generated_at", instant_text(self.generated_at_ms)),
        ]
        if self.row_count is not None:
            lines.append(("row_count", str(self.row_count)))
        return [*lines, *self.notes]


class Footing(msgspec.Struct, frozen=True, kw_only=True):
    """What was written."""

    rows: int
    amounts: Amounts
    high_water: str | None = None
    period_state: Literal["open", "closed"] = "open"
    bytes: int | None = None
    sha256: str | None = None
    place: str | None = None
    residue_usd_picos: int | None = None
    """FOCUS: what was booked beyond unit price times quantity, 1e-12 USD."""


class DoesNotFoot(GatewayError):
    """The rows of an export do not come to its control total: a book is wrong, and no file is left."""

    code = "does_not_foot"
    status_code = 500


def _nothing(value: object) -> None:
    del value


@dataclass(frozen=True, slots=True)
class Stage:
    """Where an exporter writes, and whom it tells."""

    target: BinaryIO
    names: Names = field(default_factory=dict)
    """What people call ids, by dimension."""
    period: ClosedPeriod | None = None
    """The closed period in which it ends; None: it is open."""
    now_ms: int = 0
    told_about: Callable[[About], None] = _nothing
    """Called once, before the first row."""
    told_rows: Callable[[int], None] = _nothing
    """Called with the number of rows written so far."""

    @property
    def period_state(self) -> Literal["open", "closed"]:
        """Whether what is written may still change."""
        return "open" if self.period is None else "closed"

    def high_water(self, facts: ReportFacts) -> str | None:
        """The last booking that what is written knows of."""
        return facts.high_water if self.period is None else self.period.high_water


Exporter = Callable[[AsyncSession, Export, Stage], Awaitable[Footing]]
"""Writes an export to the stage's target, in the session's snapshot.

Raises DoesNotFoot, or whatever the session and the target raise.
"""


@dataclass(frozen=True, slots=True)
class Format:
    """A format of files."""

    place: str
    """`module:name` of its `Exporter`."""
    suffix: str
    media_type: str
    says: str

    def exporter(self) -> Exporter:
        """Load it, and the library that it needs."""
        module, _, name = self.place.partition(":")
        found: Exporter = getattr(import_module(module), name)
        return found


FORMATS: dict[str, Format] = {
    "csv": Format("gateway.ledger.export_csv:export", ".csv", "text/csv; charset=utf-8", "RFC 4180, UTF-8"),
    "xlsx": Format(
        "gateway.ledger.export_xlsx:export",
        ".xlsx",
        "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        "a workbook: rows, exact amounts, about",
    ),
    "parquet": Format(
        "gateway.ledger.export_parquet:export",
        ".parquet",
        "application/vnd.apache.parquet",
        "amounts are decimal128(38,12)",
    ),
    "focus": Format(
        "gateway.ledger.export_focus:export_csv", ".csv", "text/csv; charset=utf-8", "FOCUS 1.2 or 1.4, CSV"
    ),
    "focus-parquet": Format(
        "gateway.ledger.export_focus:export_parquet",
        ".parquet",
        "application/vnd.apache.parquet",
        "FOCUS 1.2 or 1.4, Parquet",
    ),
}


def format_of(name: str) -> Format:
    """The format of that name.

    Raises:
        InvalidRequest: there is none; says which there are.
    """
    if name not in FORMATS:
        raise InvalidRequest(f"No format {name[:40]!r}; there are {', '.join(FORMATS)}.", param="format")
    return FORMATS[name]
