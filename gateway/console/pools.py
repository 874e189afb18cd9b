"""How are the pools, and why is one of them slow? `/console/pools`.

Begins with what needs attention, in words. Live values are those of this gateway process; the last minutes'
attempts are read once for everybody and kept for ten times as long as the reading took.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic

from fastapi.responses import Response
from sqlalchemy.exc import SQLAlchemyError

from gateway.clock import instant_text
from gateway.console.charts import Chart, Series
from gateway.console.pages import page
from gateway.console.pool_figures import (
    HEAT_STEPS,
    curves,
    facts_of,
    heat_map,
    learned_lines,
    usd_nanos_per_million_now,
)
from gateway.dependencies import ActorDep, Services, ServicesDep, SessionDep
from gateway.errors import NotFound
from gateway.ledger.pool_history import HOUR_MS, HourOfPool, PoolLately, hours_of_pool, pools_lately
from gateway.pool_concerns import LATELY_MINUTES, Concern, PoolFacts, Severity, concerns_of

REFRESH_S = 5
KEPT_TIMES = 10
HISTORY_HOURS = 48

_log = logging.getLogger(__name__)


class Pools:
    """The pages."""

    def __init__(self) -> None:
        self._lately: dict[str, PoolLately] | None = None
        self._kept_until_s = 0.0
        self._turn = asyncio.Lock()

    async def show(self, services: ServicesDep, actor: ActorDep) -> Response:
        """All pools."""
        lately = await self._read(services)
        snapshots = services.registry.snapshots()
        facts = [facts_of(services, pool, lately or {}) for pool in snapshots]
        economist = services.pipeline.routing.economist
        shedder = services.pipeline.shedder
        return page(
            "pools.html",
            section="pools",
            actor=actor,
            now=services.clock.now(),
            refresh_s=REFRESH_S,
            facts=facts,
            concerns=_urgent_first(facts),
            has_database=lately is not None,
            costs={pool.spec.name: usd_nanos_per_million_now(services, pool) for pool in snapshots},
            heat=heat_map(economist, snapshots),
            heat_steps=HEAT_STEPS,
            minutes=LATELY_MINUTES,
            monotonic_s=monotonic(),
            in_flight=shedder.under_way,
            in_flight_max=shedder.in_flight_max,
        )

    async def show_one(self, services: ServicesDep, actor: ActorDep, pool: str) -> Response:
        """One pool.

        Raises:
            NotFound: there is none of that name.
        """
        if pool not in services.registry.specs:
            known = ", ".join(services.registry.specs)
            raise NotFound(f"There is no pool {pool[:64]!r}. There are: {known}.")
        lately = await self._read(services)
        facts = facts_of(services, services.registry.snapshot(pool), lately or {})
        economist = services.pipeline.routing.economist
        profile = economist.priors.profile(pool)
        return page(
            "pool.html",
            section="pools",
            actor=actor,
            now=services.clock.now(),
            refresh_s=REFRESH_S,
            one=facts,
            spec=facts.snapshot.spec,
            concerns=concerns_of(facts),
            has_database=lately is not None,
            cost=usd_nanos_per_million_now(services, facts.snapshot),
            learned=learned_lines(economist, pool),
            profile=profile,
            curves=[] if profile is None else curves(profile),
            minutes=LATELY_MINUTES,
            monotonic_s=monotonic(),
            history_hours=HISTORY_HOURS,
        )

    async def _read(self, services: Services) -> dict[str, PoolLately] | None:
        """The last minutes' attempts by pool; None: the database does not answer."""
        async with self._turn:
            start_s = services.clock.monotonic_s()
            if self._lately is None or start_s >= self._kept_until_s:
                since_ms = services.clock.epoch_ms() - LATELY_MINUTES * 60_000
                try:
                    async with services.sessions() as session:
                        self._lately = await pools_lately(session, since_ms=since_ms)
                except (SQLAlchemyError, OSError) as error:
                    _log.warning("the console could not read the database: %s", error)
                    return None
                end_s = services.clock.monotonic_s()
                self._kept_until_s = end_s + max(1.0, KEPT_TIMES * (end_s - start_s))
            return self._lately


async def show_pool_history(services: ServicesDep, session: SessionDep, pool: str) -> Response:
    """A pool's last days, hour by hour: a part of its page.

    Raises:
        NotFound: there is none of that name.
    """
    if pool not in services.registry.specs:
        raise NotFound(f"There is no pool {pool[:64]!r}.")
    now_ms = services.clock.epoch_ms()
    hours = await hours_of_pool(session, pool, from_ms=now_ms - HISTORY_HOURS * HOUR_MS, to_ms=now_ms)
    return page("pool_history.html", charts=history_charts(hours), hours=HISTORY_HOURS)


def history_charts(hours: list[HourOfPool]) -> list[Chart]:
    """What the hourly sums have; empty where nothing ran."""
    labels = [instant_text(one.start_ms)[5:16].replace("T", " ") for one in hours]
    charts = []
    if any(one.requests or one.failed_attempts for one in hours):
        charts.append(
            Chart(
                id="hours",
                title="Requests per hour, UTC",
                description="Bars of first attempts and of failed attempts at this pool, hour by hour.",
                across="Hour (UTC)",
                labels=labels,
                series=[
                    Series("Requests", [one.requests for one in hours], tone="accent"),
                    Series("Failed attempts", [one.failed_attempts for one in hours], tone="bad"),
                ],
                unit="count",
            )
        )
    if any(one.output_tokens for one in hours):
        charts.append(
            Chart(
                id="tokens",
                title="Output tokens per hour, UTC",
                description="A line of the tokens that the pool wrote, hour by hour.",
                across="Hour (UTC)",
                labels=labels,
                series=[Series("Output tokens", [one.output_tokens for one in hours], kind="line")],
                unit="count",
            )
        )
    if any(one.busy_ratio is not None for one in hours):
        charts.append(
            Chart(
                id="busy",
                title="Busy share of the time that replicas served, UTC",
                description="A line of the share of its serving time in which the pool worked, hour by hour.",
                across="Hour (UTC)",
                labels=labels,
                series=[Series("Busy", [one.busy_ratio for one in hours], kind="line")],
                unit="ratio",
            )
        )
    if any(one.usd_nanos_per_million is not None for one in hours):
        charts.append(
            Chart(
                id="million",
                title="Cost of a million tokens, input and output, USD, UTC",
                description="A line of what the pool's hardware cost by a million tokens, hour by hour.",
                across="Hour (UTC)",
                labels=labels,
                series=[Series("Cost", [one.usd_nanos_per_million for one in hours], kind="line")],
                unit="usd",
            )
        )
    return charts


def _urgent_first(facts: list[PoolFacts]) -> list[Concern]:
    order = list(Severity)
    found = [one for each in facts for one in concerns_of(each)]
    return sorted(found, key=lambda one: order.index(one.severity))
