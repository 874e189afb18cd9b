"""Does replica time survive whoever writes it, and read the same for everybody who reads it?"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from backends.pool import PoolSpec, ReplicaState
from backends.replica_time import FOLDER, KEPT_S, Phase, TimeWriter, phase_of, read_runs
from backends.warm_spec import SleepSpec
from tests.support.factories import make_pool_spec

ROOT = Path(__file__).resolve().parents[3]


def _file(folder: Path) -> Path:
    (found,) = (folder / FOLDER).iterdir()
    return found


def test_a_run_is_its_changes_and_lasts_until_the_last_beat(tmp_path: Path) -> None:
    writer = TimeWriter(tmp_path)
    writer.beat()
    assert not read_runs(tmp_path)
    writer.note("plain", "plain-0", Phase.STARTING)
    writer.note("plain", "plain-0", Phase.STARTING)
    writer.note("plain", "plain-1", Phase.STARTING)
    writer.note("plain", "plain-0", Phase.SERVING)
    writer.beat()
    (run,) = read_runs(tmp_path)
    assert [(one.number, one.replica, one.phase) for one in run.changes] == [
        (1, "plain-0", Phase.STARTING),
        (2, "plain-1", Phase.STARTING),
        (3, "plain-0", Phase.SERVING),
    ]
    assert not run.is_over
    assert run.seen_until_ms >= run.changes[-1].at_ms
    (again,) = read_runs(tmp_path)
    assert (again.id, again.changes) == (run.id, run.changes), "reading changes nothing"
    assert again.seen_until_ms >= run.seen_until_ms, "its driver lives"


def test_a_driver_that_was_killed_leaves_what_it_wrote(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from backends.replica_time import *;"
        "writer = TimeWriter(Path(sys.argv[1])); writer.note('plain', 'plain-0', Phase.SERVING);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == -9
    with _file(tmp_path).open("a") as file:
        file.write('{"number": 2, "pool": "pl')  # what no whole write leaves, a torn page may
    (run,) = read_runs(tmp_path)
    assert run.is_over
    assert [(one.replica, one.phase) for one in run.changes] == [("plain-0", Phase.SERVING)]
    assert run.seen_until_ms >= run.changes[0].at_ms
    assert read_runs(tmp_path) == [run]
    beat_s = run.seen_until_ms / 1000 + 7
    os.utime(_file(tmp_path), (beat_s, beat_s))
    assert read_runs(tmp_path)[0].seen_until_ms == pytest.approx(beat_s * 1000, abs=1)


def test_a_line_that_finds_no_room_is_written_whole_later(tmp_path: Path) -> None:
    writer = TimeWriter(tmp_path)
    writer.note("plain", "plain-0", Phase.STARTING)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # The kernel writes the ten bytes that have room, and says so.
        resource.setrlimit(resource.RLIMIT_FSIZE, (_file(tmp_path).stat().st_size + 10, hard))
        writer.note("plain", "plain-0", Phase.SERVING)
        (run,) = read_runs(tmp_path)
        assert [one.phase for one in run.changes] == [Phase.STARTING]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.note("plain", "plain-0", Phase.SERVING)
    writer.note("plain", "plain-0", Phase.BROKEN)
    (run,) = read_runs(tmp_path)
    assert [(one.number, one.phase) for one in run.changes] == [
        (1, Phase.STARTING),
        (2, Phase.SERVING),
        (3, Phase.BROKEN),
    ]


def test_what_stands_before_a_broken_line_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    TimeWriter(tmp_path).note("plain", "plain-0", Phase.STARTING)
    with _file(tmp_path).open("a") as file:
        file.write('{"number": 2, "pool": "pl{"number": 2}\n')
    (run,) = read_runs(tmp_path)
    assert [one.phase for one in run.changes] == [Phase.STARTING]
    assert "line 3 is no replica time" in caplog.text


def test_what_is_no_replica_time_is_left_out_and_old_runs_are_deleted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / "other.jsonl").write_text('{"version": 2}\n')
    (folder / "old.jsonl").write_text("{}\n")
    old_s = _file_time(folder / "old.jsonl") - KEPT_S - 10
    os.utime(folder / "old.jsonl", (old_s, old_s))
    TimeWriter(tmp_path).note("plain", "plain-0", Phase.STARTING)
    assert len(read_runs(tmp_path)) == 1
    assert "version 2, expected 1" in caplog.text
    assert not (folder / "old.jsonl").exists()


def _file_time(path: Path) -> float:
    return path.stat().st_mtime


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        (ReplicaState.STARTING, Phase.STARTING),
        (ReplicaState.WAKING, Phase.STARTING),
        (ReplicaState.READY, Phase.SERVING),
        (ReplicaState.DRAINING, Phase.SERVING),
        (ReplicaState.UNHEALTHY, Phase.BROKEN),
        (ReplicaState.STOPPED, Phase.OFF),
    ],
)
def test_a_state_belongs_to_a_phase(state: ReplicaState, phase: Phase) -> None:
    assert phase_of(state, make_pool_spec()) is phase


@pytest.mark.parametrize(
    ("sleep", "phase"),
    [
        (SleepSpec(after_idle_s=10, scale_to_zero=True), Phase.OFF),
        (SleepSpec(after_idle_s=10, level=1), Phase.ASLEEP),
    ],
)
def test_who_sleeps_at_a_level_keeps_its_hardware(sleep: SleepSpec, phase: Phase) -> None:
    spec: PoolSpec = make_pool_spec().model_copy(update={"sleep": sleep})
    assert phase_of(ReplicaState.SLEEPING, spec) is phase
