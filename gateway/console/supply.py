"""What did supply cost, who used it, was it recovered, and what was saved? Two tabs of `/console/spend`.

Both are readings of many hours: the page is there at once and the figures follow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastapi import Request
from fastapi.responses import Response
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.clock import instant_text
from gateway.console.aside import Aside
from gateway.console.charts import Chart, Series
from gateway.console.pages import page
from gateway.console.spend import picker, words
from gateway.console.spend_query import DIMENSIONS, PATH, SpendQuery, read_query
from gateway.db import database_ms
from gateway.dependencies import ActorDep, Services, ServicesDep
from gateway.errors import ConfigurationError, InvalidRequest
from gateway.ledger.cuts import MS_PER_DAY, MS_PER_HOUR, epoch_ms, moment_of
from gateway.ledger.savings import Comparison
from gateway.ledger.supply import LineKind
from gateway.ledger.supply_course import Course, supply_course
from gateway.ledger.supply_report import DIMENSIONS as OF_SUPPLY
from gateway.ledger.supply_report import SupplyReport, supply_report
from gateway.ledger.supply_terms import terms_of
from gateway.savings import SavingsReport, savings_report
from gateway.spend_names import read_names

SUPPLY = f"{PATH}/supply"
SAVINGS = f"{PATH}/savings"
HOURLY_DAYS_MAX = 3
"""Of so few days the course is by the hour."""
ROWS_MAX = 200
_OF_POOL = "pool="
LINES = {
    LineKind.REQUEST: ("Requests", "good"),
    LineKind.FAILED: ("Failed attempts", "bad"),
    LineKind.WARM_UP: ("Warm-up", ""),
    LineKind.HEARTBEAT: ("Heartbeats", ""),
    LineKind.EVALUATION: ("Evaluation", ""),
    LineKind.IDLE: ("Idle", "off"),
    LineKind.ASLEEP: ("Asleep", ""),
    LineKind.BROKEN: ("Broken", ""),
    LineKind.UNUSED: ("Reserved, unused", ""),
}
"""What people call what a bill was for, and its colour."""


@dataclass(frozen=True, slots=True)
class SupplyPart:
    """What the supply tab shows."""

    query: SpendQuery
    report: SupplyReport
    pool: str | None
    """Only of this one the course is drawn; None: of all."""
    course: Chart | None


class SupplyPages:
    """The tabs about cost."""

    def __init__(self, aside: Aside) -> None:
        self._aside = aside

    async def show(self, request: Request, services: ServicesDep, actor: ActorDep) -> Response:
        """Supply: tabs and filters; the figures follow."""
        query = _of_supply(request, services)
        return page(
            "supply.html",
            section="spend",
            actor=actor,
            tab="supply",
            part=query.address(f"{SUPPLY}/report"),
            known={name: DIMENSIONS[name] for name in OF_SUPPLY},
            **picker(query, services),
        )

    async def show_report(self, request: Request, services: ServicesDep, actor: ActorDep) -> Response:
        """Supply: the figures."""
        query = _of_supply(request, services)
        view, error = None, ""
        try:
            view = await self._aside.read(services, lambda session: _read_supply(session, services, query))
        except InvalidRequest as problem:
            error = problem.caller_detail
        return page(
            "supply_report.html",
            actor=actor,
            view=view,
            error=error,
            lines=LINES,
            rows_max=ROWS_MAX,
            **words(),
        )

    async def show_savings(self, request: Request, services: ServicesDep, actor: ActorDep) -> Response:
        """Savings: tabs and period; the figures follow."""
        query = read_query(request.query_params, services.clock.now(), path=SAVINGS)
        return page(
            "savings.html",
            section="spend",
            actor=actor,
            tab="savings",
            part=query.address(f"{SAVINGS}/report"),
            **picker(query, services),
        )

    async def show_savings_report(self, request: Request, services: ServicesDep, actor: ActorDep) -> Response:
        """Savings: the figures."""
        query = read_query(request.query_params, services.clock.now(), path=SAVINGS)
        report, error = None, ""

        async def work(session: AsyncSession) -> SavingsReport:
            return await savings_report(
                session,
                services.pipeline.routing.policy,
                services.registry.specs,
                start=query.span.start,
                end=query.span.end,
                now_ms=await database_ms(session, services.clock),
            )

        try:
            report = await self._aside.read(services, work)
        except (InvalidRequest, ConfigurationError) as problem:
            error = problem.caller_detail if isinstance(problem, InvalidRequest) else str(problem)
        charts = () if report is None else [_savings_chart(*each) for each in enumerate(report.comparisons)]
        return page("savings_report.html", actor=actor, report=report, charts=charts, error=error, **words())


def _of_supply(request: Request, services: Services) -> SpendQuery:
    query = read_query(request.query_params, services.clock.now(), path=SUPPLY, by=("pool",))
    known = tuple(name for name in query.by if name in OF_SUPPLY)
    # A bill is a pool's: what else one may filter spend by does not cut it.
    pools = [each for each in query.filters if each.startswith(_OF_POOL)]
    return replace(query, by=known or ("pool",), filters=tuple(pools[-1:]))


def _pool_of(query: SpendQuery) -> str | None:
    return query.filters[0].removeprefix(_OF_POOL) if query.filters else None


async def _read_supply(session: AsyncSession, services: Services, query: SpendQuery) -> SupplyPart:
    span = query.span
    now_ms = await database_ms(session, services.clock)
    report = await supply_report(
        session,
        terms_of(services.registry.specs),
        group_by=query.by,
        start=span.start,
        end=span.end,
        now_ms=now_ms,
        names=await read_names(session),
    )
    step_ms = MS_PER_HOUR if span.days <= HOURLY_DAYS_MAX else MS_PER_DAY
    pool = _pool_of(query)
    course = await supply_course(
        session, start_ms=epoch_ms(span.start), end_ms=epoch_ms(span.end), step_ms=step_ms, pool=pool
    )
    return SupplyPart(query, report, pool, _course_chart(course, step_ms, query) if course else None)


def _course_chart(course: Course, step_ms: int, query: SpendQuery) -> Chart:
    pool = _pool_of(query)
    step = "hour" if step_ms == MS_PER_HOUR else "day"
    steps = range(min(course), max(course) + 1, step_ms)
    labels = [_step_text(at, step) for at in steps]
    present = [kind for kind in LINES if any(amounts.get(kind) for amounts in course.values())]
    return Chart(
        id="bill",
        title=f"The bill of {pool or 'all pools'} by {step}, USD, UTC; of hours that are billed",
        description=f"Stacked bars of the bill by {step}: requests, idle and other time of replicas.",
        across=f"{step.capitalize()} (UTC)",
        labels=labels,
        series=[
            Series(LINES[kind][0], [course.get(at, {}).get(kind, 0) for at in steps], tone=LINES[kind][1])  # type: ignore[arg-type]
            for kind in present
        ],
        unit="usd",
        is_stacked=True,
        # A day's bar leads to its hours.
        links=[query.only("day", label) for label in labels] if step == "day" else None,
    )


def _step_text(at_ms: int, step: str) -> str:
    return instant_text(at_ms)[:16].replace("T", " ") if step == "hour" else f"{moment_of(at_ms):%Y-%m-%d}"


def _savings_chart(number: int, made: Comparison) -> Chart:
    shown = [line for line in made.lines if line.is_claimed or line.usd_nanos]
    return Chart(
        id=f"savings-{number}",
        title=f"Saved against {made.name}, USD; below zero: it cost more",
        description="Bars of what each way of serving saved; the table has intervals and methods.",
        across="What saved",
        labels=[f"{line.what.value}{'' if line.is_claimed else ' (not claimed)'}" for line in shown],
        series=[Series("Saved", [line.usd_nanos for line in shown], tone="good")],
        unit="usd",
        is_horizontal=True,
    )
