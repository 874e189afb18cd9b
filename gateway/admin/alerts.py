"""What were people told, and what stood out? GET /admin/v1/alerts and /admin/v1/reports/anomalies."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from gateway.admin.alert_views import AlertsView, AnomaliesView, alert_view, anomaly_view
from gateway.admin.spend import period
from gateway.alerts.outbox import recent
from gateway.dependencies import ServicesDep, SessionDep
from gateway.errors import InvalidRequest
from gateway.forecasts.anomaly_store import anomalies_between
from gateway.ledger.cuts import epoch_ms
from gateway.spend_names import read_names

router = APIRouter(prefix="/admin/v1", tags=["reports"])


@router.get("/alerts", summary="What people were told, and how far it got")
async def alerts(
    session: SessionDep,
    *,
    limit: Annotated[int, Query(ge=1, le=500, description="the newest so many")] = 100,
) -> AlertsView:
    """Messages about budgets and unusual spend, each with its deliveries; the newest first."""
    return AlertsView(alerts=[alert_view(*each) for each in await recent(session, limit=limit)])


@router.get("/reports/anomalies", summary="Spend that stood out, and what explains it")
async def anomalies(
    services: ServicesDep,
    session: SessionDep,
    *,
    since: Annotated[
        str | None, Query(alias="from", description="ISO 8601; default: this month's start")
    ] = None,
    until: Annotated[str | None, Query(alias="to", description="ISO 8601; default: this month's end")] = None,
) -> AnomaliesView:
    """One for each day and value of a dimension; the newest first.

    Raises:
        InvalidRequest: an instant that is unreadable, or an end before the start.
    """
    start, end = period(since, until, services.clock.now())
    if end <= start:
        raise InvalidRequest("The end of the report must be after its start.", param="to")
    names = await read_names(session)
    rows = await anomalies_between(session, start_ms=epoch_ms(start), end_ms=epoch_ms(end))
    return AnomaliesView(
        period_start=start.isoformat(),
        period_end=end.isoformat(),
        time_zone="UTC",
        currency="USD",
        anomalies=[anomaly_view(row, names) for row in rows],
    )
