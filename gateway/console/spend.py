"""What was spent, by whatever one wants to know it by? `/console/spend`.

The report of `gateway.ledger.reports` as tiles, charts and a table. Where the hourly sums can answer for a
month or two, the page has it at once; whatever reads every attempt or looks further follows as a part.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.console.aside import Aside
from gateway.console.charts import Chart
from gateway.console.pages import page
from gateway.console.span import CHOICES, CUSTOM, months_before
from gateway.console.spend_charts import bars_chart, course_chart
from gateway.console.spend_query import DIMENSIONS, GROUPS_MAX, SpendQuery, read_query, title_of
from gateway.dependencies import ActorDep, Services, ServicesDep, SessionDep
from gateway.errors import InvalidRequest, NotFound
from gateway.ledger.cuts import PERIODS, parse_filters
from gateway.ledger.invariants import take_snapshot
from gateway.ledger.reports import Shape, SpendReport, cut_of, spend_report
from gateway.ledger.unit_costs import usd_nanos_per, usd_nanos_per_million
from gateway.spend_asked import shape_of
from gateway.spend_names import read_names

DAYS_AT_ONCE = 62
"""Of more days the report follows the page."""

VIEWS = (
    ("spend", "Spend", ""),
    ("supply", "Supply cost", "/supply"),
    ("savings", "Savings", "/savings"),
    ("forecast", "Forecast", "/forecast"),
    ("anomalies", "Anomalies", "/anomalies"),
)
"""Tabs: name, title, what their address has more."""


@dataclass(frozen=True, slots=True)
class SpendView:
    """A report and what is drawn of it."""

    query: SpendQuery
    report: SpendReport
    charts: tuple[Chart, ...]


class SpendPages:
    """The tab about charges."""

    def __init__(self, aside: Aside) -> None:
        self._aside = aside

    async def show(
        self, request: Request, services: ServicesDep, session: SessionDep, *, actor: ActorDep
    ) -> Response:
        """The page."""
        now = services.clock.now()
        query = read_query(request.query_params, now)
        view, error, is_later = None, "", False
        try:
            if is_at_once(query):
                view = await read_spend(session, query, now=now)
            else:
                is_later = True
        except (InvalidRequest, NotFound) as problem:
            error = problem.caller_detail
        return page(
            "spend.html",
            status_code=400 if error else 200,
            section="spend",
            actor=actor,
            tab="spend",
            error=error,
            is_later=is_later,
            view=view,
            **picker(query, services),
        )

    async def show_report(self, request: Request, services: ServicesDep, actor: ActorDep) -> Response:
        """The report alone, for a page that did not wait."""
        now = services.clock.now()
        query = read_query(request.query_params, now)
        view, error = None, ""
        try:
            view = await self._aside.read(services, lambda session: read_spend(session, query, now=now))
        except (InvalidRequest, NotFound) as problem:
            error = problem.caller_detail
        return page("spend_report.html", actor=actor, view=view, error=error, **words())


def picker(query: SpendQuery, services: Services) -> dict[str, Any]:
    """What the filters of all tabs show."""
    return {
        **words(),
        "query": query,
        "tabs": VIEWS,
        "choices": CHOICES,
        "months": months_before(services.clock.now()),
        "custom": CUSTOM,
        "dimensions": DIMENSIONS,
        "groups_max": GROUPS_MAX,
    }


def words() -> dict[str, Any]:
    """What templates say things with."""
    return {"title_of": title_of, "per": usd_nanos_per, "per_million": usd_nanos_per_million}


def is_at_once(query: SpendQuery) -> bool:
    """The hourly sums can answer, and they are not many.

    Raises:
        InvalidRequest: an unknown dimension, or a filter that is none.
    """
    cut = cut_of(query.by, query.span.start, query.span.end, filters=parse_filters(query.filters))
    return cut.is_hourly and not query.counts_end_users and query.span.days <= DAYS_AT_ONCE


async def read_spend(session: AsyncSession, query: SpendQuery, *, now: datetime) -> SpendView:
    """The report, and beside it its course where it is not grouped by time.

    Raises:
        InvalidRequest: something that is asked for is not known, or makes no sense.
        NotFound: a filter names somebody who does not exist.
    """
    await take_snapshot(session)
    names = await read_names(session)
    shape = shape_of(query.asked(), names)
    span = query.span
    report = await spend_report(
        session, group_by=query.by, start=span.start, end=span.end, names=names, shape=shape
    )
    if not report.rows:
        return SpendView(query, report, ())
    if any(name in PERIODS for name in query.by):
        return SpendView(query, report, (course_chart(report, query, now=now),))
    charts = [bars_chart(report, query)]
    if is_at_once(query) and span.days > 1:
        course = await spend_report(
            session,
            group_by=["day", query.by[0]],
            start=span.start,
            end=span.end,
            names=names,
            shape=Shape(filters=shape.filters),
        )
        charts.append(course_chart(course, query, now=now))
    return SpendView(query, report, tuple(charts))
