"""How is it made sure that nothing of a replica outlives the program that started it?

A replica is a tree: vLLM's API server, its engine, its workers. Each is started by the one before, and none
of them ends when its parent is killed with SIGKILL (vLLM 0.32: the engine waits on a socket for ever). So a
replica runs under this program, in a session of its own:

    fleet ──pipe──▶ keeper ──▶ second keeper ──▶ API server ──▶ engine ──▶ workers

Both keepers are subreapers (Linux: orphaned descendants become their children), so all of the tree can be
found below them at any time. The end of the fleet closes the pipe; the end of the keeper signals the second
one; the end of the second keeper kills the API server, and the keeper ends the rest. To leave a process
behind, somebody would have to kill both keepers within the same instant.

Runs under the gateway's interpreter, imports the standard library only, Linux only. The exit status is that
of the command, or 128 + the signal that ended it.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_POLL_S = 1.0
_LOOK_S = 0.02
_STRAGGLERS_GRACE_S = 1.0
"""How long the rest of the tree may take after its first process has ended; it serves nobody any more."""
_KILL_DEADLINE_S = 10.0
"""A process in uninterruptible sleep does not even heed SIGKILL; waiting for ever would not help."""


@dataclass(frozen=True, slots=True)
class _Status:
    """A line of /proc/<pid>/stat (proc_pid_stat(5))."""

    pid: int
    state: str
    parent_pid: int
    session_id: int
    started_ticks: int


def main(arguments: list[str] | None = None) -> int:
    """Run the command after `--` and end its whole tree when it, or whoever started us, ends."""
    parser = argparse.ArgumentParser(prog="guard", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--watch-fd", type=int, required=True, help="read end of the starter's pipe")
    parser.add_argument("--grace-s", type=float, default=10.0, help="from SIGTERM to SIGKILL")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    os.set_inheritable(options.watch_fd, False)
    wake_fd = _catch_signals()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    keeper_pid = os.getpid()
    second_pid = os.fork()
    if second_pid:
        # The second keeper needs the grace for the command; ours must outlast it.
        keeper = _Keeper(
            second_pid,
            wake_fd,
            watch_fd=options.watch_fd,
            grace_s=options.grace_s + 2 * _STRAGGLERS_GRACE_S,
        )
        return keeper.run()
    os.close(options.watch_fd)
    wake_fd = _catch_signals()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _die_with(keeper_pid, signal.SIGTERM)
    return _Keeper(_start(options.command), wake_fd, watch_fd=None, grace_s=options.grace_s).run()


def stat_of(pid: int) -> _Status | None:
    """The process's line in /proc, None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in parentheses, which may hold spaces and parentheses itself.
    fields = text.rpartition(")")[2].split()
    return _Status(pid, fields[0], int(fields[1]), int(fields[3]), int(fields[19]))


def processes() -> Iterator[_Status]:
    """Every process of this machine (or container) that is not a zombie."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (status := stat_of(int(entry.name))) and status.state not in "ZX":
            yield status


def session_members(session_id: int) -> list[int]:
    """The living processes of a session; a replica's session id is its keeper's pid."""
    return [status.pid for status in processes() if status.session_id == session_id]


def signal_all(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to each that still exists."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


class _Keeper:
    """Waits for one child, and ends everything below this process when it is time."""

    def __init__(self, child_pid: int, wake_fd: int, *, watch_fd: int | None, grace_s: float) -> None:
        self._child_pid = child_pid
        self._wake_fd = wake_fd
        self._watch_fd = watch_fd
        self._grace_s = grace_s
        self._parent_pid = os.getppid()
        self._status: int | None = None
        """Exit status of the child, None while it runs."""

    def run(self) -> int:
        """Wait until the child or the starter ends or a signal asks us to end; leave nothing behind."""
        while self._status is None and not self._shall_end(_POLL_S):
            self._reap()
        if self._status is None:
            signal_all([self._child_pid], signal.SIGTERM)
            self._wait_until(lambda: self._status is not None, self._grace_s)
        if self._status is not None and _descendants():
            signal_all(_descendants(), signal.SIGTERM)
            self._wait_until(lambda: not _descendants(), _STRAGGLERS_GRACE_S)
        deadline_s = time.monotonic() + _KILL_DEADLINE_S
        while (left := _descendants()) and time.monotonic() < deadline_s:
            # Again and again: a process may have forked between the look and the signal.
            signal_all(left, signal.SIGKILL)
            time.sleep(_LOOK_S)
            self._reap()
        self._reap()
        return self._status if self._status is not None else 128 + signal.SIGKILL

    def _wait_until(self, done: Callable[[], bool], patience_s: float) -> None:
        """Returns early on another signal: whoever sends it again wants the end now."""
        deadline_s = time.monotonic() + patience_s
        is_urged = False
        while not done() and not is_urged and time.monotonic() < deadline_s:
            is_urged = self._is_signalled([self._wake_fd], _LOOK_S)
            self._reap()

    def _shall_end(self, patience_s: float) -> bool:
        """Wait for a signal or the end of our starter; True if we shall end."""
        watched = [self._wake_fd] if self._watch_fd is None else [self._wake_fd, self._watch_fd]
        # The pipe's other end may live on in a process that the starter forked; then our new parent tells.
        return self._is_signalled(watched, patience_s) or os.getppid() != self._parent_pid

    def _is_signalled(self, watched: list[int], patience_s: float) -> bool:
        ready, _, _ = select.select(watched, [], [], patience_s)
        if self._wake_fd in ready:
            received = os.read(self._wake_fd, 512)
            if any(number in received for number in _ENDING_SIGNALS):
                return True
        # Nobody ever writes to the starter's pipe: readable means that its other end is gone.
        return self._watch_fd is not None and self._watch_fd in ready

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._child_pid:
                code = os.waitstatus_to_exitcode(status)
                self._status = code if code >= 0 else 128 - code


def _descendants() -> list[int]:
    """Everything below this process; complete, because orphans come back to us."""
    children: dict[int, list[int]] = {}
    for status in processes():
        children.setdefault(status.parent_pid, []).append(status.pid)
    found: list[int] = []
    level = [os.getpid()]
    while level:
        level = [child for parent in level for child in children.get(parent, ())]
        found += level
    return found


def _catch_signals() -> int:
    """Turn signals into bytes on a pipe, so that one `select` waits for everything; its read end."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    for number in (*_ENDING_SIGNALS, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return read_fd


def _start(command: list[str]) -> int:
    starter_pid = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        _die_with(starter_pid, signal.SIGKILL)
        # Python ignores SIGPIPE, and what is ignored stays so in the program that we become.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execvp(command[0], command)  # noqa: S606 - no shell is what we want
    except OSError as error:
        os.write(2, f"cannot start {command[0]}: {error}\n".encode())
    os._exit(127)


def _die_with(parent_pid: int, number: signal.Signals) -> None:
    """Have the kernel send us a signal when our parent ends; at once if it is gone already."""
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), number)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), *(ctypes.c_ulong(0) for _ in range(3))) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


if __name__ == "__main__":
    sys.exit(main())
