"""Are the replicas alive, do they serve, how loaded are they?

One loop per replica, so that a hanging one delays nobody; one more follows which replicas there are. Writes
into the registry, decides nothing else. Health is asked every interval; a replica that is not READY has to
generate a token before it becomes so, the first time and after each ejection (once its breaker's backoff is
over). One that is READY has to when its engine does not seem to move (`liveness.py`): looks go on meanwhile.
Where the process driver runs a replica, what the driver says goes first: one that starts, warms up, drains or
sleeps is not looked at, and one that hangs or lies is told to the driver (`asks.py`), which starts it again.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import ssl
import time
from pathlib import Path

import httpx

from backends.asks import Asks
from backends.fleet_file import Fleet, FleetReplica, read_fleet
from backends.keepwarm import WarmUp, warm_up
from backends.liveness import HealthRule, Liveness
from backends.pool import PoolSpec, ReplicaSnapshot, ReplicaState
from backends.probe import Problem, health_problem, serving_problem
from backends.registry import PoolRegistry, Trouble
from backends.scrape import NotVllmMetrics, parse_metrics
from backends.upkeep import OnUpkeep, Tokens, Upkeep, UpkeepKind, new_upkeep

_LOG = logging.getLogger(__name__)

_TIMEOUT_S = 2.0
_MISSES_TO_EJECT = 3
"""One slow /health is the hiccup of a busy server; a refused connection ejects at once."""
_HURRY_S = 0.1
"""Between two looks while a request waits for a replica that wakes."""
_LOAD_AGE_S_MAX = 10.0
"""A load is kept through a missed scrape, which happens just when a server is busy, but not for long."""

_LOOKED_AT = frozenset({None, ReplicaState.READY})
"""States of the driver in which there is something to see."""
_DRIVERS_OWN = frozenset({ReplicaState.SLEEPING, ReplicaState.WAKING, ReplicaState.STOPPED})


@functools.cache
def _trust() -> ssl.SSLContext:
    """What httpx trusts by itself, read once in a process: it takes 20 ms."""
    return httpx.create_ssl_context()


class FleetMonitor:
    """Keeps a registry true. `run` until cancelled."""

    def __init__(
        self,
        registry: PoolRegistry,
        *,
        fleet_file: Path | None,
        rule: HealthRule | None = None,
        on_upkeep: OnUpkeep | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Only remembers.

        Args:
            registry: what the request path reads.
            fleet_file: `<state>/fleet.json` of the process driver; None where no pool has that driver.
            rule: how closely it looks; None: as `HealthRule` says.
            on_upkeep: is told of the tokens that looking and warming up used, the driver's too.
            transport: in place of the network, for tests.
        """
        self.registry = registry
        self._fleet_file = fleet_file
        self.asks = None if fleet_file is None else Asks(fleet_file.parent)
        self.rule = rule or HealthRule()
        self._on_upkeep = on_upkeep
        self._told_upkeep: set[str] = set()
        self._driven: dict[str, FleetReplica] = {}
        """What the driver says of the replicas that it runs."""
        self.probes = 0
        """Tokens that replicas were made to generate, to see whether they do."""
        self.hangs = 0
        """Replicas that were taken out because their engine did not move."""
        self._transport = transport
        self._fleet: Fleet | None = None
        self._file_state: tuple[int, int, int] | None = None
        """Modification time, inode and size of the fleet file when it was read."""

    async def run(self) -> None:
        """Watch all replicas until cancelled."""
        # trust_env off: a company's HTTP proxy is not the way to its own replicas.
        async with (
            httpx.AsyncClient(  # noqa: TID251 - control plane
                trust_env=False,
                verify=_trust(),
                timeout=_TIMEOUT_S,
                transport=self._transport,
                # Idle connections go before vLLM closes them (5 s), whatever the interval.
                limits=httpx.Limits(max_connections=None, keepalive_expiry=4.0),
            ) as client,
            asyncio.TaskGroup() as group,
        ):
            for pool, spec in self.registry.specs.items():
                if spec.driver == "external":
                    self.registry.set_replicas(
                        pool, {f"{pool}-{index}": url for index, url in enumerate(spec.urls)}
                    )
            watched: dict[tuple[str, str], asyncio.Task[None]] = {}
            while True:
                self._follow_fleet_file()
                present = {
                    (replica.replica, replica.url): snapshot.spec
                    for snapshot in self.registry.snapshots()
                    for replica in snapshot.replicas
                }
                for key in [key for key in watched if key not in present]:
                    watched.pop(key).cancel()
                for key, spec in present.items():
                    if key not in watched:
                        watch = _Watch(self, client, spec, name=key[0], url=key[1])
                        watched[key] = group.create_task(watch.run())
                await asyncio.sleep(self.pause_s)

    @property
    def pause_s(self) -> float:
        """Between two looks."""
        interval_s = self.rule.poll_interval_s
        return min(_HURRY_S, interval_s) if self.registry.awaited else interval_s

    def driver_state(self, replica: str) -> ReplicaState | None:
        """What the driver says of it; None: nobody here runs it."""
        driven = self._driven.get(replica)
        return None if driven is None else driven.state

    def tell_upkeep(self, spent: Upkeep) -> None:
        """Tokens were used on our account."""
        if self._on_upkeep is None:
            return
        try:
            self._on_upkeep(spent)
        except Exception:  # noqa: BLE001 - what books it must not end the watch over all replicas
            _LOG.exception("what was used on replica %s could not be booked", spent.replica)

    def _follow_fleet_file(self) -> None:
        """Make the living fleet's replicas those of the registry; without one there are none."""
        if self._fleet_file is None:
            return
        try:
            is_changed = self._read_if_changed(self._fleet_file)
        except (OSError, ValueError) as error:
            self._fleet, is_changed = None, True
            _LOG.warning("fleet file ignored: %s", error)
        if self._fleet is not None and not self._fleet.owner.is_alive:
            # Its replicas end with it; what it wrote is the past.
            self._fleet, is_changed = None, True
        if is_changed:
            self._adopt(self._fleet)

    def _read_if_changed(self, path: Path) -> bool:
        try:
            status = path.stat()
            file_state = (status.st_mtime_ns, status.st_ino, status.st_size)
        except FileNotFoundError:
            file_state = None
        if file_state == self._file_state:
            return False
        self._file_state = file_state
        self._fleet = read_fleet(path)
        return True

    def _adopt(self, fleet: Fleet | None) -> None:
        replicas = () if fleet is None else fleet.replicas
        for pool, spec in self.registry.specs.items():
            if spec.driver != "process":
                continue
            ours = {one.replica: one for one in replicas if one.pool == pool}
            try:
                self.registry.set_replicas(pool, {name: one.url for name, one in ours.items()})
            except ValueError as error:
                _LOG.warning("replicas of the fleet file ignored: %s", error)
                continue
            for name, one in ours.items():
                self._driven[name] = one
                self._follow_driver(one)
        self._driven = {one.replica: one for one in replicas if one.replica in self._driven}
        if fleet is not None and self._on_upkeep is not None:
            for upkeep in fleet.upkeep:
                if upkeep.id not in self._told_upkeep:
                    self.tell_upkeep(upkeep)
            self._told_upkeep = {upkeep.id for upkeep in fleet.upkeep}

    def _follow_driver(self, one: FleetReplica) -> None:
        registry = self.registry
        troubles = tuple(Trouble(error.at_ms, error.text) for error in one.errors)
        registry.set_driver_facts(one.replica, restarts=one.restarts, troubles=troubles, wake_s=one.wake_s)
        known = registry.state(one.replica)
        if one.state is not ReplicaState.READY:
            detail = one.detail or f"the process driver says {one.state}"
            if (known, registry.detail(one.replica)) != (one.state, detail):
                registry.set_state(one.replica, one.state, detail)
                if one.state in _DRIVERS_OWN:
                    registry.set_load(one.replica, None)  # what it was is over
        elif known is ReplicaState.DRAINING:
            # It stays after all, and nothing was wrong with it.
            registry.set_state(one.replica, ReplicaState.READY)
        elif known in _DRIVERS_OWN:
            # That it is up is the driver's word; that it serves is our own business. Who waits, waits on.
            state = ReplicaState.STARTING if known is ReplicaState.STOPPED else ReplicaState.WAKING
            registry.set_state(one.replica, state, "is up, not looked at yet")


class _Watch:
    """The loop of one replica at one address."""

    def __init__(
        self,
        monitor: FleetMonitor,
        client: httpx.AsyncClient,  # noqa: TID251 - control plane
        spec: PoolSpec,
        *,
        name: str,
        url: str,
    ) -> None:
        self._monitor = monitor
        self._registry = monitor.registry
        self._client = client
        self._spec = spec
        self._name = name
        self._url = url
        self._misses = 0
        self._liveness = Liveness(monitor.rule, time.monotonic())
        # The driver has warmed up what it runs; of others' servers nobody knows whether they are cold.
        self._shall_warm_up = spec.driver == "external" and spec.keep_warm.warm_up is True
        self._doubt: asyncio.Task[None] | None = None

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    await self._look(group)
                except Exception:  # noqa: BLE001 - the boundary of a loop that must go on
                    # A replica that answers in a way nobody foresaw must not end the watch over it, nor (they
                    # share a task group) that over all others.
                    _LOG.exception("watching replica %s failed; trying again", self._name)
                await asyncio.sleep(self._monitor.pause_s)

    async def _look(self, group: asyncio.TaskGroup) -> None:
        if self._monitor.driver_state(self._name) not in _LOOKED_AT:
            return
        problem, _ = await asyncio.gather(
            health_problem(self._client, self._url, timeout_s=_TIMEOUT_S), self._scrape()
        )
        replica = self._replica()
        if replica is None:
            return
        is_ready = replica.state is ReplicaState.READY
        if problem is None:
            self._misses = 0
            if is_ready:
                self._doubt_if_still(replica, group)
            elif time.monotonic() >= replica.breaker.retry_at_s:
                await self._prove()
            return
        self._misses += 1
        if not is_ready:
            self._registry.set_state(self._name, replica.state, str(problem))
        elif problem.is_certain or self._misses >= _MISSES_TO_EJECT:
            self._registry.set_state(self._name, ReplicaState.UNHEALTHY, str(problem))

    async def _prove(self) -> None:
        """Make it READY if it generates a token."""
        problem = await (self._warm_up() if self._shall_warm_up else self._probe())
        if self._replica() is None:
            return
        if problem is None:
            self._shall_warm_up = False
            self._liveness.alive(time.monotonic())
            self._registry.set_state(self._name, ReplicaState.READY)
        else:
            self._registry.take_out(self._name, str(problem))
            if problem.is_lie:
                self._tell_driver(str(problem))

    def _tell_driver(self, why: str) -> None:
        """It shall look at the replica, and start it again if it agrees."""
        asks = self._monitor.asks
        if asks is not None and self._monitor.driver_state(self._name) is not None:
            asks.examine(self._name, why)

    def _doubt_if_still(self, replica: ReplicaSnapshot, group: asyncio.TaskGroup) -> None:
        """Begin to look closely at a replica that seems to hang, or that was spared for being the last."""
        load = replica.load
        is_busy = replica.in_flight > 0 or (load is not None and load.requests_running > 0)
        is_doubtful = self._liveness.is_doubtful(time.monotonic(), is_busy=is_busy)
        if self._spec.sleep is not None and not is_busy:
            # A look would keep it from falling asleep; its driver knows its own looks from requests.
            is_doubtful = False
        if self._doubt is None and (is_doubtful or replica.breaker.is_suspected):
            self._doubt = group.create_task(self._settle_doubt())

    async def _settle_doubt(self) -> None:
        """Take it out if it does not generate; it may go on serving until that is known."""
        asked_at_s = time.monotonic()
        try:
            problem = await self._probe()
            replica = self._replica()
            if replica is None or replica.state is not ReplicaState.READY:
                return
            now_s = time.monotonic()
            if problem is None:
                self._liveness.alive(now_s)
                if replica.breaker.is_suspected:
                    self._registry.clear_of_suspicion(self._name)
            elif self._liveness.is_dead(asked_at_s, now_s):
                still_s = now_s - self._liveness.moved_at_s
                self._monitor.hangs += 1
                _LOG.warning("replica %s is taken out, still for %.0f s: %s", self._name, still_s, problem)
                why = f"hangs, nothing moved for {still_s:.0f} s: {problem}"
                self._registry.take_out(self._name, why)
                self._tell_driver(why)
            elif replica.breaker.is_suspected:
                self._registry.clear_of_suspicion(self._name)
        except Exception:  # noqa: BLE001 - as in `run`: an answer that nobody foresaw
            _LOG.exception("a look at replica %s failed; trying again", self._name)
        finally:
            self._doubt = None

    async def _probe(self) -> Problem | None:
        self._monitor.probes += 1
        name, timeout_s = self._spec.model.served_name, self._monitor.rule.probe_timeout_s
        began_s = time.monotonic()

        def used(tokens: Tokens) -> None:
            self._spent(UpkeepKind.HEARTBEAT, tokens, took_s=time.monotonic() - began_s)

        return await serving_problem(self._client, self._url, name, timeout_s=timeout_s, on_tokens=used)

    async def _warm_up(self) -> Problem | None:
        done = await warm_up(
            self._client,
            self._url,
            self._spec,
            limit_s=self._spec.keep_warm.warm_up_s,
            first_token_s=self._monitor.rule.probe_timeout_s,
        )
        if not isinstance(done, WarmUp):
            return done
        _LOG.info("replica %s is %s", self._name, done)
        self._spent(UpkeepKind.WARM_UP, done.tokens, took_s=done.took_s)
        return None

    def _spent(self, kind: UpkeepKind, tokens: Tokens, *, took_s: float) -> None:
        if tokens.total:
            spent = new_upkeep(self._spec.name, self._name, kind, tokens=tokens, took_s=took_s)
            self._monitor.tell_upkeep(spent)

    async def _scrape(self) -> None:
        try:
            # Piece by piece: an answer of httpx (0.28) and its stream refer to each other, and a text that it
            # holds stays in memory until the garbage collector comes, which is a minute or longer.
            async with self._client.stream("GET", f"{self._url}/metrics", timeout=_TIMEOUT_S) as answer:
                answer.raise_for_status()
                text = "".join([piece async for piece in answer.aiter_text()])
            load = parse_metrics(text, scraped_at_s=time.monotonic())
        except (httpx.HTTPError, NotVllmMetrics) as error:
            _LOG.debug("no load from replica %s: %s", self._name, error)
            replica = self._replica()
            if replica and replica.load and time.monotonic() - replica.load.scraped_at_s > _LOAD_AGE_S_MAX:
                self._registry.set_load(self._name, None)
                self._liveness.saw(None, time.monotonic())
            return
        self._liveness.saw(load, load.scraped_at_s)
        if self._replica() is not None:
            self._registry.set_load(self._name, load)

    def _replica(self) -> ReplicaSnapshot | None:
        """What the registry says of it now; None once it is no longer there at this address."""
        for replica in self._registry.snapshot(self._spec.name).replicas:
            if replica.replica == self._name and replica.url == self._url:
                return replica
        return None
