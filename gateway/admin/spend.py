"""How does a spend report look outside? One form for the API's answers and the command line's `--json`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from gateway.admin.views import instant
from gateway.ledger.reports import SpendFigures, SpendReport, month_of
from gateway.money import usd_text


def period(since: str | None, until: str | None, now: datetime) -> tuple[datetime, datetime]:
    """The instants a report covers; UTC where no zone is given.

    Raises:
        InvalidRequest: not ISO 8601.
    """
    month_start, month_end = month_of(now)
    return instant(since, "from") or month_start, instant(until, "to") or month_end


def names_of(keys: list[Any]) -> dict[str, dict[str, str]]:
    """What people call tenants, projects and keys, by id."""
    return {
        "tenant": {key.tenant_id: key.tenant_name for key in keys},
        "project": {key.project_id: key.project_name for key in keys},
        "key": {key.id: f"{key.name} ({key.id})" for key in keys},
    }


def as_json(report: SpendReport) -> dict[str, Any]:
    """A report for machines."""
    return {
        "from": report.start.isoformat(),
        "to": report.end.isoformat(),
        "time_zone": "UTC",
        "currency": "USD",
        "group_by": list(report.group_by),
        "rows": [
            {**dict(zip(report.group_by, group, strict=True)), **_figures(figures)}
            for group, figures in report.rows
        ],
        "total": _figures(report.total),
    }


def _figures(figures: SpendFigures) -> dict[str, Any]:
    return {
        "requests": figures.requests,
        "failed_attempts": figures.failed_attempts,
        "input_tokens": figures.input_tokens,
        "cached_input_tokens": figures.cached_input_tokens,
        "cache_write_tokens": figures.cache_write_tokens,
        "output_tokens": figures.output_tokens,
        "reasoning_tokens": figures.reasoning_tokens,
        "charge_usd": usd_text(figures.charge_usd_nanos),
        "platform_usd": usd_text(figures.platform_usd_nanos),
    }
