"""How long was each replica up, starting, asleep or broken, so that its hours can be paid for?

The driver adds a line to `<state>/replica-time/<run>.jsonl` whenever a replica enters another phase, and sets
the file's modification time every few seconds: while it lives what it says last holds until now, and when it
was killed until then.
A run is one life of a driver and has an id that is never used again, its lines are numbered, so whoever reads
a file twice, or two who read it, find the same. Instants are epoch milliseconds of the driver's machine,
never going back within a run. Money is none of its business. Linux only (/proc).
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from backends.fleet_file import FleetOwner
from backends.pool import PoolSpec, ReplicaState

_LOG = logging.getLogger(__name__)

FOLDER = "replica-time"
BEAT_S = 5.0
"""How often a driver says that it lives; what it says last is never wrong by more."""
KEPT_S = 100 * 86_400.0
"""A run that ended so long ago is deleted when another one begins: it has been read, or nobody will."""
_VERSION = 1


class Phase(StrEnum):
    """What a replica's time was spent on."""

    STARTING = "starting"
    """From the start of its process until it is ready: loading, warming up."""
    SERVING = "serving"
    """It takes requests, or finishes those that it has."""
    ASLEEP = "asleep"
    """At a sleep level: it serves nothing and keeps its hardware."""
    BROKEN = "broken"
    """Hung, crashed, between two starts: it keeps its hardware."""
    OFF = "off"
    """Stopped, or scaled to zero: its hardware is free."""


def phase_of(state: ReplicaState, spec: PoolSpec) -> Phase:
    """The phase of a replica that its driver says to be in this state."""
    if state is ReplicaState.SLEEPING:
        is_at_level = spec.sleep is not None and spec.sleep.level is not None
        return Phase.ASLEEP if is_at_level else Phase.OFF
    return _PHASES[state]


_PHASES: Mapping[ReplicaState, Phase] = {
    ReplicaState.STARTING: Phase.STARTING,
    ReplicaState.WAKING: Phase.STARTING,
    ReplicaState.READY: Phase.SERVING,
    ReplicaState.DRAINING: Phase.SERVING,
    ReplicaState.UNHEALTHY: Phase.BROKEN,
    ReplicaState.STOPPED: Phase.OFF,
}


@dataclass(frozen=True, slots=True)
class PhaseChange:
    """One line: from then on the replica is in this phase."""

    number: int
    """Of the run's lines, from 1."""
    pool: str
    replica: str
    phase: Phase
    at_ms: int


@dataclass(frozen=True, slots=True)
class Run:
    """One life of a driver, as far as it has got."""

    id: str
    """20 hexadecimal digits."""
    seen_until_ms: int
    """What the last lines say holds until then."""
    is_over: bool
    """Its driver has ended: nothing will be added."""
    changes: tuple[PhaseChange, ...]


class TimeWriter:
    """The driver's side: one run."""

    def __init__(self, state_dir: Path) -> None:
        """Begin a run; its file is made with its first line."""
        self._folder = state_dir / FOLDER
        self._path = self._folder / f"{secrets.token_hex(10)}.jsonl"
        self._phases: dict[str, Phase] = {}
        self._number = 0
        self._last_ms = 0
        self._whole_bytes = 0
        """Of the file: what lies behind is a piece of a line that found no room."""

    def note(self, pool: str, replica: str, phase: Phase) -> None:
        """The replica is in this phase from now on; a full disk is logged and ends no fleet."""
        if self._phases.get(replica) is phase:
            return
        self._last_ms = max(self._last_ms, time.time_ns() // 1_000_000)
        change = PhaseChange(self._number + 1, pool, replica, phase, self._last_ms)
        try:
            self._write(change)
        except OSError as error:
            _LOG.warning("the time of replica %s is not written down: %s", replica, error)
            return
        self._number += 1
        self._phases[replica] = phase

    def beat(self) -> None:
        """What was said last still holds."""
        if not self._number:
            return
        try:
            os.utime(self._path)
        except OSError as error:
            _LOG.warning("replica time is not kept up to date: %s", error)

    def _write(self, change: PhaseChange) -> None:
        lines = [json.dumps(asdict(change))]
        if not self._number:
            self._folder.mkdir(parents=True, exist_ok=True)
            _delete_old(self._folder)
            owner = FleetOwner.of(os.getpid())
            if owner is None:
                raise OSError("/proc does not show this very process")
            lines.insert(0, json.dumps({"version": _VERSION, "owner": asdict(owner)}))
        self._append("".join(f"{line}\n" for line in lines).encode())

    def _append(self, data: bytes) -> None:
        """Whole and on disk, or not at all.

        Raises:
            OSError: it is not there; the next call takes away what of it is.
        """
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        try:
            if os.fstat(descriptor).st_size != self._whole_bytes:
                os.ftruncate(descriptor, self._whole_bytes)
            # One write, so that who is killed leaves a whole line or none; on disk, for the power may fail.
            written = os.write(descriptor, data)
            if written != len(data):
                raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes found room")
            os.fsync(descriptor)
            self._whole_bytes += written
        finally:
            os.close(descriptor)


def read_runs(state_dir: Path) -> list[Run]:
    """Every run that was written in this state folder; a file that is not one is logged and left out."""
    runs: list[Run] = []
    for path in sorted((state_dir / FOLDER).glob("*.jsonl")):
        try:
            runs.append(_read(path))
        except FileNotFoundError:
            continue  # it was old, and its driver's successor has just deleted it
        except (OSError, ValueError, KeyError, TypeError) as error:
            _LOG.warning("%s is not replica time and is ignored: %r", path, error)
    return runs


def _read(path: Path) -> Run:
    head, _, _ = path.read_text(encoding="utf-8").partition("\n")
    described: dict[str, Any] = json.loads(head)
    if described["version"] != _VERSION:
        raise ValueError(f"version {described['version']}, expected {_VERSION}")
    # Whether its driver lives is asked before its lines are read: a dead one's are all there.
    now_ms = time.time_ns() // 1_000_000
    is_over = not FleetOwner(**described["owner"]).is_alive
    text = path.read_text(encoding="utf-8")
    # A line without its end is being written.
    whole = text[: text.rfind("\n") + 1].splitlines()[1:]
    changes = _changes_of(whole, path)
    last_ms = max((change.at_ms for change in changes), default=0)
    seen_ms = path.stat().st_mtime_ns // 1_000_000 if is_over else now_ms
    return Run(path.stem, max(seen_ms, last_ms), is_over, changes)


def _changes_of(lines: Sequence[str], path: Path) -> tuple[PhaseChange, ...]:
    """Up to the first line that cannot be read: what is before it is paid for all the same."""
    changes: list[PhaseChange] = []
    for number, line in enumerate(lines, start=2):
        try:
            changes.append(_change_of(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            _LOG.warning(
                "%s, line %d is no replica time; it and what follows is ignored: %r", path, number, error
            )
            break
    return tuple(changes)


def _change_of(written: dict[str, Any]) -> PhaseChange:
    return PhaseChange(**{**written, "phase": Phase(written["phase"])})


def _delete_old(folder: Path) -> None:
    before_ns = time.time_ns() - int(KEPT_S * 1e9)
    for path in folder.glob("*.jsonl"):
        if path.stat().st_mtime_ns < before_ns:
            path.unlink(missing_ok=True)
