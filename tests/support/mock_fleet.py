"""How does a test run the process driver with mock engines in place of vLLM?

Sleep levels need a GPU (vLLM refuses them on a CPU): with these the driver's part of it is shown, not vLLM's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from backends.fleet_file import FLEET_FILE_NAME, Fleet, FleetReplica, read_fleet
from backends.launch.process import LaunchTimes, ProcessFleet, ReplicaProgress
from backends.liveness import HealthRule
from backends.pool import PoolSpec, ReplicaState

ROOT: Final = Path(__file__).resolve().parents[2]
PATIENCE_S: Final = 60.0
"""For things that happen in other processes, on a busy machine."""
_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))

PATIENT: Final = HealthRule(stall_s=600, idle_probe_s=600, probe_timeout_s=60)
"""Whatever a busy machine does to a mock, it does not look hung."""
HASTY: Final = HealthRule(stall_s=1, idle_probe_s=600, probe_timeout_s=2)
"""For tests of what hangs; three seconds of stillness make a healthy mock look so too."""
TIMES: Final = LaunchTimes(
    start_up_budget_s=120,
    stop_grace_s=2,
    poll_interval_s=0.05,
    look_interval_s=0.05,
    unresponsive_after_s=30,
    health=PATIENT,
    backoff_first_s=0.05,
    backoff_max_s=0.1,
    notice_s=0.2,
    drain_s=20,
    still_s=5,
    wish_interval_s=0.02,
)


def mock_pool(name: str = "plain", **changes: Any) -> PoolSpec:
    """A pool of mock engines, on a GPU that nobody has."""
    written: dict[str, Any] = {
        "name": name,
        "driver": "process",
        "model": {"path": "weights", "served_name": "tollgate-reference", "max_model_len": 1024},
        "batching": {"max_num_seqs": 32, "max_num_batched_tokens": 512},
        "hardware": {"gpu": "H100", "gpus_per_replica": 1, "usd_per_hour": "2"},
        "rates": {"input": "0.15", "cached_input": "0.03", "output": "0.60"},
        "env": {"PYTHONPATH": str(ROOT)},
    }
    return PoolSpec.model_validate(written | changes)


def write_pool(folder: Path, spec: PoolSpec) -> None:
    """The pool's file, for a gateway that shall know it."""
    written = spec.model_dump(mode="json", exclude_unset=True)
    (folder / f"{spec.name}.yaml").write_text(json.dumps(written))
    (folder / "weights").mkdir(exist_ok=True)


@dataclass
class MockFleet:
    """A running fleet of mocks."""

    fleet: ProcessFleet
    state_dir: Path
    progress: list[ReplicaProgress] = field(default_factory=list)

    @property
    def published(self) -> Fleet:
        """What the driver says now."""
        found = read_fleet(self.state_dir / FLEET_FILE_NAME)
        assert found is not None
        return found

    def replica(self, name: str = "plain-0") -> FleetReplica:
        """One of it."""
        return next(one for one in self.published.replicas if one.replica == name)

    def control(self, name: str = "plain-0", **wanted: object) -> None:
        """Steer the mock, as `MockVllm.control` does."""
        address = f"{self._control_url(name)}/_control"
        _OPENER.open(address, json.dumps(wanted).encode(), timeout=10).close()

    def stats(self, name: str = "plain-0") -> dict[str, Any]:
        """What the mock has seen."""
        with _OPENER.open(f"{self._control_url(name)}/_stats", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def states(self, name: str = "plain-0") -> list[ReplicaState]:
        """Every state that the replica has entered, in order."""
        reports = [report.state for report in self.progress if report.replica == name]
        return [state for at, state in enumerate(reports) if not at or reports[at - 1] is not state]

    def details(self, state: ReplicaState, name: str = "plain-0") -> list[str]:
        """Why it was in this state, each time."""
        return [report.detail for report in self.progress if report.state is state and report.replica == name]

    async def until(self, state: ReplicaState, name: str = "plain-0", *, count: int = 1) -> None:
        """Wait until it has entered a state so often, and is in it."""
        await until(lambda: self.states(name).count(state) >= count and self.replica(name).state is state)

    def _control_url(self, name: str) -> str:
        log = (self.state_dir / "logs" / f"{name}.log").read_text(encoding="utf-8")
        return log.rpartition("control on ")[2].split()[0]


async def until(holds: Callable[[], object]) -> None:
    """Wait until it holds; for things that happen in other processes."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - other processes have no events
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def mock_fleet(
    state_dir: Path, *specs: PoolSpec, flags: tuple[str, ...] = (), **times: Any
) -> AsyncIterator[MockFleet]:
    """A fleet that is started, supervised and stopped.

    Args:
        state_dir: where it publishes itself.
        specs: its pools.
        flags: of the mock program.
        times: other waits than `TIMES` has.
    """

    def argv(spec: PoolSpec, port: int) -> list[str]:
        return [sys.executable, "-m", "tests.support.mock_vllm", "--port", str(port), *flags]

    progress: list[ReplicaProgress] = []
    fleet = ProcessFleet(
        {spec.name: spec for spec in specs},
        state_dir=state_dir,
        python=Path(sys.executable),
        on_progress=progress.append,
        times=replace(TIMES, **times),
        argv_for=argv,
    )
    await fleet.start()
    try:
        async with asyncio.TaskGroup() as group:
            supervision = group.create_task(fleet.supervise())
            try:
                yield MockFleet(fleet, state_dir, progress)
            finally:
                supervision.cancel()
    finally:
        await fleet.stop()
