"""What does a tenant's monthly statement say, and how is money rounded on it?

The ledger keeps nano-dollars and the statement shows cents. The total is rounded once, half to even. The
lines of each table are rounded so that they add up to it: each is rounded down, and the cents that are then
missing go to those that lost most (largest remainder). The exact total stands beside the rounded one. A
statement that does not foot is not made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal

import msgspec
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.clock import instant_text
from gateway.errors import GatewayError
from gateway.inference import Payer
from gateway.ledger.cuts import Cut, Filter, epoch_ms, previous_range
from gateway.ledger.exports import Names
from gateway.ledger.report_facts import ReportFacts, read_facts
from gateway.ledger.reports import Shape, SpendFigures, SpendReport, control_total, cut_of, spend_report
from gateway.ledger.tables import Attempt
from gateway.money import NANOS_PER_USD, usd_text

NANOS_PER_CENT = NANOS_PER_USD // 100
TABLES = (("project", "By project"), ("model", "By model"), ("task", "By task"))
LINES_MAX = 200
"""Of one table; the others are one line."""
PRICES_MAX = 40


class DoesNotAddUp(GatewayError):
    """A table of a statement does not come to what the ledger has: a book is wrong."""

    code = "does_not_add_up"
    status_code = 500


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


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """All that is printed, as it is printed."""

    tenant: str
    tenant_id: str
    month: str
    period_from: str
    period_to: str
    is_provisional: bool
    total: str
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


async def read_statement(session: AsyncSession, subject: Subject, names: Names) -> Statement:
    """The statement, of the session's instant.

    Raises:
        DoesNotAddUp: a table does not come to what the ledger has.
    """
    only = (Filter("tenant", (subject.tenant_id,)),)
    reports: dict[str, SpendReport] = {}
    for dimension, _ in TABLES:
        made = await spend_report(
            session,
            group_by=[dimension],
            start=subject.start,
            end=subject.end,
            names=names,
            shape=Shape(filters=only, top=LINES_MAX, counts_end_users=dimension == "project"),
        )
        if not made.is_footed:
            raise DoesNotAddUp(
                f"The month by {dimension} does not come to what the ledger has: `tollgate audit` says which"
                " book is wrong. No statement is made."
            )
        reports[dimension] = made
    cut = cut_of((), subject.start, subject.end, filters=only)
    earlier = previous_range(subject.start, subject.end)
    before = await control_total(session, replace(cut, start_ms=epoch_ms(earlier[0]), end_ms=cut.start_ms))
    return _statement(
        subject,
        reports,
        facts=await read_facts(session, cut),
        before=before,
        corrections_usd_nanos=await _corrections(session, cut),
    )


async def _corrections(session: AsyncSession, cut: Cut) -> int:
    """What corrections of earlier months come to in this one."""
    asked = replace(cut, wants_attempts=True)
    found = await session.execute(
        select(func.sum(col(Attempt.charge_usd_nanos))).where(
            *asked.conditions(),
            col(Attempt.attempt_number) == 0,
            col(Attempt.payer) == Payer.TENANT.value,
        )
    )
    return int(found.scalar_one() or 0)


def _statement(
    subject: Subject,
    reports: dict[str, SpendReport],
    *,
    facts: ReportFacts,
    before: SpendFigures,
    corrections_usd_nanos: int,
) -> Statement:
    by_project = reports["project"]
    total = by_project.total
    end_ms = epoch_ms(subject.end)
    notes = []
    if corrections_usd_nanos:
        notes.append(
            f"Corrections of earlier months are included: {usd_text(corrections_usd_nanos)} USD, exact."
        )
    if total.unpriced_attempts:
        notes.append(
            f"{total.unpriced_attempts:,} attempts had no price when they were served. They are in no amount."
        )
    return Statement(
        tenant=subject.tenant,
        tenant_id=subject.tenant_id,
        month=f"{subject.start:%B %Y}",
        period_from=instant_text(epoch_ms(subject.start)),
        period_to=instant_text(end_ms),
        is_provisional=subject.now_ms < end_ms,
        total=cents_text(round_to_cents(total.charge_usd_nanos)),
        total_exact=usd_text(total.charge_usd_nanos),
        facts=_facts(total, before, by_project.end_users_total or 0),
        tables=tuple(_table(title, reports[dimension]) for dimension, title in TABLES),
        notes=tuple(notes),
        sources=_sources(subject, total, facts),
    )


def _facts(total: SpendFigures, before: SpendFigures, end_users: int) -> tuple[tuple[str, str], ...]:
    charge = total.charge_usd_nanos
    tokens = total.input_tokens_all + total.output_tokens_all
    return (
        ("Requests", f"{total.requests:,}"),
        ("of these answered from the cache, free", f"{total.cache_hits:,}"),
        ("Input tokens", f"{total.input_tokens_all:,}"),
        ("of these found in engines' caches", f"{total.cached_input_tokens:,}"),
        ("Output tokens", f"{total.output_tokens_all:,}"),
        ("End users named in requests", f"{end_users:,}"),
        ("USD per 1,000 requests", per(charge * 1_000, total.requests)),
        ("USD per million tokens", per(charge * 1_000_000, tokens)),
        ("USD per end user", per(charge, end_users)),
        ("The month before, USD", cents_text(round_to_cents(before.charge_usd_nanos))),
    )


def _sources(subject: Subject, total: SpendFigures, facts: ReportFacts) -> tuple[tuple[str, str], ...]:
    shown = facts.price_versions[:PRICES_MAX]
    more = len(facts.price_versions) - len(shown)
    prices = ", ".join(shown) + (f" and {more} more" if more else "")
    return (
        ("Basis", "charges by token rates, as they were booked"),
        ("Currency", "USD"),
        ("Time zone", "UTC; the month is a calendar month, its end excluded"),
        (
            "Rounding",
            "the total to cents, half to even; lines by largest remainder, so that they add up to the total",
        ),
        ("Control total, exact", f"{usd_text(total.charge_usd_nanos)} USD"),
        ("Ledger up to booking", facts.high_water or "none"),
        (
            "booked at",
            "never" if facts.high_water_at_ms is None else instant_text(facts.high_water_at_ms),
        ),
        ("Prices charged by" if facts.are_prices_used else "Prices known by then", prices or "none"),
        ("Made at", instant_text(subject.now_ms)),
    )


def _table(title: str, report: SpendReport) -> StatementTable:
    rows = [(group[0], figures) for group, figures in report.rows]
    if report.others_count:
        rows.append((f"{report.others_count} others", report.others))
    cents = shared_cents([figures.charge_usd_nanos for _, figures in rows])
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


def shared_cents(amounts: Sequence[int]) -> list[int]:
    """Cents of amounts in nano-USD which add up to the rounded total of all of them."""
    cents = [amount // NANOS_PER_CENT for amount in amounts]
    missing = round_to_cents(sum(amounts)) - sum(cents)
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
        return "–"  # noqa: RUF001 - a dash is meant
    usd = Decimal(nanos) / Decimal(units) / NANOS_PER_USD
    return f"{usd.quantize(Decimal('0.000001'), ROUND_HALF_EVEN):,}"
