"""How is everything right now: spend, budgets, latency, pools, and what needs attention?

One page for operators and finance. Pools come from memory and are shown even while the database is away; what
takes seconds (the forecast, the savings) follows by itself and is kept for a while.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy.exc import SQLAlchemyError

from backends.pool import PoolSnapshot
from gateway.console.attention import attention
from gateway.console.books import BookKeeper
from gateway.console.navigation import HOME
from gateway.console.pages import page
from gateway.db import database_ms
from gateway.dependencies import ActorDep, ServicesDep
from gateway.errors import GatewayError
from gateway.forecasts.outlook import TOP, TOTAL
from gateway.ledger.cuts import month_of
from gateway.savings import SavingsReport, savings_report
from gateway.spend_forecast import forecast_of_spend

REFRESH_S = 10
SLOW_KEPT_S = 300.0
"""Of what takes seconds to find out."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(slots=True)
class Kept(Generic[T]):
    """Something that takes long, found out once for everybody who asks meanwhile."""

    value: T | None = None
    until_s: float = 0.0
    turn: asyncio.Lock | None = None

    async def get(self, now_s: Callable[[], float], find: Callable[[], Awaitable[T]]) -> T:
        """The value, not older than SLOW_KEPT_S."""
        if self.turn is None:
            self.turn = asyncio.Lock()
        async with self.turn:
            if self.value is None or now_s() >= self.until_s:
                self.value = await find()
                self.until_s = now_s() + SLOW_KEPT_S
            return self.value


class Overview:
    """The page and its slow parts."""

    def __init__(self) -> None:
        self._keeper = BookKeeper()
        self._forecasting = asyncio.Lock()
        self._savings: Kept[SavingsReport] = Kept()

    def routes(self, router: APIRouter) -> None:
        """Its addresses."""
        router.add_api_route(HOME, self.show, methods=["GET"])
        router.add_api_route(f"{HOME}/overview/forecast", self.forecast, methods=["GET"])
        router.add_api_route(f"{HOME}/overview/savings", self.savings, methods=["GET"])

    async def show(self, services: ServicesDep, actor: ActorDep) -> Response:
        """Render the page."""
        try:
            books = await self._keeper.books(services)
        except (SQLAlchemyError, OSError) as error:
            _log.warning("the console could not read the database: %s", error)
            books = None
        pools = services.registry.snapshots()
        return page(
            "overview.html",
            section="overview",
            actor=actor,
            now=services.clock.now(),
            refresh_s=REFRESH_S,
            pools=[(pool, is_speculating(pool)) for pool in pools],
            ready=sum(pool.ready_count for pool in pools),
            replicas=sum(len(pool.replicas) for pool in pools),
            attention=attention(
                pools,
                burning=() if books is None else books.burning,
                today=None if books is None else books.today,
                unshipped=services.spool.unshipped_count,
            ),
            policy=services.pipeline.routing.policy,
            books=books,
        )

    async def forecast(self, request: Request, services: ServicesDep) -> Response:
        """What the month will come to; seconds, in a process of its own."""
        try:
            async with self._forecasting:  # the same question: whoever waits here gets the same answer
                outlook = await forecast_of_spend(
                    request.app.state, services.sessions, services.clock, by="tenant", top=TOP
                )
            line = next(line for line in outlook.lines if line.name == TOTAL)
        except (SQLAlchemyError, OSError, GatewayError) as error:
            return page("overview_forecast.html", line=None, why=_why(error))
        return page("overview_forecast.html", line=line, why="")

    async def savings(self, services: ServicesDep) -> Response:
        """What was saved this month, against the policy's baselines."""

        async def find() -> SavingsReport:
            start, end = month_of(services.clock.now())
            async with services.sessions() as session:
                return await savings_report(
                    session,
                    services.pipeline.routing.policy,
                    services.registry.specs,
                    start=start,
                    end=end,
                    now_ms=await database_ms(session, services.clock),
                )

        try:
            report = await self._savings.get(services.clock.monotonic_s, find)
        except (SQLAlchemyError, OSError, GatewayError) as error:
            return page("overview_savings.html", report=None, why=_why(error))
        return page("overview_savings.html", report=report, why="")


def _why(error: Exception) -> str:
    _log.warning("a part of the overview could not be found out: %s", error)
    return error.caller_detail if isinstance(error, GatewayError) else "The database does not answer."


def is_speculating(pool: PoolSnapshot) -> bool:
    """By its file, or because a replica that someone else runs says so."""
    loads = [replica.load for replica in pool.replicas if replica.load is not None]
    return pool.spec.speculation is not None or any(load.draft_steps_total is not None for load in loads)
