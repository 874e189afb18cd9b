"""What did supply cost, and was it recovered? GET /admin/v1/reports/supply."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from gateway.admin.spend import period
from gateway.admin.supply_views import SupplyView, supply_view
from gateway.db import database_ms
from gateway.dependencies import ServicesDep, SessionDep
from gateway.ledger.supply_report import supply_report
from gateway.ledger.supply_terms import terms_of
from gateway.spend_names import read_names

router = APIRouter(prefix="/admin/v1", tags=["reports"])


@router.get("/reports/supply", summary="What supply cost, who used it, and what was recovered")
async def supply(
    services: ServicesDep,
    session: SessionDep,
    *,
    group_by: Annotated[
        str, Query(description="comma list of tenant, project, key, model, pool, task, day, week, month")
    ] = "pool",
    since: Annotated[
        str | None, Query(alias="from", description="ISO 8601, a whole hour; default: this month's start")
    ] = None,
    until: Annotated[
        str | None, Query(alias="to", description="ISO 8601, a whole hour; default: this month's end")
    ] = None,
) -> SupplyView:
    """Charge and cost beside each other, money as decimal strings in USD.

    Raises:
        InvalidRequest: an unknown dimension, or an instant that is unreadable or no whole hour.
    """
    start, end = period(since, until, services.clock.now())
    report = await supply_report(
        session,
        terms_of(services.registry.specs),
        group_by=[name.strip() for name in group_by.split(",")],
        start=start,
        end=end,
        now_ms=await database_ms(session, services.clock),
        names=await read_names(session),
    )
    return supply_view(report)
