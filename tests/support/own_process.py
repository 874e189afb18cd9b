"""How does a test run a `tollgate` command without a process for each?

A process of its own takes over a second to load and a few milliseconds to work. Here the same `main` runs in
the test's process, with the environment, the folder and the streams that a process would have. What a
process alone shows (signals, what is loaded, how it ends) is `gateway_process.run_cli`'s.
"""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from gateway.cli import main
from gateway.commands.terminal import out


def run_here(
    environment: Mapping[str, str], folder: Path, *arguments: str, given: str = ""
) -> subprocess.CompletedProcess[str]:
    """One command, to its end; what `run_cli` returns. One at a time: a process has one environment.

    Args:
        environment: all of it, as `gateway_process.environment` makes it.
        folder: where it runs.
        arguments: what follows `tollgate`.
        given: what stands on the standard input.
    """
    printed, told = io.StringIO(), io.StringIO()
    with (
        _as_if_started(environment, folder, ["tollgate", *arguments], given=given),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(told),
    ):
        status = _status_of_main()
    return subprocess.CompletedProcess(arguments, status, printed.getvalue(), told.getvalue())


def _status_of_main() -> int:
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, int):
            return end.code
        sys.stderr.write("" if end.code is None else f"{end.code}\n")
        return int(end.code is not None)
    return 0


@contextlib.contextmanager
def _as_if_started(
    environment: Mapping[str, str], folder: Path, command: list[str], *, given: str
) -> Iterator[None]:
    own, width = dict(os.environ), out.width  # noqa: TID251 - it is put back
    called, read = sys.argv, sys.stdin
    try:
        _set_environment(environment)
        # What rich reads once, when it is imported.
        out.width = int(environment["COLUMNS"])
        sys.argv, sys.stdin = command, io.StringIO(given)
        with contextlib.chdir(folder):
            yield
    finally:
        _set_environment(own)
        out.width = width
        sys.argv, sys.stdin = called, read


def _set_environment(values: Mapping[str, str]) -> None:
    os.environ.clear()  # noqa: TID251 - as a new process would have it
    os.environ.update(values)  # noqa: TID251 - as above
