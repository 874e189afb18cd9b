"""Real processes, stand-in servers: what starts, what comes back, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from backends.fleet_file import FLEET_FILE_NAME, Fleet, read_fleet
from backends.launch.guard import processes, session_members
from backends.launch.process import (
    FleetAlreadyRunning,
    LaunchError,
    LaunchTimes,
    ProcessFleet,
    ReplicaProgress,
    backoff_s,
)
from backends.pool import ReplicaState
from tests.integration.backends.conftest import REPOSITORY, TIMES, eventually, pool_named, tiny_argv


def fleet_in(
    state_dir: Path, *flags: str, progress: list[ReplicaProgress] | None = None, replicas: int = 1
) -> ProcessFleet:
    return ProcessFleet(
        {"plain": pool_named("plain", replicas=replicas)},
        state_dir=state_dir,
        python=Path(sys.executable),
        on_progress=(progress if progress is not None else []).append,
        times=TIMES,
        argv_for=tiny_argv(*flags),
    )


def published(state_dir: Path) -> Fleet:
    fleet = read_fleet(state_dir / FLEET_FILE_NAME)
    assert fleet is not None
    return fleet


def server_pid(state_dir: Path, replica: str = "plain-0") -> int:
    """The stand-in itself, as it printed it last."""
    log = (state_dir / "logs" / f"{replica}.log").read_text(encoding="utf-8")
    return int(log.rpartition("tiny replica, pid ")[2].partition(",")[0])


@contextlib.asynccontextmanager
async def supervised(fleet: ProcessFleet) -> AsyncIterator[None]:
    await fleet.start()
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(fleet.supervise())
            yield
            task.cancel()
    finally:
        await fleet.stop()


async def until(progress: list[ReplicaProgress], state: ReplicaState, *, count: int = 1) -> None:
    """Wait until so many reports say so."""
    async with asyncio.timeout(60):
        while sum(1 for report in progress if report.state is state) < count:  # noqa: ASYNC110 - plain list
            await asyncio.sleep(0.02)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:  # noqa: TID251 - a test
    async with httpx.AsyncClient(trust_env=False) as client:  # noqa: TID251 - a test
        yield client


async def test_replicas_are_ready_published_and_then_gone(
    state_dir: Path,
    client: httpx.AsyncClient,  # noqa: TID251 - a test
) -> None:
    progress: list[ReplicaProgress] = []
    fleet = fleet_in(state_dir, progress=progress, replicas=2)
    await fleet.start()
    try:
        file = published(state_dir)
        assert [one.replica for one in file.replicas] == ["plain-0", "plain-1"]
        assert {one.state for one in file.replicas} == {ReplicaState.READY}
        assert [one.url for one in file.replicas] == fleet.urls["plain"]
        assert file.owner.pid == os.getpid()
        for one in file.replicas:
            assert (await client.get(f"{one.url}/health")).status_code == 200
            # Two keepers, the server, its engine.
            assert len(session_members(one.pid)) == 4
    finally:
        await fleet.stop()
    assert [session_members(one.pid) for one in file.replicas] == [[], []]
    assert not (state_dir / FLEET_FILE_NAME).exists()
    states = [report.state for report in progress if report.replica == "plain-1"]
    assert list(dict.fromkeys(states)) == [ReplicaState.STARTING, ReplicaState.READY, ReplicaState.STOPPED]
    await fleet.stop()


async def test_a_stopped_fleet_can_start_again_in_the_same_folder(state_dir: Path) -> None:
    for _ in range(2):
        fleet = fleet_in(state_dir)
        await fleet.start()
        await fleet.stop()
    log = (state_dir / "logs" / "plain-0.log").read_text(encoding="utf-8")
    assert log.count("--- starting: ") == 2


async def test_a_failing_start_shows_the_end_of_the_log_and_leaves_nothing(state_dir: Path) -> None:
    fleet = fleet_in(state_dir, "--fail", "40")
    with pytest.raises(LaunchError) as caught:
        await fleet.start()
    text = str(caught.value)
    assert "replica 'plain-0' of pool 'plain' ended during its start with status 3" in text
    assert str(state_dir / "logs" / "plain-0.log") in text
    assert "  | complaint 39" in text
    assert "complaint 20" in text
    assert "complaint 19" not in text
    assert not (state_dir / FLEET_FILE_NAME).exists()


async def test_a_program_that_is_not_there_is_told(state_dir: Path) -> None:
    fleet = ProcessFleet(
        {"plain": pool_named("plain")},
        state_dir=state_dir,
        python=Path(sys.executable),
        on_progress=lambda _: None,
        times=TIMES,
        argv_for=lambda *_: ["/no/such/python"],
    )
    with pytest.raises(LaunchError, match=r"cannot start /no/such/python: .*No such file"):
        await fleet.start()


async def test_too_slow_a_start_is_told_with_the_reason(state_dir: Path) -> None:
    fleet = ProcessFleet(
        {"plain": pool_named("plain")},
        state_dir=state_dir,
        python=Path(sys.executable),
        on_progress=lambda _: None,
        times=LaunchTimes(start_up_budget_s=0.5, stop_grace_s=1, poll_interval_s=0.05),
        argv_for=lambda *_: [sys.executable, "-c", "import time; time.sleep(60)"],
    )
    with pytest.raises(LaunchError, match=r"served nothing within 0\.5 s \(/health: "):
        await fleet.start()


async def test_missing_weights_are_told_before_anything_starts(state_dir: Path, tmp_path: Path) -> None:
    pool = pool_named("plain")
    model = pool.model.model_copy(update={"path": str(tmp_path / "nowhere")})
    fleet = ProcessFleet(
        {"plain": pool.model_copy(update={"model": model})},
        state_dir=state_dir,
        python=Path(sys.executable),
        on_progress=lambda _: None,
    )
    with pytest.raises(LaunchError, match=r"pool 'plain': model\.path: no such folder: .*nowhere"):
        await fleet.start()
    assert not (state_dir / "fleet.lock").exists()


async def test_a_second_fleet_on_the_same_folder_is_refused(state_dir: Path) -> None:
    fleet = fleet_in(state_dir)
    await fleet.start()
    try:
        with pytest.raises(FleetAlreadyRunning, match=f"process {os.getpid()} already runs a fleet"):
            await fleet_in(state_dir).start()
        assert published(state_dir).replicas
    finally:
        await fleet.stop()


async def test_a_cancelled_start_leaves_nothing(state_dir: Path) -> None:
    fleet = ProcessFleet(
        {"plain": pool_named("plain")},
        state_dir=state_dir,
        python=Path(sys.executable),
        on_progress=lambda _: None,
        times=TIMES,
        argv_for=lambda *_: [sys.executable, "-c", "import time; time.sleep(60)"],
    )
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await fleet.start()
    assert not [one for one in processes() if one.parent_pid == os.getpid() and session_members(one.pid)]


async def test_a_killed_server_comes_back_with_growing_pauses(state_dir: Path) -> None:
    progress: list[ReplicaProgress] = []
    async with supervised(fleet_in(state_dir, progress=progress)):
        first = published(state_dir).replicas[0]
        for crash in (1, 2):
            os.kill(server_pid(state_dir), signal.SIGKILL)
            await until(progress, ReplicaState.READY, count=1 + crash)
        again = published(state_dir).replicas[0]
        assert session_members(first.pid) == []
        assert again.url != first.url
        assert again.state is ReplicaState.READY
    crashes = [report.detail for report in progress if report.state is ReplicaState.UNHEALTHY]
    assert crashes == [
        "ended with status 137; starts again in 0.1 s",
        "ended with status 137; starts again in 0.2 s",
    ]


async def test_a_silent_server_is_started_again(state_dir: Path, tmp_path: Path) -> None:
    progress: list[ReplicaProgress] = []
    sulk = tmp_path / "sulk"
    # Also deaf: it has to be killed.
    async with supervised(fleet_in(state_dir, "--sulk-file", str(sulk), "--deaf", progress=progress)):
        sulk.touch()
        await until(progress, ReplicaState.UNHEALTHY)
        sulk.unlink()
        await until(progress, ReplicaState.READY, count=2)
    (crash,) = [report.detail for report in progress if report.state is ReplicaState.UNHEALTHY]
    assert crash.startswith("has not answered for ")


async def test_a_killed_guard_takes_the_replica_with_it(state_dir: Path) -> None:
    progress: list[ReplicaProgress] = []
    async with supervised(fleet_in(state_dir, progress=progress)):
        guard_pid = published(state_dir).replicas[0].pid
        os.kill(guard_pid, signal.SIGKILL)
        await until(progress, ReplicaState.READY, count=2)
        assert session_members(guard_pid) == []


async def test_a_killed_second_keeper_takes_the_replica_with_it(state_dir: Path) -> None:
    progress: list[ReplicaProgress] = []
    async with supervised(fleet_in(state_dir, progress=progress)):
        guard_pid = published(state_dir).replicas[0].pid
        (second,) = [one.pid for one in processes() if one.parent_pid == guard_pid]
        os.kill(second, signal.SIGKILL)
        await until(progress, ReplicaState.READY, count=2)
        assert session_members(guard_pid) == []


@pytest.fixture
def running(state_dir: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A program that runs a fleet, and the sessions of its replicas."""
    program = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("run_fleet.py")), str(state_dir)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},  # noqa: TID251 - a child needs PATH and HOME
        start_new_session=True,
    )
    try:

        def is_ready() -> bool:
            assert program.poll() is None
            fleet = read_fleet(state_dir / FLEET_FILE_NAME)
            return fleet is not None and [one.state for one in fleet.replicas] == 2 * [ReplicaState.READY]

        eventually(is_ready)
        yield program, [one.pid for one in published(state_dir).replicas]
    finally:
        program.kill()
        program.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_the_program_that_ran_the_fleet(
    running: tuple[subprocess.Popen[bytes], list[int]], number: signal.Signals, state_dir: Path
) -> None:
    program, sessions = running
    assert all(len(session_members(session)) == 4 for session in sessions)
    program.send_signal(number)
    program.wait(timeout=20)
    eventually(lambda: not any(session_members(session) for session in sessions))
    # After SIGKILL the file is still there, and nobody is misled by it.
    assert read_fleet(state_dir / FLEET_FILE_NAME) is None
    assert (state_dir / FLEET_FILE_NAME).exists() is (number is signal.SIGKILL)


async def test_the_folder_of_a_killed_fleet_can_be_used_again(
    running: tuple[subprocess.Popen[bytes], list[int]], state_dir: Path
) -> None:
    program, _ = running
    program.kill()
    program.wait()
    fleet = fleet_in(state_dir)
    await fleet.start()
    assert published(state_dir).owner.pid == os.getpid()
    await fleet.stop()


async def test_a_large_log_is_put_aside(state_dir: Path) -> None:
    log = state_dir / "logs" / "plain-0.log"
    log.parent.mkdir(parents=True)
    with log.open("wb") as file:
        file.truncate(20_000_001)
    fleet = fleet_in(state_dir)
    await fleet.start()
    await fleet.stop()
    assert log.with_suffix(".log.1").stat().st_size == 20_000_001
    assert log.stat().st_size < 10_000


async def test_replicas_do_not_see_the_gateways_secrets(state_dir: Path) -> None:
    fleet = ProcessFleet(
        {"plain": pool_named("plain")},
        state_dir=state_dir,
        python=Path(sys.executable),
        on_progress=lambda _: None,
        times=TIMES,
        argv_for=lambda *_: [
            sys.executable,
            "-c",
            "import os; print(sorted(os.environ)); raise SystemExit(1)",
        ],
        base_environment={"PATH": "/usr/bin", "TOLLGATE_ADMIN_KEY": "tg-secret", "PYTHONPATH": "/x"},
    )
    with pytest.raises(LaunchError) as caught:
        await fleet.start()
    assert "'PATH'" in str(caught.value)
    assert "'OMP_NUM_THREADS'" in str(caught.value)
    assert "TOLLGATE" not in str(caught.value)
    assert "PYTHONPATH" not in str(caught.value)


def test_the_pauses_grow_up_to_a_limit() -> None:
    times = LaunchTimes()
    assert [backoff_s(failures, times) for failures in (0, 1, 2, 5, 6, 7, 1000)] == [
        1,
        2,
        4,
        600,
        600,
        600,
        600,
    ]
