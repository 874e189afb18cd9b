"""How much processor did a tree of processes take, how fast is the machine now, and who else works on it?

Nanoseconds from a control group of its own where the kernel lets us make one (version 1's cpuacct, version
2's cpu.stat; children that have ended are counted too), else the 10 ms ticks of /proc over the tree. Linux
only.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_VERSION_1: Final = Path("/sys/fs/cgroup/cpuacct")
_VERSION_2: Final = Path("/sys/fs/cgroup")
_JOB: Final = """
import hashlib, time
data, began, total = b"x" * 1048576, time.process_time(), 0
for _ in range(60):
    hashlib.sha256(data).digest()
for number in range(400_000):
    total += number * number
print((time.process_time() - began) * 1e3)
"""
"""A fixed job, half C and half interpreter; about 60 ms on the machine of the first figures."""
_CALIBRATIONS: Final = 3


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty if it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text[text.rindex(")") + 2 :].split()  # the name in brackets may contain anything


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, to_do = [], [root]
    while to_do:
        pid = to_do.pop()
        found.append(pid)
        to_do += children.get(pid, [])
    return found


def tree_cpu_s(root: int) -> float:
    """CPU of the tree by ticks, the children that were waited for included."""
    # Fields 14 to 17 of proc(5): utime, stime, cutime, cstime.
    return sum(int(ticks) for pid in tree(root) for ticks in _stat(pid)[11:15]) / TICKS_PER_S


def tree_memory_mb(root: int) -> float:
    """Resident memory of the tree; what its processes share counts in each."""
    total = 0
    for pid in tree(root):
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return total * os.sysconf("SC_PAGE_SIZE") / 1e6


def child_named(name: str) -> int | None:
    """A child of this process by the name of its program."""
    for pid in tree(os.getpid()):
        with contextlib.suppress(OSError):
            fields = _stat(pid)
            is_child = bool(fields) and int(fields[1]) == os.getpid()
            if is_child and Path(f"/proc/{pid}/comm").read_text().strip() == name:
                return pid
    return None


class CpuGroup:
    """Counts what one target uses."""

    def __init__(self, name: str) -> None:
        self._folder, self._file, self._per_s = _make_group(f"tollgate-lab-{os.getpid()}-{name}")

    @property
    def is_exact(self) -> bool:
        """Nanoseconds or microseconds, and not ticks."""
        return self._folder is not None

    def enter(self) -> None:
        """Become a member; between fork and exec."""
        if self._folder is not None:
            (self._folder / "cgroup.procs").write_text(str(os.getpid()))

    def cpu_s(self, root: int) -> float:
        """Seconds that the members have used; by ticks of that tree where there is no group."""
        if self._folder is None:
            return tree_cpu_s(root)
        words = (self._folder / self._file).read_text().split()
        return int(words[-1] if len(words) == 1 else words[words.index("usage_usec") + 1]) / self._per_s

    def close(self) -> None:
        """Remove it; its members have ended."""
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._folder.rmdir()


def _make_group(name: str) -> tuple[Path | None, str, float]:
    for parent, file, per_s in ((_VERSION_1, "cpuacct.usage", 1e9), (_VERSION_2, "cpu.stat", 1e6)):
        if not (parent / "cgroup.procs").exists():
            continue
        with contextlib.suppress(OSError):
            folder = parent / name
            folder.mkdir()
            if (folder / file).exists() and _can_enter(folder):
                return folder, file, per_s
            folder.rmdir()
    return None, "", 1.0


def _can_enter(folder: Path) -> bool:
    """Whether a process of ours may become a member; only trying tells, in version 2."""
    into = f"echo $$ > {shlex.quote(str(folder / 'cgroup.procs'))}"
    return subprocess.run(["/bin/sh", "-c", into], capture_output=True, check=False).returncode == 0


@dataclass(frozen=True, slots=True)
class MachineUse:
    """What the machine as a whole has done so far, seconds of CPU."""

    busy_s: float
    """By everybody, this program included."""
    ours_s: float
    """By this program and all that it started."""
    stolen_s: float
    """What the hypervisor gave to others."""


def machine_use() -> MachineUse:
    """Counters to be subtracted."""
    fields = [int(field) for field in Path("/proc/stat").read_text().partition("\n")[0].split()[1:]]
    user, nice, system, _idle, _iowait, hard_interrupts, soft_interrupts, stolen = fields[:8]
    busy = user + nice + system + hard_interrupts + soft_interrupts
    return MachineUse(busy / TICKS_PER_S, tree_cpu_s(os.getpid()), stolen / TICKS_PER_S)


def calibrate(core: int) -> float:
    """CPU milliseconds that the fixed job takes on a core now; the least of three."""
    return min(
        float(
            subprocess.run(
                [sys.executable, "-c", _JOB],
                capture_output=True,
                text=True,
                check=True,
                preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            ).stdout
        )
        for _ in range(_CALIBRATIONS)
    )
