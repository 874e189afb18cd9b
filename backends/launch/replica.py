"""How is one replica's tree of processes started, watched and ended?

One object per replica of a `process` pool, over all its restarts. Whether it serves is asked elsewhere
(`backends.probe`), when to restart it too (`backends.launch.process`). Linux only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shlex
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from backends.launch import guard
from backends.pool import PoolSpec, ReplicaState

ERRORS_MAX = 5
_PORTS = range(20_000, 32_000)
"""Below the range that Linux takes outgoing connections from (32768…), so that none of them is in the way
between our look and the server's bind, which is several seconds later."""
_LOG_BYTES_MAX = 20_000_000
_TAIL_BYTES = 64_000
_UNREADY_GRACE_S = 2.0
_KILL_MARGIN_S = 4.0
"""What the guard may need beyond the grace to kill and reap what did not heed SIGTERM."""


class LaunchError(RuntimeError):
    """A replica, or the fleet, could not be started; the text is for the operator and names the log."""


class ReplicaProcess:
    """One replica: its guard, address and log. Not safe for use from several tasks at once, but for `end`."""

    def __init__(self, spec: PoolSpec, name: str, log_path: Path) -> None:
        self.spec = spec
        self.name = name
        self.log_path = log_path
        self.state = ReplicaState.STARTING
        self.url = ""
        self.pid = 0
        """Of the guard, and the id of the session of everything under it; 0 before the first start."""
        self.started_at_s = time.monotonic()
        self.ready_since_s: float | None = None
        self.examined_at_ns = 0
        """The last ask to look at it that was heeded, by the machine's clock; older ones are history."""
        self.detail = ""
        """Why it is in this state, for people."""
        self.restarts = 0
        self.errors: deque[tuple[int, str]] = deque(maxlen=ERRORS_MAX)
        """What went wrong last, and when (epoch ms)."""
        self.wake_s: float | None = None
        """How long a wake takes, by those that were measured; None: none was, and it never sleeps."""
        self._process: Process | None = None
        self._pipe_fd: int | None = None
        self._log_start_bytes = 0

    async def launch(
        self, argv: list[str], environment: Mapping[str, str], *, port: int, grace_s: float
    ) -> None:
        """Start the command under a guard; its output goes to the log.

        Raises:
            LaunchError: the log cannot be written or the guard cannot be started.
        """
        read_fd, write_fd = os.pipe()
        try:
            log_fd = self._open_log(argv)
            try:
                self._process = await asyncio.create_subprocess_exec(
                    # By path and isolated: found whatever the working directory and PYTHONPATH are.
                    *(sys.executable, "-I", guard.__file__),
                    *("--watch-fd", str(read_fd), "--grace-s", str(grace_s), "--"),
                    *argv,
                    stdin=DEVNULL,
                    stdout=log_fd,
                    stderr=STDOUT,
                    pass_fds=(read_fd,),
                    env=dict(environment),
                    cwd=self.log_path.parent,
                    # The terminal's Ctrl-C goes to us alone, and the session's id finds what is left.
                    start_new_session=True,
                )
            finally:
                os.close(log_fd)
        except OSError as error:
            os.close(write_fd)
            raise LaunchError(f"replica '{self.name}' cannot be started: {error}") from error
        except BaseException:
            os.close(write_fd)  # the guard, if there is one already, ends on this
            raise
        finally:
            os.close(read_fd)
        self._pipe_fd = write_fd
        self.pid = self._process.pid
        self.url = f"http://127.0.0.1:{port}"
        self.started_at_s = time.monotonic()
        self.examined_at_ns = time.time_ns()
        self.ready_since_s = None

    @property
    def is_running(self) -> bool:
        """Has it been started and not ended since?"""
        return self._process is not None and self._process.returncode is None

    async def exited_within(self, patience_s: float) -> int | None:
        """Wait for its end; the exit status (128 + signal), None if it still runs after that time."""
        if self._process is None:
            return 0
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(self._process.wait(), patience_s)
        return None

    async def end(self, grace_s: float) -> None:
        """End everything of this replica: SIGTERM, after `grace_s` SIGKILL. Returns when nothing is left.

        One that was never ready has no requests to finish and gets two seconds; vLLM heeds no SIGTERM while
        it loads.
        """
        if self._process is None:
            return
        if self.ready_since_s is None:
            grace_s = min(grace_s, _UNREADY_GRACE_S)
        if self._process.returncode is None:
            self._signal_guard(signal.SIGTERM)
            if await self.exited_within(grace_s) is None:
                # The guard has a grace of its own, which a second signal cuts short.
                self._signal_guard(signal.SIGTERM)
            if await self.exited_within(_KILL_MARGIN_S) is None:
                self._signal_guard(signal.SIGKILL)
                await self._process.wait()
                grace_s = 0.0
        # A guard that was killed leaves its second keeper to end the tree; see that it did.
        await self._await_empty_session(grace_s)
        self._close_pipe()

    def _signal_guard(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _await_empty_session(self, grace_s: float) -> None:
        deadline_s = time.monotonic() + grace_s
        while members := guard.session_members(self.pid):
            if time.monotonic() >= deadline_s:
                guard.signal_all(members, signal.SIGKILL)
            if time.monotonic() >= deadline_s + _KILL_MARGIN_S:
                return  # not even SIGKILL ends a process in uninterruptible sleep
            await asyncio.sleep(0.05)

    def _close_pipe(self) -> None:
        if self._pipe_fd is not None:
            os.close(self._pipe_fd)
            self._pipe_fd = None

    def _open_log(self, argv: list[str]) -> int:
        """A descriptor at the log's end; an old log that grew too large is put aside first."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        if self.log_path.exists() and self.log_path.stat().st_size > _LOG_BYTES_MAX:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        descriptor = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        os.write(descriptor, f"--- starting: {shlex.join(argv)}\n".encode())
        self._log_start_bytes = os.fstat(descriptor).st_size
        return descriptor

    def log_tail(self, lines_max: int = 20) -> list[str]:
        """The last lines that the present (or last) start wrote."""
        try:
            with self.log_path.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start_bytes, end - _TAIL_BYTES))
                text = log.read().decode(errors="replace")
        except OSError as error:
            return [f"(the log cannot be read: {error})"]
        return [line for line in text.splitlines() if line.strip()][-lines_max:]


def free_port(taken: set[int]) -> int:
    """A TCP port on the loopback address that nothing listens on now and that is not in `taken`.

    Raises:
        LaunchError: none was found in many tries.
    """
    for _ in range(200):
        port = _PORTS[secrets.randbelow(len(_PORTS))]
        if port in taken:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise LaunchError(f"no free TCP port between {_PORTS.start} and {_PORTS.stop}")
