"""The bundled fleet, real: two vLLM servers on the reference models, started once for all of tests/vllm.

Start-up takes about a minute on two cores. Killed replicas come back at another address, so ask the fleet
for a URL when it is needed and do not keep it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from backends.files import load_pools
from backends.fleet_file import FLEET_FILE_NAME, Fleet, read_fleet
from backends.launch.guard import session_members
from backends.launch.process import LaunchTimes, ProcessFleet, ReplicaProgress
from backends.liveness import HealthRule
from backends.pool import PoolSpec, ReplicaState

REPOSITORY = Path(__file__).parents[2]
# Sooner than by default, and still far from what a busy engine of this size takes for a step.
TIMES = LaunchTimes(look_interval_s=1, health=HealthRule(stall_s=6, probe_timeout_s=10))
VLLM_PYTHON = REPOSITORY / ".venv-vllm" / "bin" / "python"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark who asks the fleet, before `-m` chooses; the first waits for it, on two busy cores for minutes."""
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(900))
        if "fleet" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.fleet)


@dataclass
class RunningFleet:
    """What tests see of the fleet."""

    specs: dict[str, PoolSpec]
    state_dir: Path
    progress: list[ReplicaProgress] = field(default_factory=list)
    sessions: set[int] = field(default_factory=set)
    """Session ids of all replicas there have ever been."""

    @property
    def published(self) -> Fleet:
        """What fleet.json says now."""
        fleet = read_fleet(self.state_dir / FLEET_FILE_NAME)
        assert fleet is not None
        self.sessions |= {one.pid for one in fleet.replicas}
        return fleet

    @property
    def urls(self) -> dict[str, str]:
        """Pool → base URL, without /v1."""
        return {one.pool: one.url for one in self.published.replicas}

    def is_ready(self, pool: str) -> bool:
        states = [one.state for one in self.published.replicas if one.pool == pool]
        return bool(states) and all(state is ReplicaState.READY for state in states)


class _FleetThread(threading.Thread):
    """Runs the fleet in an event loop of its own, whatever loops the tests use."""

    def __init__(self, running: RunningFleet) -> None:
        super().__init__(name="fleet", daemon=True)
        self._running = running
        self._is_asked_to_end = threading.Event()
        self.is_started: Future[None] = Future()
        self.has_ended: Future[None] = Future()

    def run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - handed to the test's thread, which raises it
            for future in (self.is_started, self.has_ended):
                if not future.done():
                    future.set_exception(error)
        else:
            self.has_ended.set_result(None)

    async def _serve(self) -> None:
        fleet = ProcessFleet(
            self._running.specs,
            state_dir=self._running.state_dir,
            python=VLLM_PYTHON,
            on_progress=self._running.progress.append,
            times=TIMES,
        )
        try:
            await fleet.start()
            self.is_started.set_result(None)
            async with asyncio.TaskGroup() as group:
                supervision = group.create_task(fleet.supervise())
                await asyncio.to_thread(self._is_asked_to_end.wait)
                supervision.cancel()
        finally:
            await fleet.stop()

    def end(self) -> None:
        self._is_asked_to_end.set()
        self.has_ended.result(timeout=60)
        self.join()


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    """The bundled pools, ready. Its end is a test of its own: no process may be left."""
    assert VLLM_PYTHON.exists(), "vLLM is not installed; `make test` does it"
    running = RunningFleet(
        load_pools(REPOSITORY / "backends" / "pools"), tmp_path_factory.mktemp("fleet") / "state"
    )
    thread = _FleetThread(running)
    thread.start()
    thread.is_started.result(timeout=600)
    try:
        yield running
    finally:
        assert running.published.replicas
        thread.end()
    assert [session for session in running.sessions if session_members(session)] == []
    assert not (running.state_dir / FLEET_FILE_NAME).exists()


@pytest.fixture
def _is_marked(request: pytest.FixtureRequest) -> None:
    """Who asks for an address by name only is not seen by the hook above, and has to say so."""
    assert request.node.get_closest_marker("fleet") is not None, "this test needs pytest.mark.fleet"


@pytest.fixture
def speculative_url(_is_marked: None, fleet: RunningFleet) -> str:
    """Base URL of the pool with a draft model, as it is now."""
    return fleet.urls["speculative"]


@pytest.fixture
def plain_url(_is_marked: None, fleet: RunningFleet) -> str:
    """Base URL of the pool without speculation, as it is now."""
    return fleet.urls["plain"]
