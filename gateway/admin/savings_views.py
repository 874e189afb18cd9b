"""How do savings look outside? One form for the API's answers and the command line's `--json`."""

from __future__ import annotations

from pydantic import BaseModel, Field

from gateway.ledger.savings import Comparison, Line
from gateway.money import usd_text
from gateway.savings import SavingsReport

NOTE = "A model beside the books: no part of any charge or cost. The quality of answers is not measured here."


class SavingsLineView(BaseModel):
    """One saving; money in decimal strings of USD."""

    what: str = Field(description="cache, batching, quantization, routing, speculation, unexplained, …")
    is_claimed: bool
    usd: str = Field(description="below zero: it cost more")
    low_usd: str | None = Field(description="the truth is expected from here on; empty: nobody knows")
    high_usd: str | None = Field(description="and up to here")
    measured: str
    modelled: str
    why_not: str = Field(description="why nothing is claimed")


class ComparisonView(BaseModel):
    """One baseline against what was; its lines add up to saved_usd."""

    baseline: str
    method: str
    baseline_usd: str
    actual_usd: str
    actual_is: str
    saved_usd: str
    lines: list[SavingsLineView]


class SavingsView(BaseModel):
    """What was saved against the baselines that the policy declares."""

    period_start: str
    period_end: str = Field(description="first instant that does not count")
    time_zone: str
    currency: str
    policy: str = Field(description="the version whose baselines these are")
    note: str
    comparisons: list[ComparisonView]


def savings_view(report: SavingsReport) -> SavingsView:
    """A report for machines."""
    return SavingsView(
        period_start=report.start.isoformat(),
        period_end=report.end.isoformat(),
        time_zone="UTC",
        currency="USD",
        policy=report.policy_version,
        note=NOTE,
        comparisons=[_comparison(each) for each in report.comparisons],
    )


def _comparison(made: Comparison) -> ComparisonView:
    return ComparisonView(
        baseline=made.name,
        method=made.method,
        baseline_usd=usd_text(made.baseline_usd_nanos),
        actual_usd=usd_text(made.actual_usd_nanos),
        actual_is=made.actual_is,
        saved_usd=usd_text(made.baseline_usd_nanos - made.actual_usd_nanos),
        lines=[_line(line) for line in made.lines],
    )


def _line(line: Line) -> SavingsLineView:
    return SavingsLineView(
        what=line.what.value,
        is_claimed=line.is_claimed,
        usd=usd_text(line.usd_nanos),
        low_usd=None if line.low_usd_nanos is None else usd_text(line.low_usd_nanos),
        high_usd=None if line.high_usd_nanos is None else usd_text(line.high_usd_nanos),
        measured=line.measured,
        modelled=line.modelled,
        why_not=line.why_not,
    )
