"""The monitor against servers whose every answer the test decides."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from backends.breaker import BreakerRule, BreakerState
from backends.fleet_file import Fleet, FleetOwner, FleetReplica, read_fleet, write_fleet
from backends.liveness import HealthRule
from backends.monitor import FleetMonitor
from backends.pool import PoolSpec, ReplicaSnapshot, ReplicaState
from backends.registry import PoolRegistry
from backends.upkeep import OnUpkeep, Upkeep, UpkeepKind
from backends.warm_spec import KeepWarmSpec, SleepSpec
from tests.integration.backends.conftest import pool_named
from tests.support.tiny_replica import METRICS

INTERVAL_S = 0.02
RULE = HealthRule(poll_interval_s=INTERVAL_S)


class Pieces(httpx.AsyncByteStream):
    """A body that comes."""

    def __init__(self, text: str) -> None:
        self._text = text

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._text.encode()


@dataclass
class Server:
    """One replica as the network shows it."""

    health: int | Exception = 200
    completion: int | Exception = 200
    metrics: str | Exception = METRICS
    models: tuple[str, ...] = ("reference",)
    seen: list[str] = field(default_factory=list)
    hang: asyncio.Event | None = None

    async def answer(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request.url.path)
        if self.hang is not None:
            await self.hang.wait()
        match request.url.path:
            case "/health":
                return self.response(self.health, "")
            case "/metrics":
                if isinstance(self.metrics, Exception):
                    raise self.metrics
                # In pieces, as from a socket: an answer made of a text would hold it from the start.
                return httpx.Response(200, stream=Pieces(self.metrics))
            case "/v1/completions":
                return self.response(self.completion, {"usage": {"completion_tokens": 1}})
            case _:
                return httpx.Response(200, json={"data": [{"id": name} for name in self.models]})

    @staticmethod
    def response(status: int | Exception, body: object) -> httpx.Response:
        if isinstance(status, Exception):
            raise status
        return httpx.Response(status, json=body)


def external(*hosts: str) -> PoolSpec:
    spec = pool_named("plain")
    urls = tuple(f"http://{host}:8000" for host in hosts)
    model = spec.model.model_copy(update={"path": None})
    return spec.model_copy(update={"driver": "external", "urls": urls, "model": model})


@contextlib.asynccontextmanager
async def monitored(
    registry: PoolRegistry,
    servers: dict[str, Server],
    *,
    fleet_file: Path | None = None,
    rule: HealthRule = RULE,
    told: list[Upkeep] | None = None,
    on_upkeep: OnUpkeep | None = None,
) -> AsyncIterator[FleetMonitor]:
    async def route(request: httpx.Request) -> httpx.Response:
        return await servers[request.url.host].answer(request)

    monitor = FleetMonitor(
        registry,
        fleet_file=fleet_file,
        rule=rule,
        on_upkeep=on_upkeep if told is None else told.append,
        transport=httpx.MockTransport(route),
    )
    async with asyncio.TaskGroup() as group:
        task = group.create_task(monitor.run())
        yield monitor
        task.cancel()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - the registry has no events
            await asyncio.sleep(0.005)


def replica(registry: PoolRegistry, index: int = 0) -> ReplicaSnapshot:
    return registry.snapshot("plain").replicas[index]


def is_state(registry: PoolRegistry, state: ReplicaState, index: int = 0) -> Callable[[], bool]:
    return lambda: (
        len(registry.snapshot("plain").replicas) > index and replica(registry, index).state is state
    )


async def test_no_scrape_leaves_its_text_to_the_garbage_collector() -> None:
    registry = PoolRegistry({"plain": external("a")})
    servers = {"a": Server()}
    gc.collect()
    gc.disable()
    try:
        async with monitored(registry, servers):
            await until(lambda: servers["a"].seen.count("/metrics") > 5)
        answers = [one for one in gc.get_objects() if isinstance(one, httpx.Response)]
    finally:
        gc.enable()
    left = [one for one in answers if one.request.url.path == "/metrics"]
    assert left, "httpx leaves none behind any more: the scrape can be one call again"
    for one in left:
        with pytest.raises(httpx.ResponseNotRead):
            assert one.content is None


async def test_external_replicas_become_ready_with_a_token_and_have_a_load() -> None:
    registry = PoolRegistry({"plain": external("a", "b")})
    servers = {"a": Server(), "b": Server()}
    async with monitored(registry, servers):
        await until(lambda: registry.snapshot("plain").ready_count == 2)
        first = replica(registry)
        assert (first.replica, first.url) == ("plain-0", "http://a:8000")
        await until(lambda: replica(registry).load)
        load = replica(registry).load
        assert load is not None
        assert (load.requests_running, load.kv_cache_usage_ratio) == (1, 0.25)
        await until(lambda: servers["a"].seen.count("/health") > 5)
    # Proven once, not at every look: a token costs machine time.
    assert servers["a"].seen.count("/v1/completions") == 1


async def test_a_server_that_somebody_else_runs_is_warmed_up_where_its_pool_says_so() -> None:
    spec = external("a").model_copy(update={"keep_warm": KeepWarmSpec(warm_up=True)})
    registry, server, told = PoolRegistry({"plain": spec}), Server(), list[Upkeep]()
    async with monitored(registry, {"a": server}, told=told):
        await until(is_state(registry, ReplicaState.READY))
        lease = registry.lease("plain")
        assert lease is not None
        lease.failed("connection refused", fatal=True)
        await until(lambda: len(told) > 1)
    # Once: when it comes back after a failure, one token is enough.
    assert [each.kind for each in told] == [UpkeepKind.WARM_UP, UpkeepKind.HEARTBEAT]
    assert server.seen.count("/v1/completions") == 13


async def test_a_replica_that_sleeps_is_not_looked_at_until_its_driver_has_woken_it(tmp_path: Path) -> None:
    file = tmp_path / "fleet.json"
    spec = pool_named("plain").model_copy(update={"sleep": SleepSpec(after_idle_s=1, scale_to_zero=True)})
    registry, server = PoolRegistry({"plain": spec}), Server()

    def says(state: ReplicaState) -> None:
        write_fleet(file, Fleet(owner_here(), one_replica("http://a:1", state)[:1]))

    async with monitored(registry, {"a": server}, fleet_file=file):
        says(ReplicaState.READY)
        await until(is_state(registry, ReplicaState.READY))
        says(ReplicaState.DRAINING)
        await until(is_state(registry, ReplicaState.DRAINING))
        assert registry.lease("plain") is None
        assert registry.asleep == {"plain"}
        assert registry.snapshot("plain").is_within_reach
        says(ReplicaState.READY)
        await until(is_state(registry, ReplicaState.READY))
        assert server.seen.count("/v1/completions") == 1, "it was well all the time"
        says(ReplicaState.SLEEPING)
        await until(is_state(registry, ReplicaState.SLEEPING))
        await asyncio.sleep(3 * INTERVAL_S)
        server.seen.clear()
        await asyncio.sleep(10 * INTERVAL_S)
        assert (server.seen, replica(registry).load) == ([], None)
        says(ReplicaState.READY)
        await until(is_state(registry, ReplicaState.READY))
        assert server.seen.count("/v1/completions") == 1
        assert registry.asleep == set()


async def test_health_alone_does_not_make_a_replica_ready() -> None:
    registry = PoolRegistry({"plain": external("a")})
    server = Server(completion=500)
    async with monitored(registry, {"a": server}):
        await until(is_state(registry, ReplicaState.UNHEALTHY))
        assert "one-token completion: status 500" in replica(registry).detail
        server.completion = 200
        await until(is_state(registry, ReplicaState.READY))


async def test_an_ejected_replica_comes_back_with_a_token() -> None:
    registry = PoolRegistry({"plain": external("a")})
    server = Server()
    async with monitored(registry, {"a": server}):
        await until(is_state(registry, ReplicaState.READY))
        server.completion = httpx.ReadTimeout("stuck")
        lease = registry.lease("plain")
        assert lease is not None
        lease.failed("connection refused", fatal=True)
        await until(lambda: server.seen.count("/v1/completions") >= 3)
        assert replica(registry).state is ReplicaState.UNHEALTHY
        server.completion = 200
        await until(is_state(registry, ReplicaState.READY))


@pytest.mark.parametrize("trouble", [httpx.ConnectError("refused"), 503])
async def test_what_is_certainly_dead_is_ejected_at_once(trouble: int | Exception) -> None:
    registry = PoolRegistry({"plain": external("a")})
    server = Server()
    async with monitored(registry, {"a": server}):
        await until(is_state(registry, ReplicaState.READY))
        server.seen.clear()
        server.health = trouble
        await until(is_state(registry, ReplicaState.UNHEALTHY))
    assert server.seen.count("/health") <= 2


async def test_one_slow_answer_is_forgiven_and_three_are_not() -> None:
    registry = PoolRegistry({"plain": external("a")})
    server = Server()
    async with monitored(registry, {"a": server}):
        await until(is_state(registry, ReplicaState.READY))
        server.seen.clear()
        server.health = httpx.ReadTimeout("slow")
        await until(lambda: server.seen.count("/health") >= 2)
        assert replica(registry).state is ReplicaState.READY
        await until(is_state(registry, ReplicaState.UNHEALTHY))
        assert "slow" in replica(registry).detail


async def test_a_hanging_replica_delays_no_other() -> None:
    registry = PoolRegistry({"plain": external("hangs", "b")})
    servers = {"hangs": Server(hang=asyncio.Event()), "b": Server()}
    async with monitored(registry, servers):
        await until(is_state(registry, ReplicaState.READY, 1))
        await until(lambda: servers["b"].seen.count("/health") > 10)
    assert servers["hangs"].seen.count("/health") == 1


async def test_an_unforeseen_answer_ends_no_loop(caplog: pytest.LogCaptureFixture) -> None:
    registry = PoolRegistry({"plain": external("a", "b")})
    servers = {"a": Server(health=RuntimeError("nobody foresaw this")), "b": Server()}
    async with monitored(registry, servers):
        await until(is_state(registry, ReplicaState.READY, 1))
        await until(lambda: "nobody foresaw this" in caplog.text)
        servers["a"].health = 200
        await until(is_state(registry, ReplicaState.READY, 0))


async def test_metrics_that_fail_leave_the_replica_ready() -> None:
    registry = PoolRegistry({"plain": external("a", "b")})
    servers = {"a": Server(metrics="<html>"), "b": Server(metrics=httpx.ReadTimeout("slow"))}
    async with monitored(registry, servers):
        await until(lambda: registry.snapshot("plain").ready_count == 2)
        assert [one.load for one in registry.snapshot("plain").replicas] == [None, None]


async def test_a_server_without_completions_serves_if_it_lists_the_model() -> None:
    registry = PoolRegistry({"plain": external("a", "b")})
    servers = {"a": Server(completion=404), "b": Server(completion=404, models=("llama", "qwen"))}
    async with monitored(registry, servers):
        await until(is_state(registry, ReplicaState.READY, 0))
        await until(is_state(registry, ReplicaState.UNHEALTHY, 1))
        assert replica(registry, 1).detail == "serves llama, qwen, not 'reference'"


def owner_here() -> FleetOwner:
    owner = FleetOwner.of(os.getpid())
    assert owner is not None
    return owner


def one_replica(url: str, state: ReplicaState) -> tuple[FleetReplica, ...]:
    return (
        FleetReplica("plain", "plain-0", url, 4711, state),
        FleetReplica("of-another-config", "of-another-config-0", url, 4712, state),
    )


async def test_the_fleet_file_is_followed(tmp_path: Path) -> None:
    file = tmp_path / "fleet.json"
    registry = PoolRegistry({"plain": pool_named("plain")})
    servers = {"one": Server(), "two": Server()}
    async with monitored(registry, servers, fleet_file=file):
        await asyncio.sleep(3 * INTERVAL_S)
        assert registry.snapshot("plain").replicas == ()
        write_fleet(file, Fleet(owner_here(), one_replica("http://one:1", ReplicaState.STARTING)))
        await until(lambda: registry.snapshot("plain").replicas)
        await asyncio.sleep(5 * INTERVAL_S)
        # It may be warming up: what the driver has not called ready is not asked for anything.
        assert (replica(registry).state, servers["one"].seen) == (ReplicaState.STARTING, [])
        write_fleet(file, Fleet(owner_here(), one_replica("http://one:1", ReplicaState.READY)))
        await until(is_state(registry, ReplicaState.READY))
        write_fleet(file, Fleet(owner_here(), one_replica("http://one:1", ReplicaState.UNHEALTHY)))
        servers["one"].completion = 500
        await until(is_state(registry, ReplicaState.UNHEALTHY))
        write_fleet(file, Fleet(owner_here(), one_replica("http://two:2", ReplicaState.READY)))
        await until(is_state(registry, ReplicaState.READY))
        assert replica(registry).url == "http://two:2"
        file.unlink()
        await until(lambda: registry.snapshot("plain").replicas == ())


async def test_the_file_of_a_dead_fleet_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "fleet.json"
    program = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)  # noqa: ASYNC220 - short
    owner = FleetOwner.of(program.pid)
    assert owner is not None
    write_fleet(file, Fleet(owner, one_replica("http://one:1", ReplicaState.READY)))
    registry = PoolRegistry({"plain": pool_named("plain")})
    async with monitored(registry, {"one": Server()}, fleet_file=file):
        await until(is_state(registry, ReplicaState.READY))
        program.communicate()
        await until(lambda: registry.snapshot("plain").replicas == ())
    assert read_fleet(file) is None


async def test_a_pid_that_came_around_again_is_no_owner(tmp_path: Path) -> None:
    file = tmp_path / "fleet.json"
    mine = owner_here()
    other = FleetOwner(mine.pid, mine.started_ticks - 1, mine.boot_id)
    write_fleet(file, Fleet(other, one_replica("http://one:1", ReplicaState.READY)))
    assert read_fleet(file) is None


async def test_a_broken_fleet_file_is_told_once_and_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "fleet.json"
    registry = PoolRegistry({"plain": pool_named("plain")})
    file.write_text("{", encoding="utf-8")
    async with monitored(registry, {"one": Server()}, fleet_file=file):
        await until(lambda: "fleet file ignored" in caplog.text)
        await asyncio.sleep(3 * INTERVAL_S)
        assert caplog.text.count("fleet file ignored") == 1
        write_fleet(file, Fleet(owner_here(), one_replica("http://one:1", ReplicaState.READY)))
        await until(is_state(registry, ReplicaState.READY))


@pytest.mark.parametrize(
    "text", ['{"version": 3}', '{"version": 2}', "[]", '{"version": 2, "owner": {"pid": 1}}']
)
def test_a_file_that_is_not_a_fleets_is_an_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "fleet.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"fleet\.json"):
        read_fleet(file)


# ------------------------------------------------------------------------------------------- deep health
def impatient(**values: float) -> HealthRule:
    return HealthRule(
        **{
            "poll_interval_s": INTERVAL_S,
            "stall_s": 0.2,
            "idle_probe_s": 30,
            "probe_timeout_s": 0.2,
            **values,
        }
    )


@dataclass
class Engine(Server):
    """One whose engine may stand still, and whose counters say what it does."""

    is_hung: bool = False
    is_moving: bool = False
    running: int = 1
    tokens: int = 20
    on_probe: Callable[[], Awaitable[None]] | None = None

    async def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/completions":
            if self.on_probe is not None:
                await self.on_probe()
            if self.is_hung:
                self.seen.append(request.url.path)
                raise httpx.ReadTimeout("no token")
        self.tokens += self.is_moving
        self.metrics = METRICS.replace("} 20.0", f"}} {self.tokens}").replace("} 1.0", f"}} {self.running}")
        return await super().answer(request)


async def test_a_hung_engine_that_answers_health_is_taken_out_and_comes_back_with_a_token() -> None:
    registry = PoolRegistry({"plain": external("a")}, breaker_rule=BreakerRule(backoff_s=0.01))
    engine = Engine()
    async with monitored(registry, {"a": engine}, rule=impatient()) as monitor:
        await until(is_state(registry, ReplicaState.READY))
        engine.is_hung = True
        await until(is_state(registry, ReplicaState.UNHEALTHY))
        assert replica(registry).detail.startswith("hangs, nothing moved for")
        assert replica(registry).breaker.state is BreakerState.OPEN
        assert monitor.hangs == 1
        assert engine.health == 200
        engine.is_hung = False
        await until(is_state(registry, ReplicaState.READY))
        assert replica(registry).breaker.state is BreakerState.HALF_OPEN
        lease = registry.lease("plain")
        assert lease is not None
        lease.succeeded()
        assert replica(registry).breaker.state is BreakerState.CLOSED


async def test_an_engine_that_hangs_with_requests_of_ours_is_taken_out_though_it_counts_none() -> None:
    registry = PoolRegistry({"plain": external("a")})
    engine = Engine()
    engine.running = 0
    async with monitored(registry, {"a": engine}, rule=impatient()):
        await until(is_state(registry, ReplicaState.READY))
        lease = registry.lease("plain")
        assert lease is not None
        engine.is_hung = True
        await until(is_state(registry, ReplicaState.UNHEALTHY))


async def test_a_busy_engine_that_moves_is_never_asked_for_a_token() -> None:
    registry = PoolRegistry({"plain": external("a")})
    engine = Engine()
    engine.is_moving = True
    async with monitored(registry, {"a": engine}, rule=impatient(stall_s=0.5)) as monitor:
        await until(is_state(registry, ReplicaState.READY))
        engine.seen.clear()
        await until(lambda: engine.seen.count("/metrics") > 50)
        assert "/v1/completions" not in engine.seen
        assert monitor.probes == 1


async def test_an_engine_that_moves_while_it_keeps_the_probe_waiting_stays() -> None:
    """A long prefill: no token comes, but the fill of the cache moves."""
    registry = PoolRegistry({"plain": external("a")})
    engine = Engine()
    async with monitored(registry, {"a": engine}, rule=impatient()) as monitor:
        await until(is_state(registry, ReplicaState.READY))

        async def move_and_say_nothing() -> None:
            engine.is_moving, enough = True, engine.tokens + 10
            await until(lambda: engine.tokens > enough)
            engine.is_hung = True

        engine.on_probe = move_and_say_nothing
        await until(lambda: monitor.probes >= 2)
        engine.seen.clear()
        await until(lambda: engine.seen.count("/metrics") > 50)
        assert replica(registry).state is ReplicaState.READY
        assert monitor.hangs == 0


async def test_an_idle_engine_is_asked_at_intervals() -> None:
    registry = PoolRegistry({"plain": external("a")})
    engine = Engine()
    engine.running = 0
    async with monitored(registry, {"a": engine}, rule=impatient(idle_probe_s=0.1)) as monitor:
        await until(lambda: monitor.probes >= 4)
        assert replica(registry).state is ReplicaState.READY
        engine.is_hung = True
        await until(is_state(registry, ReplicaState.UNHEALTHY))


async def test_the_last_replica_is_spared_for_being_slow_and_looked_at() -> None:
    registry = PoolRegistry({"plain": external("a")})
    engine = Engine()
    engine.is_moving = True
    async with monitored(registry, {"a": engine}, rule=impatient(stall_s=30)) as monitor:
        await until(is_state(registry, ReplicaState.READY))
        for _ in range(4):
            lease = registry.lease("plain")
            assert lease is not None
            lease.failed("no first token within 60 s", slow=True)
            lease.release()
        await until(lambda: monitor.probes == 2)
        await until(lambda: not replica(registry).breaker.is_suspected)
        standing = replica(registry).breaker
        assert (standing.state, standing.spared) == (BreakerState.CLOSED, 2)
        assert replica(registry).state is ReplicaState.READY


async def test_a_replica_that_fails_again_after_its_token_is_left_alone_for_longer() -> None:
    rule = BreakerRule(backoff_s=0.1, backoff_s_max=100)
    registry = PoolRegistry({"plain": external("a")}, breaker_rule=rule)
    engine = Engine()
    engine.is_moving = True
    async with monitored(registry, {"a": engine}, rule=impatient()):
        for opened in range(1, 4):
            await until(is_state(registry, ReplicaState.READY))
            for _ in range(3 if opened == 1 else 1):
                lease = registry.lease("plain")
                assert lease is not None
                lease.failed("500")
            assert replica(registry).state is ReplicaState.UNHEALTHY
            assert replica(registry).breaker.opened == opened


async def test_books_that_fail_end_no_watch() -> None:
    tried: list[Upkeep] = []

    def refuse(upkeep: Upkeep) -> None:
        tried.append(upkeep)
        raise ValueError("these tokens cannot be")

    registry, server = PoolRegistry({"plain": external("one")}), Server()
    async with monitored(registry, {"one": server}, on_upkeep=refuse):
        await until(is_state(registry, ReplicaState.READY))
        assert tried
        looked = len(server.seen)
        await until(lambda: len(server.seen) > looked + 4)
