"""How is the program put together? Settings → objects → one FastAPI app and its lifespan.

The composition root: the only file that names concrete parts together. The data plane's raw door is the
app's outermost middleware; everything else is plain FastAPI.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.types import Receive, Scope, Send

from backends.files import PoolFileError, load_pools
from backends.fleet_file import FLEET_FILE_NAME
from backends.monitor import FleetMonitor
from backends.registry import PoolRegistry
from gateway.admin import admin_keys, audit, keys, projects, tenants, usage
from gateway.api import health, openapi
from gateway.api.control_errors import add_error_answers
from gateway.api.docs import add_docs
from gateway.api.edge import Edge
from gateway.clock import Clock
from gateway.console.overview import console_router
from gateway.db import create_engine, read_changes, session_factory
from gateway.dependencies import Runtime, Services, guard
from gateway.errors import ConfigurationError
from gateway.identity.admin_store import list_admin_keys
from gateway.identity.admins import AdminRing, Logins
from gateway.identity.audit import TOPIC
from gateway.identity.auth import KeyRing
from gateway.identity.key_store import list_keys
from gateway.identity.root_key import load_admin_key, load_root_key
from gateway.ledger.budgets import Holds
from gateway.ledger.settlement import Settlement
from gateway.ledger.shipper import Shipper
from gateway.ledger.spool import Spool
from gateway.migrate import require_current
from gateway.pipeline import Pipeline, Routing
from gateway.pricing.catalog import price_book
from gateway.pricing.store import remember_versions
from gateway.protocols.openai import ParseLimits
from gateway.routing.policy import load_policy
from gateway.routing.versions import remember_version
from gateway.settings import Settings
from gateway.telemetry import Telemetry
from gateway.upstream.client import UpstreamClient
from gateway.upstream.dispatch import Dispatcher

SPOOL_FOLDER = "spool"
BODY_BYTES_MAX = 1_000_000
"""Of a request to the control plane; the data plane has a limit of its own."""
STOP_S = 15.0
"""For the last database calls at a stop: more than a writer on SQLite waits for another one."""

_Read = Callable[[], float]

_log = logging.getLogger(__name__)


def create_app(settings: Settings, *, clock: Clock | None = None) -> FastAPI:
    """The application, not started.

    Raises:
        ConfigurationError: a pool file, the policy or a key is wrong.
    """
    runtime = Runtime()
    parts = _Parts(settings, clock or Clock())

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        async with parts.running() as services:
            runtime.services = services
            try:
                yield
            finally:
                runtime.services = None

    app = _Application(
        runtime,
        title="Tollgate",
        summary="A cost-aware gateway for a company's own vLLM fleet",
        version="0.1.0",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(guard)],
        max_body_size=BODY_BYTES_MAX,
    )
    app.state.runtime = runtime
    add_error_answers(app)
    app.include_router(health.router)
    for room in (usage, tenants, projects, keys, admin_keys, audit):
        app.include_router(room.router)
    app.include_router(console_router())
    add_docs(app)
    openapi.describe(app)
    return app


class _Application(FastAPI):
    """The one application object, with the raw door around everything that FastAPI puts around a request.

    A middleware would stand inside FastAPI's own layers, which wrap every chunk of a stream.
    """

    def __init__(self, runtime: Runtime, **options: Any) -> None:
        super().__init__(**options)
        self._edge = Edge(super().__call__, runtime)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or the lifespan."""
        await self._edge(scope, receive, send)


class _Parts:
    """Everything that lives as long as the program serves."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        try:
            pools = load_pools(settings.pools)
        except PoolFileError as error:
            raise ConfigurationError(str(error)) from None
        self._policy = load_policy(settings.policy, pools=pools)
        self._prices = price_book(pools)
        self._registry = PoolRegistry(pools)
        self._root_key = load_root_key(settings)
        self._admin_key = load_admin_key(settings)
        self._keys = KeyRing(self._root_key, clock, stale_max_s=settings.freshness.auth_stale_max_s)
        self._admins = AdminRing(self._admin_key, clock, stale_max_s=settings.freshness.auth_stale_max_s)
        self._telemetry = Telemetry()
        self._revision: int | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Services]:
        """The services, from the first key loaded to the last record shipped."""
        settings = self._settings
        engine = create_engine(settings.effective_database_url)
        client = UpstreamClient(connect_timeout_s=settings.timeouts.connect_s)
        spool = Spool(
            settings.state_dir / SPOOL_FOLDER,
            self._clock,
            unshipped_max=settings.limits.unshipped_records_max,
        )
        try:
            services, shipper = await self._build(engine, client, spool)
            stopping = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                monitoring = group.create_task(self._monitor().run())
                in_database = [
                    group.create_task(shipper.run()),
                    group.create_task(self._keep_keys_fresh(services, stopping)),
                ]
                try:
                    yield services
                finally:
                    monitoring.cancel()
                    shipper.stop()
                    stopping.set()
                    # What talks to the database ends by itself: a call that is cut leaves a connection that
                    # holds its locks. Only a database that hangs is not waited for.
                    _, late = await asyncio.wait(in_database, timeout=STOP_S)
                    for task in late:
                        task.cancel()
        finally:
            await client.close()
            spool.close()
            await engine.dispose()

    async def _build(
        self, engine: AsyncEngine, client: UpstreamClient, spool: Spool
    ) -> tuple[Services, Shipper]:
        settings, clock = self._settings, self._clock
        await require_current(engine)
        sessions = session_factory(engine)
        shipper = Shipper(spool, sessions, settings.spool)
        await shipper.recover()
        async with sessions() as session:
            await remember_version(session, self._policy, now_ms=clock.epoch_ms())
            await remember_versions(session, self._prices, now_ms=clock.epoch_ms())
            await session.commit()
        dispatcher = Dispatcher(
            self._registry, client, settings.timeouts, attempts_max=settings.limits.attempts_max
        )
        holds = Holds()
        pipeline = Pipeline(
            routing=Routing(policy=self._policy, prices=self._prices),
            registry=self._registry,
            dispatcher=dispatcher,
            holds=holds,
            settlement=Settlement(spool, clock),
            telemetry=self._telemetry,
            clock=clock,
        )
        services = Services(
            settings=settings,
            clock=clock,
            sessions=sessions,
            keys=self._keys,
            admins=self._admins,
            logins=Logins(self._root_key, self._admins, clock),
            registry=self._registry,
            pipeline=pipeline,
            spool=spool,
            telemetry=self._telemetry,
            parse_limits=ParseLimits(
                messages_max=settings.limits.messages_max, choices_max=settings.limits.choices_max
            ),
            admin_key=self._admin_key,
            root_key=self._root_key,
        )
        await self._refresh_keys(services)
        self._watch_gauges(services, holds)
        return services, shipper

    def _monitor(self) -> FleetMonitor:
        fleet_file: Path = self._settings.state_dir / FLEET_FILE_NAME
        return FleetMonitor(self._registry, fleet_file=fleet_file)

    def _watch_gauges(self, services: Services, holds: Holds) -> None:
        watch = self._telemetry.watch
        watch("tollgate_spool_unshipped", "Ended attempts not yet in the database", _count(services.spool))
        watch("tollgate_attempts_open", "Attempts under way", lambda: services.spool.open_count)
        watch("tollgate_held_usd", "Held for requests under way, USD", lambda: holds.held_usd_nanos / 1e9)
        watch(
            "tollgate_keys_age_seconds", "Since the keys were last confirmed", lambda: self._keys.age_s or 0
        )
        self._telemetry.watch_by_label(
            "tollgate_replicas_ready",
            "Replicas that can take a request",
            label="pool",
            read={name: _ready(self._registry, name) for name in self._registry.specs},
        )

    async def _keep_keys_fresh(self, services: Services, stopping: asyncio.Event) -> None:
        """Look for changes at short intervals; a database that is away is survived (keys grow stale)."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), self._settings.freshness.poll_interval_s)
            if stopping.is_set():
                return
            try:
                await self._refresh_keys(services)
            except (SQLAlchemyError, OSError) as error:
                _log.warning("keys could not be refreshed (known ones stay valid for a while): %s", error)

    async def _refresh_keys(self, services: Services) -> None:
        async with services.sessions() as session:
            revision = (await read_changes(session)).get(TOPIC, 0)
            if revision == self._revision:
                self._keys.confirm()
                self._admins.confirm()
                return
            self._keys.replace(await list_keys(session))
            self._admins.replace(await list_admin_keys(session))
            self._revision = revision


def _count(spool: Spool) -> _Read:
    return lambda: spool.unshipped_count


def _ready(registry: PoolRegistry, pool: str) -> _Read:
    return lambda: registry.snapshot(pool).ready_count
