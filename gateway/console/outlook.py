"""What will be spent, and what stood out? Two tabs of `/console/spend`.

A forecast is made by a process of its own and takes seconds: the page is there at once and it follows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import accumulate

from fastapi import Request
from fastapi.responses import Response
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.console.charts import Chart, Number, Series
from gateway.console.pages import page
from gateway.console.span import CUSTOM, Span
from gateway.console.spend import picker, words
from gateway.console.spend_query import DIMENSIONS as TITLES
from gateway.console.spend_query import PATH, SpendQuery, read_query
from gateway.db import database_ms
from gateway.dependencies import ActorDep, ServicesDep, SessionDep
from gateway.errors import ConfigurationError, GatewayError, InvalidRequest
from gateway.forecasts.anomaly_store import anomalies_between
from gateway.forecasts.forecast import NAIVE
from gateway.forecasts.outlook import DIMENSIONS, TOTAL, Line, SpendOutlook, spend_outlook
from gateway.forecasts.tables import Anomaly
from gateway.forecasts.words import PERMILLE, name_of
from gateway.ledger.cuts import MS_PER_DAY, MS_PER_HOUR, epoch_ms, moment_of, month_of
from gateway.ledger.spend_series import WHOLE, spend_series
from gateway.spend_names import Names, read_names

FORECAST = f"{PATH}/forecast"
ANOMALIES = f"{PATH}/anomalies"
TOP = 10


@dataclass(frozen=True, slots=True)
class Found:
    """An anomaly in people's words."""

    row: Anomaly
    name: str
    since_ms: int
    cause: str | None
    cause_share_ratio: float | None
    address: str
    """Of the spend of that day, and of nobody else."""


async def show_forecast(request: Request, services: ServicesDep, actor: ActorDep) -> Response:
    """The tab; the figures follow."""
    query = read_query(request.query_params, services.clock.now(), path=FORECAST)
    by = _dimension(query)
    return page(
        "forecast.html",
        section="spend",
        actor=actor,
        tab="forecast",
        by=by,
        known={name: TITLES[name] for name in DIMENSIONS},
        part=replace(query, by=(by,)).address(f"{FORECAST}/report"),
        **picker(query, services),
    )


async def show_forecast_report(
    request: Request, services: ServicesDep, session: SessionDep, *, actor: ActorDep
) -> Response:
    """The figures."""
    by = _dimension(read_query(request.query_params, services.clock.now(), path=FORECAST))
    made, chart, error = None, None, ""
    try:
        now_ms = await database_ms(session, services.clock)
        names = await read_names(session)
        booked = await _booked(session, now_ms)
        made = await spend_outlook(session, by=by, now_ms=now_ms, names=names, top=TOP)
        chart = _month_chart(made, booked)
    except (InvalidRequest, ConfigurationError) as problem:
        error = _said(problem)
    return page(
        "forecast_report.html",
        actor=actor,
        made=made,
        chart=chart,
        error=error,
        by=by,
        naive=NAIVE,
        **words(),
    )


async def show_anomalies(
    request: Request, services: ServicesDep, session: SessionDep, *, actor: ActorDep
) -> Response:
    """The tab: what stood out, the newest first."""
    query = read_query(request.query_params, services.clock.now(), path=ANOMALIES)
    names = await read_names(session)
    rows = await anomalies_between(
        session, start_ms=epoch_ms(query.span.start), end_ms=epoch_ms(query.span.end), limit=200
    )
    return page(
        "anomalies.html",
        section="spend",
        actor=actor,
        tab="anomalies",
        found=[_found(row, names, query) for row in rows],
        **picker(query, services),
    )


def _said(problem: GatewayError) -> str:
    return problem.caller_detail if isinstance(problem, InvalidRequest) else str(problem)


def _dimension(query: SpendQuery) -> str:
    return next((name for name in query.by if name in DIMENSIONS), DIMENSIONS[0])


def _found(row: Anomaly, names: Names, query: SpendQuery) -> Found:
    day = moment_of(row.day_start_ms)
    narrowed = replace(
        query,
        span=Span(CUSTOM, day, day + timedelta(days=1), f"{day:%Y-%m-%d}"),
        by=(row.cause_dimension or "model",),
        filters=(f"{row.dimension}={row.value}",),
    )
    return Found(
        row,
        name_of(names, row.dimension, row.value) or row.value,
        row.end_ms - row.window_hours * MS_PER_HOUR,
        name_of(names, row.cause_dimension, row.cause_value),
        None if row.cause_permille is None else row.cause_permille / PERMILLE,
        narrowed.address(PATH),
    )


async def _booked(session: AsyncSession, now_ms: int) -> list[int]:
    """What was charged on each day of this month before today, nano-USD."""
    start_ms = epoch_ms(month_of(moment_of(now_ms))[0])
    today_ms = now_ms // MS_PER_DAY * MS_PER_DAY
    if start_ms == today_ms:
        return []
    found = await spend_series(session, None, start_ms=start_ms, end_ms=today_ms)
    return found.get(WHOLE, [0] * ((today_ms - start_ms) // MS_PER_DAY))


def _month_chart(made: SpendOutlook, booked: list[int]) -> Chart | None:
    """The month added up day by day: as it was, and as it is expected with its interval."""
    total: Line | None = next((line for line in made.lines if line.name == TOTAL), None)
    if total is None or total.forecast is None:
        return None
    days_left = (made.month_end_ms - made.today_ms) // MS_PER_DAY
    gone: list[Number | None] = list(accumulate(booked))
    before = int(gone[-1] or 0) if gone else 0
    blank: list[Number | None] = [None] * (len(gone) - 1 if gone else 0)
    joint: list[Number | None] = [before] if gone else []
    expected: list[Number | None] = [
        before + round(total.forecast.sum_of(day + 1)) for day in range(days_left)
    ]
    intervals = [total.forecast.interval_of(day + 1) for day in range(days_left)]
    series = [
        Series("Charged", [*gone, *([None] * days_left)], kind="line", tone="accent"),
        Series("Forecast", [*blank, *joint, *expected], kind="line", is_dashed=True, tone="wait"),
    ]
    if all(one is not None for one in intervals):
        lows: list[Number | None] = [before + round(one[0]) for one in intervals if one is not None]
        highs: list[Number | None] = [before + round(one[1]) for one in intervals if one is not None]
        share = f"{total.forecast.level:.0%}"
        series += [
            Series(f"Low end ({share})", [*blank, *joint, *lows], kind="line", is_dashed=True, tone="off"),
            Series(f"High end ({share})", [*blank, *joint, *highs], kind="band", tone="accent"),
        ]
    first = made.today_ms - len(booked) * MS_PER_DAY
    labels = [f"{moment_of(first + day * MS_PER_DAY):%Y-%m-%d}" for day in range(len(booked) + days_left)]
    return Chart(
        id="month",
        title="The month added up, USD, UTC; the band is where the truth is expected",
        description="A line of what was charged until yesterday and a dashed one of what is expected.",
        across="Day (UTC)",
        labels=labels,
        series=series,
        unit="usd",
    )
