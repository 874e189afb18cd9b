"""How does an audit of the books look outside? Amounts as decimal strings in USD, instants ISO 8601."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from gateway.admin.views import moment
from gateway.clock import instant_text
from gateway.ledger.cuts import period_text
from gateway.ledger.day_sums import Apart
from gateway.ledger.findings import Example, Finding
from gateway.ledger.invariants import Report
from gateway.money import usd_text

_EXAMPLE: dict[str, Any] = {
    "at": "2026-11-20T12:00:00Z",
    "since": "2026-11-20T10:00:00Z",
    "took_ms": 41,
    "breaches": 0,
    "invariants": [
        {
            "id": "I-1",
            "says": "the entries of every booking add up to zero",
            "looked_at": 2210,
            "breaches": 0,
            "examples": [],
            "note": "",
        }
    ],
}


class InvariantView(BaseModel):
    """Whether one invariant holds."""

    id: str
    says: str
    looked_at: int = Field(description="rows, or groups of rows")
    breaches: int
    examples: list[dict[str, str | int | None]] = Field(description="ids and amounts of the first breaches")
    note: str = Field(description="what is worth knowing and no breach")


class AuditRunView(BaseModel):
    """What one look at all invariants found."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    at: datetime
    since: datetime | None = Field(description="first instant that was looked at; null: everything was")
    took_ms: int
    breaches: int = Field(description="of all invariants together; 0: every number is right")
    invariants: list[InvariantView]


class AuditRunsView(BaseModel):
    """The last results of the continuous audit."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"recent": _EXAMPLE, "whole": None}]})

    recent: AuditRunView | None = Field(description="of the last hours; null: none yet")
    whole: AuditRunView | None = Field(description="of everything; null: none yet")


class DayApartView(BaseModel):
    """A tenant's day that is not the sum of its attempts."""

    day: str
    tenant_id: str
    attempts_kept: int = Field(description="what the daily sums say")
    attempts: int = Field(description="what there are")
    charge_kept_usd: str
    charge_usd: str
    outcome: str = Field(
        description="apart: nobody asked for more; rebuilt; right: it is meanwhile; hours_wrong: its hours"
        " are not the sums of its attempts either; sealed: its month is closed with other figures"
    )


class DaysView(BaseModel):
    """What a look at the daily sums found."""

    first_day: str | None = Field(description="null: there is no usage")
    last_day: str | None
    days: int = Field(description="that were looked at")
    is_right: bool = Field(description="every day is the sum of its attempts now")
    apart: list[DayApartView]


def day_apart_view(apart: Apart, outcome: str) -> DayApartView:
    """One of them, and what became of it."""
    return DayApartView(
        day=period_text("day", apart.day),
        tenant_id=apart.tenant_id,
        attempts_kept=apart.kept.attempts,
        attempts=apart.really.attempts,
        charge_kept_usd=usd_text(apart.kept.charge_usd_nanos),
        charge_usd=usd_text(apart.really.charge_usd_nanos),
        outcome=outcome,
    )


def audit_run_view(report: Report) -> AuditRunView:
    """A report."""
    return AuditRunView(
        at=moment(report.at_ms),
        since=moment(report.since_ms) if report.since_ms else None,
        took_ms=report.took_ms,
        breaches=report.breaches,
        invariants=[_invariant_view(finding) for finding in report.findings],
    )


def _invariant_view(finding: Finding) -> InvariantView:
    return InvariantView(
        id=finding.id,
        says=finding.says,
        looked_at=finding.looked_at,
        breaches=finding.breaches,
        examples=[_shown(example) for example in finding.examples],
        note=finding.note,
    )


def _shown(example: Example) -> dict[str, str | int | None]:
    shown: dict[str, str | int | None] = {}
    for name, value in example.items():
        if isinstance(value, int) and name.endswith("_usd_nanos"):
            shown[name.removesuffix("_nanos")] = usd_text(value)
        elif isinstance(value, int) and name.endswith("_ms"):
            shown[name.removesuffix("_ms")] = instant_text(value)
        else:
            shown[name] = value
    return shown
