"""How do savings look outside? One form for the API's answers and the command line's `--json`."""

from __future__ import annotations

from typing import Any

from gateway.ledger.savings import Comparison, Line
from gateway.money import usd_text
from gateway.savings import SavingsReport

NOTE = "A model beside the books: no part of any charge or cost. The quality of answers is not measured here."


def as_json(report: SavingsReport) -> dict[str, Any]:
    """A report for machines."""
    return {
        "from": report.start.isoformat(),
        "to": report.end.isoformat(),
        "time_zone": "UTC",
        "currency": "USD",
        "policy": report.policy_version,
        "note": NOTE,
        "comparisons": [_comparison(each) for each in report.comparisons],
    }


def _comparison(made: Comparison) -> dict[str, Any]:
    return {
        "baseline": made.name,
        "method": made.method,
        "baseline_usd": usd_text(made.baseline_usd_nanos),
        "actual_usd": usd_text(made.actual_usd_nanos),
        "actual_is": made.actual_is,
        "saved_usd": usd_text(made.baseline_usd_nanos - made.actual_usd_nanos),
        "lines": [_line(line) for line in made.lines],
    }


def _line(line: Line) -> dict[str, Any]:
    has_interval = line.low_usd_nanos is not None and line.high_usd_nanos is not None
    return {
        "what": line.what.value,
        "is_claimed": line.is_claimed,
        "usd": usd_text(line.usd_nanos),
        "low_usd": usd_text(line.low_usd_nanos or 0) if has_interval else None,
        "high_usd": usd_text(line.high_usd_nanos or 0) if has_interval else None,
        "measured": line.measured,
        "modelled": line.modelled,
        "why_not": line.why_not,
    }
