"""Which programs does the lab run, and where do they come from?

Two are its own, in C because Python could not load a proxy that takes 20 microseconds per request:
`upstream.c` and `load.c`, built on first use. The others are Debian's; a missing one is an error that names
its package.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.load.measured import ROOT

SOURCES: Final = Path(__file__).resolve().parent
BUILD: Final = ROOT / ".tollgate" / "build"
PACKAGES: Final = {"cc": "gcc libc6-dev", "nginx": "nginx-light"}
"""Debian package by program."""


class ProgramMissing(RuntimeError):
    """A program is not installed; the message names its package."""


class BuildFailed(RuntimeError):
    """A C program does not compile; the message is the compiler's."""


def find_program(name: str) -> Path:
    """Where a program of Debian's is.

    Raises:
        ProgramMissing: it is not there.
    """
    # Debian keeps daemons out of the PATH of ordinary users.
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise ProgramMissing(f"{name} is missing: apt-get install {PACKAGES[name]}")
    return Path(found)


def build(name: str) -> Path:
    """The C program of this name, compiled if its source is newer.

    Raises:
        ProgramMissing: there is no compiler.
        BuildFailed: it does not compile.
    """
    source, program = SOURCES / f"{name}.c", BUILD / name
    if program.exists() and program.stat().st_mtime_ns > source.stat().st_mtime_ns:
        return program
    compiler = find_program("cc")
    BUILD.mkdir(parents=True, exist_ok=True)
    # Built aside and then renamed, for another run may be using the old one or building the same.
    descriptor, path = tempfile.mkstemp(prefix=f"{name}-", dir=BUILD)
    os.close(descriptor)
    command: list[str | Path] = [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", path, source]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    if outcome.returncode != 0:
        Path(path).unlink()
        raise BuildFailed(f"{source.name}: {outcome.stderr}")
    return Path(path).rename(program)
