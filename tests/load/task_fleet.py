"""What stands behind the comparison of routing rules: which engines, which gateways, whose keys?

The bundled fleet as `tollgate up` starts it (two real vLLM servers that share this machine's cores), and in
front of it two gateways on embedded SQLite with the shipped policy, one with economics on and one with them
off. The answer cache is off: every request is to be generated. Each run of the comparison has a tenant of its
own, so that it finds nothing in the engines' prefix caches that another one left there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from backends.bench.machine import CpuTimes
from backends.files import load_pools
from backends.fleet_file import FLEET_FILE_NAME, read_fleet
from backends.launch.guard import session_members
from backends.launch.process import ProcessFleet, ReplicaProgress
from backends.pool import PoolSpec
from gateway.db import create_engine, session_factory
from gateway.identity import key_store, store
from gateway.migrate import upgrade
from tests.load.measured import ROOT
from tests.support.factories import make_act
from tests.support.gateway_process import GatewayProcess
from tests.support.pool_files import DEFAULT_POLICY

PYTHON: Final = ROOT / ".venv-vllm" / "bin" / "python"
BUNDLED: Final = ROOT / "backends" / "pools"
ECONOMICS: Final[dict[str, Any]] = {"enabled": True}
_AS_SHIPPED: Final = {
    "TOLLGATE_FRESHNESS__POLL_INTERVAL_S": "0.5",
    "TOLLGATE_SPOOL__SHIP_INTERVAL_MS": "600",
    "TOLLGATE_HEALTH__STALL_S": "20",
}
"""Settings that tests have otherwise (`gateway_process.environment`)."""
_BOOKED_S: Final = 20.0


class Fleet:
    """The engines that are up."""

    def __init__(self, specs: dict[str, PoolSpec], state_dir: Path) -> None:
        self.specs = specs
        self.file = state_dir / FLEET_FILE_NAME
        published = read_fleet(self.file)
        assert published is not None
        self.sessions = {one.pool: one.pid for one in published.replicas}
        self.urls = {one.pool: one.url for one in published.replicas}

    def keep_apart(self) -> None:
        """Let each pool's processes have cores that no other pool's may use, as on machines of their own."""
        cores = sorted(os.sched_getaffinity(0))
        share = max(1, len(cores) // len(self.sessions))
        for place, session in enumerate(self.sessions.values()):
            own = set(cores[place * share : (place + 1) * share]) or {cores[-1]}
            for pid in session_members(session):
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    os.sched_setaffinity(int(thread.name), own)

    @property
    def usd_per_hour(self) -> dict[str, float]:
        """Of each pool's one replica."""
        return {name: float(spec.hardware.usd_per_hour) for name, spec in self.specs.items()}

    def cpu(self) -> dict[str, CpuTimes]:
        """What the kernel has counted for each pool's processes so far."""
        found = {name: CpuTimes.now(session) for name, session in self.sessions.items()}
        return {name: times for name, times in found.items() if times is not None}


@contextlib.asynccontextmanager
async def running_fleet(
    folder: Path, on_progress: Callable[[ReplicaProgress], None], *, state_dir: Path | None = None
) -> AsyncIterator[Fleet]:
    """The bundled fleet, warm.

    Args:
        folder: for a fleet of our own.
        on_progress: told how its start goes.
        state_dir: of a fleet that runs (`tollgate pools up`), to be used instead; absolute.

    Raises:
        LaunchError: a replica does not come up.
    """
    specs = load_pools(BUNDLED)
    if state_dir is not None:
        yield Fleet(specs, state_dir)
        return
    fleet = ProcessFleet(specs, state_dir=folder, python=PYTHON, on_progress=on_progress)
    try:
        await fleet.start()
        yield Fleet(specs, folder)
    finally:
        await fleet.stop()


class Gateways:
    """The gateways, and the keys of the runs at each."""

    def __init__(self, running: dict[str, GatewayProcess], keys: dict[str, list[str]]) -> None:
        self.running = running
        self._keys = keys

    def url(self, name: str) -> str:
        """Of one of them."""
        return self.running[name].url

    def next_key(self, name: str) -> str:
        """Of a tenant that has not called yet."""
        return self._keys[name].pop()


@contextlib.asynccontextmanager
async def running_gateways(
    folder: Path, fleet: Fleet, names: Sequence[str], *, tenants: int
) -> AsyncIterator[Gateways]:
    """Gateways that are up; `economics` among them has economics on, any other has them off."""
    with contextlib.ExitStack() as stack:
        running, keys = {}, {}
        for name in names:
            home = folder / name
            (home / "state").mkdir(parents=True)
            # Every gateway has books of its own and finds the same fleet.
            (home / "state" / FLEET_FILE_NAME).symlink_to(fleet.file)
            database = f"sqlite+aiosqlite:///{home / 'state' / 'tollgate.db'}"
            await asyncio.to_thread(upgrade, database)
            keys[name] = await _make_tenants(database, tenants)
            settings = {
                **_AS_SHIPPED,
                "TOLLGATE_POOLS": str(BUNDLED),
                "TOLLGATE_POLICY": str(write_policy(home, is_economic=name == "economics")),
            }
            running[name] = stack.enter_context(GatewayProcess(home, {}, settings=settings))
        yield Gateways(running, keys)


def write_policy(folder: Path, *, is_economic: bool) -> Path:
    """The shipped policy without the answer cache, with economics or without."""
    policy: dict[str, Any] = yaml.safe_load(DEFAULT_POLICY.read_text())
    policy["cache"] = {"enabled": False}
    policy["economics"] = ECONOMICS if is_economic else {"enabled": False}
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(policy, sort_keys=False))
    return path


async def _make_tenants(url: str, count: int) -> list[str]:
    engine = create_engine(url)
    keys = []
    async with session_factory(engine)() as session:
        for number in range(count):
            act = make_act()
            tenant = await store.create_tenant(session, f"run-{number}", act=act)
            project = await store.ensure_project(session, tenant, "routing", act=act)
            keys.append((await key_store.create_key(session, project, "run", act=act)).secret)
        await session.commit()
    await engine.dispose()
    return keys


def wait_booked(gateway: GatewayProcess, count: int) -> None:
    """Wait until so many attempts of tenants are in a gateway's books.

    Raises:
        TimeoutError: they are not.
    """
    deadline_s = time.monotonic() + _BOOKED_S
    query = "SELECT count(*) FROM attempts WHERE tenant_id <> 'platform'"
    with contextlib.closing(sqlite3.connect(gateway.state_dir / "tollgate.db", timeout=10)) as connection:
        while (found := connection.execute(query).fetchone()[0]) < count:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{found} of {count} attempts are booked after {_BOOKED_S:.0f} s")
            time.sleep(0.05)
