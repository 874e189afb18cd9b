"""What was spent? GET /admin/v1/reports/spend."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query

from gateway.dependencies import ServicesDep, SessionDep
from gateway.errors import InvalidRequest
from gateway.identity.key_store import list_keys
from gateway.ledger.reports import SpendFigures, SpendReport, month_of, spend_report
from gateway.money import usd_text

router = APIRouter(prefix="/admin/v1", tags=["reports"])


@router.get("/reports/spend", summary="Spend by any combination of dimensions")
async def spend(
    services: ServicesDep,
    session: SessionDep,
    *,
    group_by: Annotated[str, Query(description="comma list of tenant, project, key, …")] = "tenant",
    since: Annotated[
        str | None, Query(alias="from", description="ISO 8601; default: this month's start")
    ] = None,
    until: Annotated[str | None, Query(alias="to", description="ISO 8601; default: this month's end")] = None,
) -> dict[str, Any]:
    """The report as JSON, money as decimal strings in USD.

    Raises:
        InvalidRequest: an unknown dimension or an unreadable instant.
    """
    start, end = period(since, until, services.clock.now())
    report = await spend_report(
        session,
        group_by=[name.strip() for name in group_by.split(",")],
        start=start,
        end=end,
        names=names_of(await list_keys(session)),
    )
    return as_json(report)


def period(since: str | None, until: str | None, now: datetime) -> tuple[datetime, datetime]:
    """The instants a report covers; UTC where no zone is given.

    Raises:
        InvalidRequest: not ISO 8601.
    """
    month_start, month_end = month_of(now)
    return instant(since, "from") or month_start, instant(until, "to") or month_end


def instant(text: str | None, name: str) -> datetime | None:
    """An instant as people write it; UTC where no zone is given, None where nothing is.

    Raises:
        InvalidRequest: not ISO 8601.
    """
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(
            f"`{name}` must be a date or an instant such as 2026-11-01 or 2026-11-01T00:00:00Z,"
            f" not {text[:64]!r}.",
            param=name,
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


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
