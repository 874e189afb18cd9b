"""How is the program put together? Settings → objects → one FastAPI app and its lifespan.

The composition root: the only file that names concrete parts together. The data plane's raw door is the
app's outermost middleware; everything else is plain FastAPI.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from fastapi import Depends, FastAPI
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from starlette.types import Receive, Scope, Send

from backends.asks import Asks
from backends.breaker import BreakerRule, BreakerState, Standing
from backends.files import PoolFileError, load_pools
from backends.fleet_file import FLEET_FILE_NAME
from backends.monitor import FleetMonitor
from backends.profile import ProfileError
from backends.registry import PoolRegistry
from gateway.admin.routers import ROUTERS
from gateway.api import health, openapi
from gateway.api.control_errors import add_error_answers
from gateway.api.docs import add_docs
from gateway.api.edge import Edge
from gateway.cache.lookup import AnswerCache
from gateway.cache.pipelined import redis_storage
from gateway.cache.storage import CacheStorage, MemoryStorage
from gateway.clock import Clock
from gateway.console.router import console_router
from gateway.copies import copier_of
from gateway.db import SessionFactory, create_engine, session_factory
from gateway.dependencies import Runtime, Services, guard, require_guarded
from gateway.economist import Economist, Reader
from gateway.errors import ConfigurationError
from gateway.fleet_metrics import FleetMetrics
from gateway.freshness import ChangeWatcher, Reload
from gateway.identity.admin_store import list_admin_keys
from gateway.identity.admins import AdminRing, Logins
from gateway.identity.auth import KeyRing
from gateway.identity.guesses import Guesses
from gateway.identity.key_store import list_keys
from gateway.identity.limit_sharing import LimitSharing
from gateway.identity.limit_store import list_limits
from gateway.identity.people_store import list_people
from gateway.identity.root_key import load_admin_key, load_root_key
from gateway.identity.shedding import Shares, Shedder
from gateway.identity.tables import TOPIC
from gateway.jobs.alerts import alerts_scheduler
from gateway.jobs.auditor import Auditor
from gateway.jobs.backtests import Backtests
from gateway.jobs.canary_guard import CanaryGuard
from gateway.jobs.replica_time import ReplicaTimeKeeper
from gateway.jobs.scheduled_exports import exports_scheduler
from gateway.jobs.scheduler import Scheduler, jobs_of
from gateway.jobs.supply import supply_jobs
from gateway.learned_metrics import watch_learned
from gateway.ledger.admission import Budgets
from gateway.ledger.buckets import BudgetBook
from gateway.ledger.budget_store import TOPIC as BUDGETS_TOPIC
from gateway.ledger.budget_store import live_budgets
from gateway.ledger.budgets import Holds
from gateway.ledger.lessor import TOPIC as SLICES_TOPIC
from gateway.ledger.lessor import Lessor
from gateway.ledger.levels import LevelReader
from gateway.ledger.partitions import ensure_partitions
from gateway.ledger.settlement import Settlement
from gateway.ledger.shipper import Shipper
from gateway.ledger.spool import Spool
from gateway.lessons import Lessons
from gateway.pipeline import Pipeline
from gateway.policy_in_force import PolicyInForce
from gateway.pricing import tables as price_tables
from gateway.protocols.openai import ParseLimits
from gateway.redis_client import close_redis, redis_client, require_redis
from gateway.refusals import RefusalWriter
from gateway.routing import tables as policy_tables
from gateway.routing.priors import Priors
from gateway.routing.receipts import insert_receipts
from gateway.rule_metrics import watch_rules
from gateway.schema import require_current
from gateway.settings import HealthSettings, Settings
from gateway.telemetry import Telemetry
from gateway.upkeep import UpkeepBooks
from gateway.upstream.client import UpstreamClient
from gateway.upstream.dispatch import Dispatcher
from gateway.upstream.hedging import RATIO_OF_RULES, Hedging
from gateway.upstream.retry_budget import RetryBudget
from gateway.upstream.waking import Waker

SPOOL_FOLDER = "spool"
BODY_BYTES_MAX = 1_000_000
"""Of a request to the control plane; the data plane has a limit of its own."""
STOP_S = 15.0
"""For the last database calls at a stop: more than a writer on SQLite waits for another one."""

LEARNED_S_MAX = 1.0
"""Between two looks at what all processes have learned."""
CACHE_FLUSH_S = 2.0
"""For the last answers to be kept at a stop."""

_OPENNESS = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}

_Read = Callable[[], float]

_log = logging.getLogger(__name__)


def create_app(settings: Settings, *, clock: Clock | None = None, worker: int | None = None) -> Application:
    """The application, not started.

    Args:
        settings: everything that can be set.
        clock: what to take for the time; None: the machine's.
        worker: which of several processes this is, for its metrics; None: the only one.

    Raises:
        ConfigurationError: a pool file, the policy or a key is wrong.
    """
    runtime = Runtime(Telemetry(worker=worker))
    parts = _Parts(settings, clock or Clock(), runtime.telemetry)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        async with parts.running() as services:
            runtime.services = services
            try:
                yield
            finally:
                runtime.services = None

    app = Application(
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
    for router in ROUTERS:
        app.include_router(router)
    app.include_router(console_router())
    add_docs(app)
    openapi.describe(app)
    require_guarded(app)
    return app


class Application(FastAPI):
    """The one application object, with the raw door around everything that FastAPI puts around a request.

    A middleware would stand inside FastAPI's own layers, which wrap every chunk of a stream.
    """

    def __init__(self, runtime: Runtime, **options: Any) -> None:
        super().__init__(**options)
        self.edge = Edge(super().__call__, runtime)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or the lifespan."""
        await self.edge(scope, receive, send)


class _Part(Protocol):
    """What runs beside the requests and talks to the database."""

    async def run(self) -> None: ...

    def stop(self) -> None: ...


class _Parts:
    """Everything that lives as long as the program serves."""

    def __init__(self, settings: Settings, clock: Clock, telemetry: Telemetry) -> None:
        self._settings = settings
        self._clock = clock
        try:
            specs = load_pools(settings.pools)
        except PoolFileError as error:
            raise ConfigurationError(str(error)) from None
        self._registry = PoolRegistry(specs, breaker_rule=_breaker_rule(settings.health))
        self._economist = _economist(self._registry, clock)
        self._policies = PolicyInForce(settings, pools=specs, economist=self._economist, clock=clock)
        self._root_key = load_root_key(settings)
        self._admin_key = load_admin_key(settings)
        self._keys = KeyRing(self._root_key, clock, stale_max_s=settings.freshness.auth_stale_max_s)
        self._admins = AdminRing(self._admin_key, clock, stale_max_s=settings.freshness.auth_stale_max_s)
        self._telemetry = telemetry
        self._redis = (
            None if settings.redis_url is None else redis_client(settings.redis_url.get_secret_value())
        )

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
        lessor = self._lessor(engine, spool)
        scheduler = self._scheduler(engine, spool.owner_id)
        waker = Waker(self._registry, Asks(settings.state_dir))
        dispatcher = Dispatcher(
            self._registry,
            client,
            settings.timeouts,
            attempts_max=settings.limits.attempts_max,
            retries=RetryBudget(ratio=settings.retries.ratio, floor_per_s=settings.retries.floor_per_s),
            hedging=self._hedging(),
            outside=self._policies.outside,
            waker=waker,
        )
        self._watch_engines(dispatcher)
        try:
            watcher = ChangeWatcher(
                engine,
                session_factory(engine),
                poll_interval_s=settings.freshness.poll_interval_s,
                clock=self._clock,
            )
            reader, levels = self._reader(engine), LevelReader(session_factory(engine), self._clock)
            cache = await self._cache()
            services, shipper = await self._build(
                engine,
                dispatcher,
                spool,
                watcher=watcher,
                cache=cache,
                lessor=lessor,
                waker=waker,
                readers=(reader, levels),
            )
            self._watch_books(shipper, lessor, scheduler)
            books = UpkeepBooks(spool, self._clock, routing=lambda: services.pipeline.routing)
            monitor = self._monitor(books)
            FleetMetrics(self._registry, self._telemetry).watch(monitor, waker, books)
            keeper = ReplicaTimeKeeper(settings.state_dir, session_factory(engine), settings.supply)
            guard = self._guard(services)
            copier = copier_of(
                services.pipeline, settings.shadow, services.sessions, telemetry=self._telemetry
            )
            jobs = (scheduler, self._exports(engine, spool.owner_id), self._alerts(engine, spool.owner_id))
            refusals = RefusalWriter(services.pipeline.refusals, services.sessions)
            beside = (reader, levels, self._policies, keeper, guard, refusals, services.backtests)
            parts: list[_Part] = [copier, shipper, watcher, lessor, *jobs, *beside]
            async with self._working(cache, monitor, parts):
                yield services
            await self._give_back(lessor, spool)
        finally:
            await client.close()
            if self._redis is not None:
                await close_redis(self._redis)
            await self._policies.outside.close()
            spool.close()
            await engine.dispose()

    @contextlib.asynccontextmanager
    async def _working(
        self, cache: AnswerCache, monitor: FleetMonitor, parts: Sequence[_Part]
    ) -> AsyncIterator[None]:
        """What runs beside the requests."""
        async with asyncio.TaskGroup() as group:
            monitoring = group.create_task(monitor.run())
            keeping = group.create_task(cache.run())
            sharing = self._sharing()
            if sharing is not None:
                group.create_task(sharing.run())
            in_database = [group.create_task(each.run()) for each in parts]
            try:
                yield
            finally:
                monitoring.cancel()
                await cache.flush(timeout_s=CACHE_FLUSH_S)
                keeping.cancel()
                if sharing is not None:
                    sharing.stop()
                for each in parts:
                    each.stop()
                # What talks to the database ends by itself: a call that is cut leaves a connection that
                # holds its locks. Only a database that hangs is not waited for.
                _, late = await asyncio.wait(in_database, timeout=STOP_S)
                for task in late:
                    task.cancel()

    def _reader(self, engine: AsyncEngine) -> Reader:
        watch_learned(self._telemetry, self._economist)
        interval_s = min(LEARNED_S_MAX, 2 * self._settings.freshness.poll_interval_s)
        return Reader(self._economist, session_factory(engine), interval_s=interval_s)

    def _lessor(self, engine: AsyncEngine, spool: Spool) -> Lessor:
        return Lessor(
            Holds(),
            session_factory(engine),
            owner_id=spool.owner_id,
            settings=self._settings.budgets,
            clock=self._clock,
        )

    def _parse_limits(self) -> ParseLimits:
        limits = self._settings.limits
        return ParseLimits(messages_max=limits.messages_max, choices_max=limits.choices_max)

    async def _build(
        self,
        engine: AsyncEngine,
        dispatcher: Dispatcher,
        spool: Spool,
        *,
        watcher: ChangeWatcher,
        cache: AnswerCache,
        lessor: Lessor,
        waker: Waker,
        readers: tuple[Reader, LevelReader],
    ) -> tuple[Services, Shipper]:
        settings, clock = self._settings, self._clock
        await require_current(engine)
        sessions = session_factory(engine)
        shipper = Shipper(
            spool,
            sessions,
            settings.spool,
            clock=clock,
            insert_receipts=insert_receipts,
            learn=Lessons(frozenset(self._registry.specs)).learn,
            holds=lessor.holds,
            books=lessor.books,
        )
        await shipper.recover()
        await self._policies.start(sessions)
        await self._ensure_partitions(sessions)
        admission = Budgets(lessor.holds, lessor, clock)
        pipeline = Pipeline(
            routing=self._policies.routing,
            dispatcher=dispatcher,
            budgets=admission,
            settlement=Settlement(spool, clock),
            cache=cache,
            shedder=self._shedder(),
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
            guesses=Guesses(clock),
            registry=self._registry,
            pipeline=pipeline,
            policies=self._policies,
            backtests=Backtests(sessions, clock, settings),
            spool=spool,
            telemetry=self._telemetry,
            waker=waker,
            parse_limits=self._parse_limits(),
            admin_key=self._admin_key,
            root_key=self._root_key,
        )
        self._follow_changes(watcher, pipeline, admission=admission, lessor=lessor)
        await watcher.refresh()
        reader, levels = readers
        await reader.refresh()
        levels.serve(admission, is_wanted=lambda: pipeline.routing.watches_budgets)
        await levels.refresh()
        watch_rules(self._telemetry, pipeline)
        self._watch_gauges(services, lessor.holds)
        self._watch_cache(cache)
        return services, shipper

    def _follow_changes(
        self, watcher: ChangeWatcher, pipeline: Pipeline, *, admission: Budgets, lessor: Lessor
    ) -> None:
        """Take over what others change, as soon as it is told."""
        watcher.watch(TOPIC, self._reload_keys, confirm=self._confirm_keys)
        self._policies.follow(functools.partial(setattr, pipeline, "routing"))
        watcher.watch(price_tables.TOPIC, self._policies.reload_prices)
        watcher.watch(policy_tables.TOPIC, self._policies.reload)
        watcher.watch(BUDGETS_TOPIC, _reload_budgets(admission))
        watcher.watch(SLICES_TOPIC, lessor.recalled)

    async def _ensure_partitions(self, sessions: SessionFactory) -> None:
        async with sessions() as session:
            await ensure_partitions(session)
            await session.commit()

    async def _cache(self) -> AnswerCache:
        settings = self._settings.cache
        within_s = settings.lookup_timeout_ms / 1000
        storage: CacheStorage
        if self._redis is None:
            storage = MemoryStorage(self._clock, bytes_max=settings.memory_bytes_max)
        else:
            await require_redis(self._redis)
            storage = redis_storage(self._redis, within_s=within_s)
        return AnswerCache(storage, self._clock, entry_bytes_max=settings.entry_bytes_max)

    def _sharing(self) -> LimitSharing | None:
        """How this process holds limits together with others, where there may be others."""
        if self._redis is None:
            return None
        sharing = LimitSharing(self._keys.limiter, self._redis, self._clock)
        self._telemetry.watch(
            "tollgate_limits_alone",
            "1: Redis is away, limits hold for this process alone",
            lambda: sharing.is_alone,
        )
        self._telemetry.count(
            "tollgate_limit_exchanges_failed",
            "Exchanges of limits' counts that failed",
            lambda: sharing.failures,
        )
        return sharing

    def _scheduler(self, engine: AsyncEngine, holder: str) -> Scheduler:
        settings, clock, sessions = self._settings, self._clock, session_factory(engine)
        auditor = Auditor(sessions, clock, grace_s=settings.budgets.slice_grace_s)
        jobs = jobs_of(auditor, clock=clock, audit=settings.audit, budgets=settings.budgets)
        jobs += supply_jobs(self._registry, sessions, clock=clock, settings=settings.supply)
        return Scheduler(sessions, clock, jobs, holder=holder, first_after_s=settings.audit.interval_s)

    def _guard(self, services: Services) -> CanaryGuard:
        guard = CanaryGuard(
            services.sessions,
            self._clock,
            policies=self._policies,
            settings=self._settings,
            holder=services.spool.owner_id,
        )
        guard.watch(self._telemetry)
        return guard

    def _exports(self, engine: AsyncEngine, holder: str) -> Scheduler:
        sessions, url = session_factory(engine), self._settings.effective_database_url
        specs = self._registry.specs
        return exports_scheduler(sessions, self._clock, database_url=url, specs=specs, holder=holder)

    def _alerts(self, engine: AsyncEngine, holder: str) -> Scheduler:
        sessions, key = session_factory(engine), self._root_key
        return alerts_scheduler(sessions, self._clock, self._settings, root_key=key, holder=holder)

    def _monitor(self, books: UpkeepBooks) -> FleetMonitor:
        fleet_file: Path = self._settings.state_dir / FLEET_FILE_NAME
        rule = self._settings.health.rule
        return FleetMonitor(self._registry, fleet_file=fleet_file, rule=rule, on_upkeep=books.book)

    def _watch_gauges(self, services: Services, holds: Holds) -> None:
        self._policies.watch(self._telemetry)
        watch = self._telemetry.watch
        watch("tollgate_spool_unshipped", "Ended attempts not yet in the database", _count(services.spool))
        watch("tollgate_attempts_open", "Attempts under way", lambda: services.spool.open_count)
        watch("tollgate_held_usd", "Held for requests under way, USD", lambda: holds.held_usd_nanos / 1e9)
        watch(
            "tollgate_keys_age_seconds", "Since the keys were last confirmed", lambda: self._keys.age_s or 0
        )
        self._telemetry.count(
            "tollgate_rate_limited",
            "Requests that a limit held up",
            lambda: self._keys.limiter.refused,
        )
        self._telemetry.watch_by_label(
            "tollgate_replicas_ready",
            "Replicas that can take a request",
            label="pool",
            read={name: _ready(self._registry, name) for name in self._registry.specs},
        )
        self._telemetry.count_by_labels(
            "tollgate_replica_choices",
            "Requests to replicas of a pool, by why that one was chosen",
            labels=("pool", "why"),
            read=lambda: _choices(self._registry),
        )

    def _shedder(self) -> Shedder:
        asked = self._settings.overload
        shares = Shares(asked.flex_share, asked.default_share, reserved=asked.reserved_share)
        shedder = Shedder(self._in_flight_max, shares=shares, weights=asked.tenant_weights)
        watch, count = self._telemetry.watch, self._telemetry.count_each
        watch("tollgate_in_flight", "Calls that models are asked for now", lambda: shedder.under_way)
        watch("tollgate_in_flight_max", "Calls that may be under way", lambda: shedder.in_flight_max)
        count("tollgate_shed", "Calls refused for want of room", label="tier", read=lambda: shedder.shed)
        return shedder

    def _in_flight_max(self) -> int:
        """How many calls this process may have under way now, by what the ready replicas take."""
        asked = self._settings.overload
        if asked.in_flight_max is not None:
            return asked.in_flight_max
        slots = sum(pool.spec.batching.max_num_seqs * pool.ready_count for pool in self._registry.snapshots())
        return max(asked.in_flight_min, int(slots * asked.per_slot / self._settings.workers))

    def _hedging(self) -> Hedging:
        asked, count = self._settings.hedging, self._telemetry.count
        hedging = Hedging(
            ratio=asked.ratio or RATIO_OF_RULES,
            quantile=asked.quantile,
            delay_s_min=asked.delay_s_min,
            is_usual=bool(asked.ratio),
        )
        made = hedging.allowance
        count("tollgate_hedges", "Streams that were asked for a second time", lambda: made.made)
        count("tollgate_hedges_won", "Of these, answered by the second one", lambda: hedging.won)
        count("tollgate_hedges_refused", "Hedges that their allowance forbade", lambda: made.refused)
        return hedging

    def _watch_engines(self, dispatcher: Dispatcher) -> None:
        count, retries = self._telemetry.count, dispatcher.retries
        count(
            "tollgate_retries",
            "Attempts again, but for those after a refused connection",
            lambda: retries.made,
        )
        count("tollgate_retries_refused", "Attempts that the retry budget forbade", lambda: retries.refused)
        self._telemetry.watch_each(
            "tollgate_replica_breaker",
            "Whether a replica is left alone for failing: 0 closed, 1 half open, 2 open",
            label="replica",
            read=lambda: {name: _OPENNESS[one.state] for name, one in self._standings().items()},
        )
        self._telemetry.count_each(
            "tollgate_replica_ejections",
            "Times that a replica's breaker opened",
            label="replica",
            read=lambda: {name: one.opened for name, one in self._standings().items()},
        )
        self._telemetry.count_each(
            "tollgate_replica_spared",
            "Times that a replica was kept though slow, being its pool's last",
            label="replica",
            read=lambda: {name: one.spared for name, one in self._standings().items()},
        )

    def _standings(self) -> dict[str, Standing]:
        return {one.replica: one.breaker for pool in self._registry.snapshots() for one in pool.replicas}

    def _watch_cache(self, cache: AnswerCache) -> None:
        count = self._telemetry.count
        count("tollgate_cache_hits", "Requests answered from the cache", lambda: cache.hits)
        count("tollgate_cache_misses", "Lookups that found nothing", lambda: cache.misses)
        count(
            "tollgate_cache_failures",
            "Lookups and writes that failed or were too slow",
            lambda: cache.failures,
        )
        count("tollgate_cache_not_kept", "Answers too large or too many to keep", lambda: cache.not_kept)

    def _watch_books(self, shipper: Shipper, lessor: Lessor, scheduler: Scheduler) -> None:
        count, watch, verdict = self._telemetry.count, self._telemetry.watch, scheduler.verdict
        count("tollgate_budget_alerts", "Shares of budgets that were used up", lambda: shipper.alerts)
        count("tollgate_budget_refusals", "Requests that a budget could not hold", lambda: lessor.refused)
        count("tollgate_budget_rounds", "Talks with the database about slices", lambda: lessor.rounds)
        count("tollgate_budget_recalls", "Recalls of what others held idle", lambda: lessor.recalls)
        count(
            "tollgate_budget_overage_usd",
            "Booked beyond what was lent, USD",
            lambda: shipper.overage_usd_nanos / 1e9,
        )
        count(
            "tollgate_spool_contradictions",
            "Attempts that came with two different ends",
            lambda: shipper.contradictions,
        )
        watch(
            "tollgate_budget_slices_last_seconds",
            "How long known slices last at their pace without the database",
            lessor.lasts_s,
        )
        watch("tollgate_audit_breaches", "Breaches in the last audit of the books", lambda: verdict.breaches)
        watch(
            "tollgate_audit_last_success_timestamp_seconds",
            "When the books were last audited",
            lambda: verdict.last_success_s,
        )

    async def _give_back(self, lessor: Lessor, spool: Spool) -> None:
        """Give back what was lent, if all that was spent is booked; if not, the spool is recovered later."""
        if spool.unshipped_count or spool.open_count:
            return
        try:
            async with asyncio.timeout(STOP_S):
                await lessor.close()
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            _log.warning("what was lent is not given back (it will be at expiry): %s", error)

    async def _reload_keys(self, session: AsyncSession) -> None:
        self._keys.replace(await list_keys(session), await list_limits(session))
        self._admins.replace(await list_admin_keys(session), await list_people(session))

    def _confirm_keys(self) -> None:
        self._keys.confirm()
        self._admins.confirm()


def _economist(registry: PoolRegistry, clock: Clock) -> Economist:
    """Who predicts, with the pools' profiles.

    Raises:
        ConfigurationError: a profile cannot be used.
    """
    try:
        return Economist(registry, Priors(registry.specs), clock=clock)
    except ProfileError as error:
        raise ConfigurationError(str(error)) from None


def _breaker_rule(asked: HealthSettings) -> BreakerRule:
    return BreakerRule(
        failures_in_a_row=asked.failures_in_a_row,
        failure_ratio=asked.failure_ratio,
        backoff_s=asked.backoff_s,
        backoff_s_max=asked.backoff_s_max,
    )


def _reload_budgets(admission: Budgets) -> Reload:
    async def reload(session: AsyncSession) -> None:
        admission.book = BudgetBook(await live_budgets(session))

    return reload


def _count(spool: Spool) -> _Read:
    return lambda: spool.unshipped_count


def _ready(registry: PoolRegistry, pool: str) -> _Read:
    return lambda: registry.snapshot(pool).ready_count


def _choices(registry: PoolRegistry) -> dict[tuple[str, ...], float]:
    return {(pool, why): count for pool in registry.specs for why, count in registry.choices(pool).items()}
