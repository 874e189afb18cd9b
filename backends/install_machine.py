"""Can this machine run Tollgate's gateway and vLLM, and which vLLM?

Looks, and changes nothing. Standard library only: `backends.install` asks before anything is installed.
"""

# ruff: noqa: S603 - it starts nvidia-smi and pythons found on PATH, with fixed arguments

from __future__ import annotations

import contextlib
import ctypes
import shutil
import subprocess
from pathlib import Path

SUPPORTED = ((3, 11), (3, 12), (3, 13))
"""Python versions; the first is the one that Tollgate is developed on."""


class InstallError(Exception):
    """Installation cannot go on; `next_step` says what a person can do about it."""

    def __init__(self, message: str, next_step: str, *, tail: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.next_step = next_step
        self.tail = tail


class NotOffered(InstallError):
    """The index has no such version (or none for this Python and platform)."""


def detect_hardware() -> str:
    """`cuda` when nvidia-smi works and lists a GPU, else `cpu`."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "cpu"
    try:
        listing = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        # A driver that does not answer cannot serve vLLM either.
        return "cpu"
    return "cuda" if listing.returncode == 0 and "GPU" in listing.stdout else "cpu"


def require_engine_platform(system: str, machine: str, libc: tuple[str, str]) -> None:
    """Wheels of vLLM exist for x86-64 Linux with glibc; the gateway runs on any POSIX system.

    Args:
        system: as platform.system() says it.
        machine: as platform.machine() says it.
        libc: name and version, as platform.libc_ver() says them.

    Raises:
        InstallError: the engine cannot run here.
    """
    if system != "Linux" or machine not in {"x86_64", "AMD64"}:
        raise InstallError(
            f"vLLM is installed from wheels for x86-64 Linux; this is {system} on {machine}",
            "run vLLM on an x86-64 Linux machine and name it in a pool file; the gateway itself runs here",
        )
    name, version = libc
    if name != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < (2, 28):
        raise InstallError(
            f"vLLM's wheels need glibc 2.28 or newer; here is {name or 'another'} {version}",
            "use a distribution of 2018 or later with glibc (Debian 11, Ubuntu 20.04, RHEL 9 or newer)",
        )


def require_numa_library(name: str = "libnuma.so.1") -> None:
    """The CPU kernels link libnuma, which no wheel brings: without it vLLM imports but cannot serve.

    Raises:
        InstallError: the library is missing.
    """
    try:
        ctypes.CDLL(name)
    except OSError:
        raise InstallError(
            f"the library {name} is missing, which vLLM's CPU kernels need",
            "apt-get install libnuma1 (Fedora, RHEL: dnf install numactl-libs), then run this again",
        ) from None


def require_space(folder: Path, needed_gb: float) -> None:
    """Fail before the download rather than in the middle of it.

    Raises:
        InstallError: the file system is too full.
    """
    present = size_of(folder)
    free = shutil.disk_usage(folder.parent).free
    if free + present < needed_gb * 1e9:
        raise InstallError(
            f"{folder.name} needs about {needed_gb:.1f} GB and {folder.parent} has {free / 1e9:.1f} GB left",
            f"free at least {needed_gb - (free + present) / 1e9:.1f} GB there and run this again",
        )


def size_of(folder: Path) -> int:
    """Bytes of the files under a folder, 0 where there is none."""
    total = 0
    for path in folder.rglob("*"):
        # Another program may be working in there.
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_size
    return total


def supported_python() -> str | None:
    """A Python on PATH that we support and that starts (a version manager's stub may not)."""
    for major, minor in SUPPORTED:
        program = shutil.which(f"python{major}.{minor}")
        if program is None:
            continue
        probe = subprocess.run([program, "-c", "import venv"], capture_output=True, check=False)
        if probe.returncode == 0:
            return program
    return None
