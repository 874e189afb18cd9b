"""What will be spent? GET /admin/v1/reports/forecast."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from gateway.admin.forecast_views import ForecastView, forecast_view
from gateway.dependencies import ServicesDep
from gateway.forecasts.outlook import TOP, TOP_MAX
from gateway.spend_forecast import forecast_of_spend

router = APIRouter(prefix="/admin/v1", tags=["reports"])


@router.get("/reports/forecast", summary="What tenants will be charged, with intervals and tested errors")
async def forecast(
    request: Request,
    services: ServicesDep,
    *,
    by: Annotated[str, Query(description="tenant or pool")] = "tenant",
    top: Annotated[int, Query(ge=1, le=TOP_MAX, description="rows; the others are forecast together")] = TOP,
) -> ForecastView:
    """To the month's end and for 30 days, money as decimal strings in USD; takes seconds at first.

    Raises:
        InvalidRequest: another dimension.
        Overloaded: too many wait for a forecast.
    """
    return forecast_view(
        await forecast_of_spend(request.app.state, services.sessions, services.clock, by=by, top=top)
    )
