"""What was saved, and how sure is that? GET /admin/v1/reports/savings."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from gateway.admin.savings_views import SavingsView, savings_view
from gateway.admin.spend import period
from gateway.db import database_ms
from gateway.dependencies import ServicesDep, SessionDep
from gateway.savings import savings_report

router = APIRouter(prefix="/admin/v1", tags=["reports"])


@router.get("/reports/savings", summary="What was saved against the policy's baselines, and how sure that is")
async def savings(
    services: ServicesDep,
    session: SessionDep,
    *,
    since: Annotated[
        str | None, Query(alias="from", description="ISO 8601, a whole hour; default: this month's start")
    ] = None,
    until: Annotated[
        str | None, Query(alias="to", description="ISO 8601, a whole hour; default: this month's end")
    ] = None,
) -> SavingsView:
    """Savings by what made them, with method and interval, money as decimal strings in USD.

    Raises:
        InvalidRequest: an instant that is unreadable or no whole hour.
    """
    start, end = period(since, until, services.clock.now())
    report = await savings_report(
        session,
        services.pipeline.routing.policy,
        services.registry.specs,
        start=start,
        end=end,
        now_ms=await database_ms(session, services.clock),
    )
    return savings_view(report)
