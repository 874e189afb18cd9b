"""What was spent? GET /admin/v1/reports/spend."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from gateway.admin.spend import as_json, names_of, period
from gateway.dependencies import ServicesDep, SessionDep
from gateway.identity.key_store import list_keys
from gateway.ledger.reports import spend_report

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
