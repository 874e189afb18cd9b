"""What will be spent? GET /admin/v1/reports/forecast."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from gateway.admin.forecast_views import ForecastView, forecast_view
from gateway.db import database_ms
from gateway.dependencies import ServicesDep, SessionDep
from gateway.forecasts.outlook import TOP, TOP_MAX, spend_outlook
from gateway.spend_names import read_names

router = APIRouter(prefix="/admin/v1", tags=["reports"])


@router.get("/reports/forecast", summary="What tenants will be charged, with intervals and tested errors")
async def forecast(
    services: ServicesDep,
    session: SessionDep,
    *,
    by: Annotated[str, Query(description="tenant or pool")] = "tenant",
    top: Annotated[int, Query(ge=1, le=TOP_MAX, description="rows; the others are forecast together")] = TOP,
) -> ForecastView:
    """To the month's end and for 30 days, money as decimal strings in USD; takes seconds.

    Raises:
        InvalidRequest: another dimension.
    """
    now_ms = await database_ms(session, services.clock)
    names = await read_names(session)
    return forecast_view(await spend_outlook(session, by=by, now_ms=now_ms, names=names, top=top))
