"""What does a tenant's monthly statement say, and how is money rounded on it?

Due is what the month's usage comes to, what came late for closed months, and credits and corrections. The
ledger keeps nano-dollars and the statement shows cents. What is due is rounded once, half to even. Lines are
rounded so that they add up to it: each is rounded down, and the cents that are then missing go to those that
lost most (largest remainder); so do the tables' lines to the charge. Exact amounts stand beside the rounded
ones. Until its month is closed a statement is provisional, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal

import msgspec

from gateway.clock import instant_text
from gateway.ledger.cuts import epoch_ms
from gateway.ledger.reports import SpendFigures
from gateway.money import NANOS_PER_USD, usd_text

NANOS_PER_CENT = NANOS_PER_USD // 100
TABLES = (("project", "By project"), ("model", "By model"), ("task", "By task"))
PRICES_MAX = 40
NO_FIGURE = "–"  # noqa: RUF001 - a dash is meant


class StatementLine(msgspec.Struct, frozen=True):
    """A line of a table; texts as they are shown."""

    name: str
    requests: str
    input_tokens: str
    output_tokens: str
    amount: str


class StatementTable(msgspec.Struct, frozen=True):
    """The month by one dimension."""

    title: str
    lines: tuple[StatementLine, ...]


class DueLine(msgspec.Struct, frozen=True):
    """A part of what is due."""

    name: str
    about: str
    """More about it, in small print."""
    exact: str
    amount: str


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """All that is printed, as it is printed."""

    number: str
    """As FOCUS files call it (InvoiceId)."""
    tenant: str
    tenant_id: str
    month: str
    period_from: str
    period_to: str
    provisional: str | None
    """Why figures may still change; None: they do not, the month is closed."""
    due: str
    due_exact: str
    due_lines: tuple[DueLine, ...]
    total: str
    """The charge, without credits and corrections."""
    total_exact: str
    facts: tuple[tuple[str, str], ...]
    """Figures beside the total."""
    tables: tuple[StatementTable, ...]
    notes: tuple[str, ...]
    sources: tuple[tuple[str, str], ...]
    """Where it comes from."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose month."""

    tenant_id: str
    tenant: str
    start: datetime
    end: datetime
    now_ms: int


@dataclass(frozen=True, slots=True)
class Adjusted:
    """A credit or correction."""

    id: str
    kind: str
    charge_month: str | None
    amount_usd_nanos: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantMonth:
    """What a tenant's month comes to, wherever that was read."""

    tenant: str
    tables: Mapping[str, Sequence[tuple[str, SpendFigures]]]
    """Lines by dimension, the dearest first; what came late for closed months is in them."""
    total: SpendFigures
    late_usd_nanos: Mapping[str, int]
    """Part of the total: what came late, by the month in which it was used."""
    adjustments: Sequence[Adjusted]
    before_usd_nanos: int
    """What was due for the month before."""
    end_users: int | None
    """None: that was not kept when the month was closed."""
    high_water: str | None
    high_water_at: str | None
    price_versions: Sequence[str]
    are_prices_used: bool
    closed: tuple[tuple[str, str], ...] = ()
    """Who closed it and what was signed; empty: it is not closed."""

    @property
    def due_usd_nanos(self) -> int:
        """All together."""
        return self.total.charge_usd_nanos + sum(each.amount_usd_nanos for each in self.adjustments)


def statement_of(subject: Subject, month: TenantMonth) -> Statement:
    """The month as it is printed."""
    charge = month.total.charge_usd_nanos
    cents = shared_cents([charge, *(each.amount_usd_nanos for each in month.adjustments)])
    notes = []
    if month.total.unpriced_attempts:
        notes.append(
            f"{month.total.unpriced_attempts:,} attempts had no price when they were served. They are in no"
            " amount."
        )
    return Statement(
        number=f"{subject.start:%Y-%m}/{subject.tenant_id}",
        tenant=month.tenant,
        tenant_id=subject.tenant_id,
        month=f"{subject.start:%B %Y}",
        period_from=instant_text(epoch_ms(subject.start)),
        period_to=instant_text(epoch_ms(subject.end)),
        provisional=None if month.closed else _why_provisional(subject),
        due=cents_text(sum(cents)),
        due_exact=usd_text(month.due_usd_nanos),
        due_lines=tuple(_due_lines(subject, month, cents)),
        total=cents_text(cents[0]),
        total_exact=usd_text(charge),
        facts=_facts(month),
        tables=tuple(_table(title, month.tables[name], cents[0]) for name, title in TABLES),
        notes=tuple(notes),
        sources=_sources(subject, month),
    )


def _why_provisional(subject: Subject) -> str:
    if subject.now_ms < epoch_ms(subject.end):
        return "The month is not over: these figures will change."
    return "The month is not closed yet: what arrives late may still change these figures."


def _due_lines(subject: Subject, month: TenantMonth, cents: Sequence[int]) -> list[DueLine]:
    late = month.late_usd_nanos
    usage = [month.total.charge_usd_nanos - sum(late.values()), *late.values()]
    names = [
        (f"Usage of {subject.start:%B %Y}", ""),
        *((f"Late usage of {used_in}", "booked after that month was closed") for used_in in late),
    ]
    shown = [
        DueLine(name, about, usd_text(exact), cents_text(amount))
        for (name, about), exact, amount in zip(names, usage, shared_cents(usage, cents[0]), strict=True)
    ]
    for each, amount in zip(month.adjustments, cents[1:], strict=True):
        of = "" if each.charge_month is None else f" of {each.charge_month}"
        name = f"{each.kind.capitalize()}{of}: {each.reason}"
        shown.append(DueLine(name, each.id, usd_text(each.amount_usd_nanos), cents_text(amount)))
    return shown


def _facts(month: TenantMonth) -> tuple[tuple[str, str], ...]:
    total, end_users = month.total, month.end_users
    charge = total.charge_usd_nanos
    tokens = total.input_tokens_all + total.output_tokens_all
    return (
        ("Requests", f"{total.requests:,}"),
        ("of these answered from the cache, free", f"{total.cache_hits:,}"),
        ("Input tokens", f"{total.input_tokens_all:,}"),
        ("of these found in engines' caches", f"{total.cached_input_tokens:,}"),
        ("Output tokens", f"{total.output_tokens_all:,}"),
        ("End users named in requests", NO_FIGURE if end_users is None else f"{end_users:,}"),
        ("USD per 1,000 requests", per(charge * 1_000, total.requests)),
        ("USD per million tokens", per(charge * 1_000_000, tokens)),
        ("USD per end user", per(charge, end_users or 0)),
        ("Due for the month before, USD", cents_text(round_to_cents(month.before_usd_nanos))),
    )


def _sources(subject: Subject, month: TenantMonth) -> tuple[tuple[str, str], ...]:
    shown = month.price_versions[:PRICES_MAX]
    more = len(month.price_versions) - len(shown)
    prices = ", ".join(shown) + (f" and {more} more" if more else "")
    return (
        ("Basis", "charges by token rates, as they were booked"),
        ("Currency", "USD"),
        ("Time zone", "UTC; the month is a calendar month, its end excluded"),
        (
            "Rounding",
            "what is due to cents, half to even; lines by largest remainder, so that they add up to it",
        ),
        (
            "Control totals, exact",
            f"charge {usd_text(month.total.charge_usd_nanos)} USD, due {usd_text(month.due_usd_nanos)} USD",
        ),
        ("Ledger up to booking", month.high_water or "none"),
        ("booked at", month.high_water_at or NO_FIGURE),
        ("Prices charged by" if month.are_prices_used else "Prices known by then", prices or "none"),
        *(month.closed or (("Made at", instant_text(subject.now_ms)),)),
    )


def _table(title: str, rows: Sequence[tuple[str, SpendFigures]], total: int) -> StatementTable:
    cents = shared_cents([figures.charge_usd_nanos for _, figures in rows], total)
    return StatementTable(
        title,
        tuple(
            StatementLine(
                name,
                f"{figures.requests:,}",
                f"{figures.input_tokens_all:,}",
                f"{figures.output_tokens_all:,}",
                cents_text(amount),
            )
            for (name, figures), amount in zip(rows, cents, strict=True)
        ),
    )


# ------------------------------------------------------------------------------------------------------ money
def round_to_cents(nanos: int) -> int:
    """Cents of an amount, half to even."""
    return int((Decimal(nanos) / NANOS_PER_CENT).to_integral_value(ROUND_HALF_EVEN))


def shared_cents(amounts: Sequence[int], total: int | None = None) -> list[int]:
    """Cents of amounts in nano-USD which add up to a total.

    Args:
        amounts: nano-USD.
        total: cents, the amounts' sum rounded down or up; left out: half to even.
    """
    cents = [amount // NANOS_PER_CENT for amount in amounts]
    missing = (round_to_cents(sum(amounts)) if total is None else total) - sum(cents)
    by_loss = sorted(range(len(amounts)), key=lambda index: (-(amounts[index] % NANOS_PER_CENT), index))
    for index in by_loss[:missing]:
        cents[index] += 1
    return cents


def cents_text(cents: int) -> str:
    """`1,234.56`."""
    whole, rest = divmod(abs(cents), 100)
    return f"{'-' if cents < 0 else ''}{whole:,}.{rest:02d}"


def per(nanos: int, units: int) -> str:
    """An amount per unit, to six places; a dash where there are no units."""
    if units <= 0:
        return NO_FIGURE
    usd = Decimal(nanos) / Decimal(units) / NANOS_PER_USD
    return f"{usd.quantize(Decimal('0.000001'), ROUND_HALF_EVEN):,}"
