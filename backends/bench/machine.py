"""On which machine was it measured, and what else did the machine do meanwhile?

Linux only (/proc). What is neither vLLM's nor the bench's own is foreign: figures taken beside much of it are
worth little, and say so. How long the engine was ready to work and had no core, whoever took it, the kernel
counts itself (`schedstat`, second number); a step-time model is fitted to times without that.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from backends.launch.guard import processes
from backends.reference.speed import processor

_HASH_BYTES = 1 << 20
_SETS_TITLE = "VLLM::"
"""So begin the names of the engine's processes (vLLM 0.32, `utils/system_utils.py`), not of its front."""


def describe_hardware(gpu: str, gpus: int) -> str:
    """One line: the accelerator, or the processor with its cores."""
    if gpu != "cpu":
        return f"{gpus} x {gpu}"
    return f"{processor()}, {len(os.sched_getaffinity(0))} cores"


def weights_identity(folder: str | None) -> str | None:
    """SHA-256 over the weight files of a local folder, in the order of their names; None for a Hub name."""
    if folder is None or not Path(folder).is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")):
        with path.open("rb") as file:
            while part := file.read(_HASH_BYTES):
                digest.update(part)
    return digest.hexdigest()


def commit_of(folder: Path) -> str | None:
    """The commit of the folder's repository, with `+` if files were changed since; None without one."""
    if not (folder / ".git").exists():
        return None
    named = _git(folder, "rev-parse", "--short=12", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{named}{'+' if changed else ''}" if named else None


def _git(folder: Path, *arguments: str) -> str:
    try:
        found = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603, S607 - whichever git there is, our words
    except OSError:
        return ""
    return found.stdout.strip()


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Processor time since boot, clock ticks summed over the cores."""

    all_ticks: int
    busy_ticks: int
    own_ticks: int
    """Of this process and of the session that serves."""
    server: tuple[Books, ...]
    """Of the processes of the session that serves."""
    client: tuple[Books, ...]
    """Of this process."""

    @classmethod
    def now(cls, session: int | None) -> CpuTimes | None:
        """As it stands; None where the server's processes are not known, so nothing could be told apart."""
        if session is None:
            return None
        with Path("/proc/stat").open(encoding="utf-8") as file:
            fields = [int(field) for field in file.readline().split()[1:9]]
        idle = fields[3] + fields[4]
        ours = [one.pid for one in processes() if one.session_id == session]
        ticks = sum(_ticks_of(pid) for pid in (*ours, os.getpid()))
        client = _books_of([os.getpid()])
        return cls(sum(fields), sum(fields) - idle, ticks, _books_of(ours), client)

    def foreign_ratio_since(self, earlier: CpuTimes) -> float:
        """Share of the cores' time that others used."""
        foreign = (self.busy_ticks - earlier.busy_ticks) - (self.own_ticks - earlier.own_ticks)
        return min(1.0, max(0.0, foreign / max(1, self.all_ticks - earlier.all_ticks)))

    def engine_since(self, earlier: CpuTimes) -> tuple[float, float]:
        """Seconds that the engine ran, and that it was ready and had no core.

        That is its busiest thread: what stands beside it, the scheduler or other workers, spins while it
        waits for that one, and is ready without anything to do.
        """
        worked = _since(self.server, earlier.server)
        busiest = max(worked, default=_NOTHING, key=lambda one: one.ran_s)
        return busiest.ran_s, busiest.waited_s

    def chain_waited_s_since(self, earlier: CpuTimes) -> float:
        """Seconds that the client, the server's front and the engine had no core, added up."""
        others = [
            *(one for one in _since(self.server, earlier.server) if not one.name.startswith(_SETS_TITLE)),
            *_since(self.client, earlier.client),
        ]
        return self.engine_since(earlier)[1] + sum(one.waited_s for one in others)


@dataclass(frozen=True, slots=True)
class Books:
    """What the kernel counted for one process."""

    pid: int
    name: str
    threads_ns: dict[int, tuple[int, int]]
    """Thread → nanoseconds that it ran, and that it was ready and did not run."""


@dataclass(frozen=True, slots=True)
class _Worked:
    """The busiest thread of one process, between two readings."""

    name: str
    ran_s: float
    waited_s: float


_NOTHING = _Worked("", 0.0, 0.0)


def _since(now: Iterable[Books], earlier: Iterable[Books]) -> list[_Worked]:
    before = {one.pid: one.threads_ns for one in earlier}
    found = []
    for one in now:
        known = before.get(one.pid, {})
        spent = [
            (ran - known[thread][0], waited - known[thread][1])
            for thread, (ran, waited) in one.threads_ns.items()
            if thread in known
        ]
        ran_ns, waited_ns = max(spent, default=(0, 0))
        found.append(_Worked(one.name, ran_ns / 1e9, waited_ns / 1e9))
    return found


def _books_of(pids: Iterable[int]) -> tuple[Books, ...]:
    found = []
    for pid in pids:
        threads = {}
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                ran, waited, _ = path.read_text(encoding="utf-8").split()
            except (OSError, ValueError):
                continue  # it has ended, or the kernel keeps no such books
            threads[int(path.parent.name)] = (int(ran), int(waited))
        try:
            name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
        except OSError:
            continue
        found.append(Books(pid, name, threads))
    return tuple(found)


def _ticks_of(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    fields = stat.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
