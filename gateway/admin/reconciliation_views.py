"""How does a comparison of a bill with the ledger look outside? One form for the API and `--json`."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.adjustment_views import AdjustmentView, adjustment_view, signed_nanos
from gateway.clock import instant_text
from gateway.errors import InvalidRequest
from gateway.ledger.adjustments import proposals_of
from gateway.ledger.bills import Reading
from gateway.ledger.period_tables import Reconciliation
from gateway.ledger.periods import month_named
from gateway.ledger.reconcile_store import Bill, Reconciled, read_file
from gateway.money import usd_text

FILE_CHARS_MAX = 50_000_000


class ReconcileRequest(BaseModel):
    """A bill to be compared with the ledger."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "period": "2026-10",
                    "kind": "provider",
                    "file_name": "openai-2026-10.csv",
                    "file": "day,pool,quantity,amount\n2026-10-01,large,120000,1.84\n",
                    "pools": {"gpt-5.2": "large"},
                }
            ]
        },
    )

    period: str | None = Field(
        default=None,
        description="a UTC month, such as 2026-10; left out: every month of the file, each apart",
    )
    kind: str = Field(default="provider", description="provider (tokens) or gpu (GPU-hours)")
    file_name: str = Field(description="for people and messages", max_length=256)
    file: str = Field(
        description="the bill as CSV: day,pool,quantity,amount[,currency,rate], or FOCUS 1.2",
        max_length=FILE_CHARS_MAX,
    )
    pools: dict[str, str] = Field(default_factory=dict, description="our pool by their name of it")
    rates: dict[str, str] = Field(default_factory=dict, description="ours: USD for one unit, by currency")
    also: list[str] = Field(default_factory=list, description="pools that the bill should name and may not")
    tolerance_usd: str = Field(default="0.01", description="of one line; what is within it is rounding")


class ReconciliationLineView(BaseModel):
    """A pool's day on both sides."""

    pool: str
    day: str
    bill_quantity: int = Field(description="tokens, or milliseconds of one GPU")
    ledger_quantity: int
    bill_usd: str
    ledger_usd: str
    gaps: dict[str, str] = Field(description="by class; they add up to the difference")


class ReconciliationSummaryView(BaseModel):
    """A bill that was compared."""

    id: str
    file: str
    file_sha256: str
    kind: str
    period: str
    bill_usd: str
    ledger_usd: str
    difference_usd: str
    made_by: str
    made_at: str


class ReconciliationsView(BaseModel):
    """Bills that were compared, the newest first."""

    reconciliations: list[ReconciliationSummaryView]


class ReconciliationView(ReconciliationSummaryView):
    """With every line, the classes, and what is proposed."""

    tolerance_usd_per_line: str
    classes: dict[str, str] = Field(description="they add up to difference_usd, to the nano-dollar")
    zones_hours_ahead_of_utc: dict[str, int] = Field(description="by pool, where the bill's days are not UTC")
    lines: list[ReconciliationLineView]
    proposals: list[AdjustmentView]


class MonthMadeView(ReconciliationView):
    """What came of comparing a file with a month."""

    is_new: bool = Field(description="false: this file was compared before and nothing has changed since")
    standing: list[AdjustmentView] = Field(
        description="proposed by earlier comparisons of the month, open or approved: not proposed again"
    )


class ReconciliationMadeView(MonthMadeView):
    """The first month of the file, or the one that was asked for, and the others."""

    other_months: list[MonthMadeView] = Field(description="of a file of several months, where none was named")
    left_out_lines: dict[str, int] = Field(
        description="lines of months that were not asked for and not compared, by month"
    )


def bill_of(asked: ReconcileRequest) -> Bill:
    """What is asked for, read and checked; takes seconds for a large file.

    Raises:
        InvalidRequest: the file cannot be read, or a month, a rate or a tolerance is none.
    """
    rates = {}
    for code, text in asked.rates.items():
        try:
            rates[code.upper()] = Decimal(text)
        except InvalidOperation:
            rates[code.upper()] = Decimal(0)
        if not rates[code.upper()].is_finite() or rates[code.upper()] <= 0:
            raise InvalidRequest(
                f"The rate of {code[:8]} is USD for one of it, such as 1.0834; not {text[:40]!r}.",
                param="rates",
            )
    tolerance = signed_nanos(asked.tolerance_usd, param="tolerance_usd")
    if tolerance < 0:
        raise InvalidRequest("`tolerance_usd` is 0 or more.", param="tolerance_usd")
    return read_file(
        asked.file,
        Reading(asked.kind, asked.file_name, asked.pools, rates),
        None if asked.period is None else month_named(asked.period),
        tolerance_usd_nanos=tolerance,
        pools=frozenset(asked.also),
    )


def summary_view(row: Reconciliation) -> ReconciliationSummaryView:
    """Without its lines."""
    return ReconciliationSummaryView(
        id=row.id,
        file=row.name,
        file_sha256=row.file_sha256,
        kind=row.kind,
        period=row.period,
        bill_usd=usd_text(row.bill_usd_nanos),
        ledger_usd=usd_text(row.ledger_usd_nanos),
        difference_usd=usd_text(row.bill_usd_nanos - row.ledger_usd_nanos),
        made_by=row.made_by,
        made_at=instant_text(row.made_at_ms),
    )


async def reconciliation_view(session: AsyncSession, row: Reconciliation) -> ReconciliationView:
    """With its lines and proposals as they stand."""
    result: dict[str, Any] = msgspec.json.decode(row.result)
    lines = [
        ReconciliationLineView(
            **{**line, "day": (date(1970, 1, 1) + timedelta(days=line["day"])).isoformat()}
        )
        for line in result["lines"]
    ]
    return ReconciliationView(
        **summary_view(row).model_dump(),
        tolerance_usd_per_line=result["tolerance_usd_per_line"],
        classes=result["classes"],
        zones_hours_ahead_of_utc=result["zones_hours_ahead_of_utc"],
        lines=lines,
        proposals=[adjustment_view(each) for each in await proposals_of(session, row.id)],
    )


async def made_view(session: AsyncSession, bill: Bill, made: list[Reconciled]) -> ReconciliationMadeView:
    """What came of a file, months in their order."""
    months = [
        MonthMadeView(
            **(await reconciliation_view(session, each.row)).model_dump(),
            is_new=each.is_new,
            standing=[adjustment_view(row) for row in each.standing if row.reconciliation_id != each.row.id],
        )
        for each in made
    ]
    return ReconciliationMadeView(
        **months[0].model_dump(), other_months=months[1:], left_out_lines=dict(bill.left_out)
    )
