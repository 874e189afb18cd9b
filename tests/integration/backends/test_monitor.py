"""The monitor against servers whose every answer the test decides."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from backends.fleet_file import Fleet, FleetOwner, FleetReplica, read_fleet, write_fleet
from backends.monitor import FleetMonitor
from backends.pool import PoolSpec, ReplicaSnapshot, ReplicaState
from backends.registry import PoolRegistry
from tests.integration.backends.conftest import pool_named
from tests.support.tiny_replica import METRICS

INTERVAL_S = 0.02


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
                return httpx.Response(200, text=self.metrics)
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
    registry: PoolRegistry, servers: dict[str, Server], *, fleet_file: Path | None = None
) -> AsyncIterator[None]:
    async def route(request: httpx.Request) -> httpx.Response:
        return await servers[request.url.host].answer(request)

    monitor = FleetMonitor(
        registry,
        fleet_file=fleet_file,
        poll_interval_s=INTERVAL_S,
        transport=httpx.MockTransport(route),
    )
    async with asyncio.TaskGroup() as group:
        task = group.create_task(monitor.run())
        yield
        task.cancel()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - the registry has no events
            await asyncio.sleep(0.005)


def replica(registry: PoolRegistry, index: int = 0) -> ReplicaSnapshot:
    return registry.snapshot("plain").replicas[index]


def is_state(registry: PoolRegistry, state: ReplicaState, index: int = 0) -> Callable[[], bool]:
    return lambda: (
        len(registry.snapshot("plain").replicas) > index and replica(registry, index).state is state
    )


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
    "text", ['{"version": 2}', '{"version": 1}', "[]", '{"version": 1, "owner": {"pid": 1}}']
)
def test_a_file_that_is_not_a_fleets_is_an_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "fleet.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"fleet\.json"):
        read_fleet(file)
