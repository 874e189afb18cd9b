"""What will be spent? GET /admin/v1/reports/forecast."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from gateway.admin.forecast_views import ForecastView, forecast_view
from gateway.db import database_ms
from gateway.dependencies import Services, ServicesDep
from gateway.forecasts.desk import ForecastDesk
from gateway.forecasts.outlook import TOP, TOP_MAX, ask, outlook_of, read_question
from gateway.spend_names import read_names

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
    async with services.sessions() as session:
        now_ms = await database_ms(session, services.clock)
        names = await read_names(session)
        question = await read_question(session, by=by, now_ms=now_ms, names=names, top=top)
    # Nobody who waits for the process holds a session.
    answer = await _desk(request, services).answer(question.errand)
    return forecast_view(outlook_of(question, answer))


def _desk(request: Request, services: Services) -> ForecastDesk:
    """The application's, made when it is first asked."""
    state = request.app.state
    if not hasattr(state, "forecast_desk"):
        state.forecast_desk = ForecastDesk(ask, monotonic_s=services.clock.monotonic_s)
    desk: ForecastDesk = state.forecast_desk
    return desk
