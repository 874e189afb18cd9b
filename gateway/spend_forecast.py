"""Who asks for a forecast of spend, while serving? The API and the console, of one desk.

Nobody who waits for the process that computes holds a database session.
"""

from __future__ import annotations

from typing import Any

from gateway.clock import Clock
from gateway.db import SessionFactory, database_ms
from gateway.forecasts.desk import ForecastDesk
from gateway.forecasts.outlook import SpendOutlook, ask, outlook_of, read_question
from gateway.spend_names import read_names


async def forecast_of_spend(
    state: Any, sessions: SessionFactory, clock: Clock, *, by: str, top: int
) -> SpendOutlook:
    """To the month's end and for 30 days; takes seconds at first.

    Args:
        state: the application's, which keeps the desk.
        sessions: where to read.
        clock: for what is remembered.
        by: tenant or pool.
        top: so many rows; the others are forecast together.

    Raises:
        InvalidRequest: another dimension.
        Overloaded: too many wait for a forecast.
        ConfigurationError: the process that forecasts died.
    """
    async with sessions() as session:
        now_ms = await database_ms(session, clock)
        names = await read_names(session)
        question = await read_question(session, by=by, now_ms=now_ms, names=names, top=top)
    return outlook_of(question, await _desk(state, clock).answer(question.errand))


def _desk(state: Any, clock: Clock) -> ForecastDesk:
    """The application's, made when it is first asked."""
    if not hasattr(state, "forecast_desk"):
        state.forecast_desk = ForecastDesk(ask, monotonic_s=clock.monotonic_s)
    desk: ForecastDesk = state.forecast_desk
    return desk
