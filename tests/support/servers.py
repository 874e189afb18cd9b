"""Where do tests get a real PostgreSQL and a real Redis from?

Each context manager starts a server of its own on a free port in a temporary folder, and removes both. The
machine's own servers are left alone. The kernel ends a server whose test process dies (PR_SET_PDEATHSIG), so
an aborted run leaves no processes; after a SIGKILL the temporary folder stays.

Facts: PostgreSQL refuses to run as root (initdb(1), version 15), hence the `postgres` user that Debian's
package brings; SIGINT is its fast shutdown, and ends Redis 7 too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

START_S = 60.0
STOP_S = 30.0
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)
DEBIAN_POSTGRES = Path("/usr/lib/postgresql")


class ServerMissing(RuntimeError):
    """The server's program is not installed."""


class ServerFailed(RuntimeError):
    """The server did not start; the message holds the end of its log."""


@dataclass(frozen=True)
class User:
    """Whom a server runs as; None where it is whoever runs the tests."""

    name: str
    uid: int
    gid: int


@dataclass
class Server:
    """One running server."""

    process: subprocess.Popen[bytes]
    log: Path

    def tail(self) -> str:
        """The end of the log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-2000:]


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def postgres_bin() -> Path:
    """The folder of initdb and postgres, the newest of several.

    Raises:
        ServerMissing: PostgreSQL is not installed.
    """
    found = [path.parent for path in DEBIAN_POSTGRES.glob("*/bin/initdb")]
    on_path = shutil.which("initdb")
    if on_path is not None:
        found.append(Path(on_path).resolve().parent)
    if not found:
        raise ServerMissing("PostgreSQL's initdb is missing: apt-get install postgresql")
    return max(found, key=lambda path: (path.parent.name.isdecimal(), path.parent.name.zfill(4)))


def postgres_user() -> User | None:
    """The unprivileged user that PostgreSQL insists on when the tests run as root."""
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam("postgres")
    return User(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)


def die_with_parent(parent: int, user: User | None) -> Callable[[], None]:
    """What a server does between fork and exec: become its user, and ask to end with the tests."""

    def prepare() -> None:
        if user is not None:
            os.setgroups([])
            os.setgid(user.gid)
            os.setuid(user.uid)
        # After setuid, which clears it.
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGINT)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return prepare


def start(command: list[str | Path], log: Path, user: User | None) -> Server:
    """Start a server in a process group of its own, so that Ctrl-C in a terminal ends the tests first.

    The kernel's signal comes when the thread that forked ends, not the process: call this from the main
    thread, or from one that lives as long as the tests.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            start_new_session=True,
            preexec_fn=die_with_parent(os.getpid(), user),  # noqa: PLW1509 - no lock is taken between fork and exec
        )
    return Server(process=process, log=log)


def wait_until(ready: Callable[[], bool], server: Server, name: str) -> None:
    """Wait for a server to serve.

    Raises:
        ServerFailed: it ended, or took longer than START_S.
    """
    deadline = time.monotonic() + START_S
    while not ready():
        if server.process.poll() is not None:
            raise ServerFailed(f"{name} ended with status {server.process.returncode}:\n{server.tail()}")
        if time.monotonic() > deadline:
            raise ServerFailed(f"{name} did not start within {START_S:.0f} s:\n{server.tail()}")
        time.sleep(0.02)


def stop(server: Server) -> None:
    """End a server by its fast shutdown, and by force when that takes too long."""
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGINT)
    try:
        server.process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()


@contextlib.contextmanager
def folder_for(name: str, user: User | None) -> Iterator[Path]:
    """A temporary folder that the server's user owns; the path is short because a socket's path must be."""
    path = Path(tempfile.mkdtemp(prefix=f"tg-{name}-"))
    try:
        if user is not None:
            os.chown(path, user.uid, user.gid)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def initialise_cluster(programs: Path, data: Path, user: User | None) -> None:
    """Create a cluster whose superuser is `postgres`, trusted on the loopback address.

    Raises:
        ServerFailed: initdb failed.
    """
    outcome = subprocess.run(
        [
            programs / "initdb",
            "-D",
            data,
            "-U",
            "postgres",
            "--auth=trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=data.parent,
        preexec_fn=die_with_parent(os.getpid(), user),
    )
    if outcome.returncode != 0:
        raise ServerFailed(f"initdb: {outcome.stdout}{outcome.stderr}")


@contextlib.contextmanager
def postgres_server(*, settings: dict[str, str] | None = None) -> Iterator[str]:
    """A PostgreSQL of its own; yields `postgresql+asyncpg://postgres@127.0.0.1:PORT/postgres`.

    fsync stays on: tests of crashes need what a commit promises.

    Args:
        settings: server settings beside ours, such as {"max_connections": "20"}.

    Raises:
        ServerMissing: PostgreSQL is not installed.
        ServerFailed: it does not start.
    """
    programs, user = postgres_bin(), postgres_user()
    with folder_for("postgres", user) as folder:
        data = folder / "data"
        initialise_cluster(programs, data, user)
        port = free_port()
        values = {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": str(folder)}
        values |= {"timezone": "UTC", "log_timezone": "UTC", **(settings or {})}
        options = [part for name, value in values.items() for part in ("-c", f"{name}={value}")]
        server = start([programs / "postgres", "-D", data, *options], folder / "server.log", user)
        try:
            probe: list[str | Path] = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
            wait_until(lambda: subprocess.run(probe, check=False).returncode == 0, server, "PostgreSQL")
            yield f"postgresql+asyncpg://postgres@127.0.0.1:{port}/postgres"
        finally:
            stop(server)


def redis_answers(port: int) -> bool:
    """Whether a Redis on this port answers PING (a Redis that loads its data does not yet)."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16) == b"+PONG\r\n"
    except OSError:
        return False


@contextlib.contextmanager
def redis_server(*, arguments: list[str] | None = None, port: int | None = None) -> Iterator[str]:
    """A Redis of its own, without persistence; yields `redis://127.0.0.1:PORT/0`.

    Args:
        arguments: options beside ours, such as ["--maxmemory", "10mb"].
        port: where; None: on a free one.

    Raises:
        ServerMissing: Redis is not installed.
        ServerFailed: it does not start.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise ServerMissing("redis-server is missing: apt-get install redis-server")
    with folder_for("redis", None) as folder:
        port = port or free_port()
        ours = [
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(folder),
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        server = start([program, *ours, *(arguments or [])], folder / "server.log", None)
        try:
            wait_until(lambda: redis_answers(port), server, "Redis")
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            stop(server)


@contextlib.contextmanager
def sentinel_server(master: str, *, name: str) -> Iterator[str]:
    """A Redis Sentinel that watches one master; yields `127.0.0.1:PORT`.

    Args:
        master: the master's address, as `redis_server` yields it.
        name: under which the sentinel knows it.

    Raises:
        ServerMissing: Redis is not installed.
        ServerFailed: it does not start.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise ServerMissing("redis-server is missing: apt-get install redis-server")
    with folder_for("sentinel", None) as folder:
        port, master_port = free_port(), master.rpartition(":")[2].partition("/")[0]
        # A sentinel rewrites its own file, so that it needs one.
        file = folder / "sentinel.conf"
        file.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor {name} 127.0.0.1 {master_port} 1\n"
        )
        server = start([program, file, "--sentinel"], folder / "server.log", None)
        try:
            wait_until(lambda: redis_answers(port), server, "Redis Sentinel")
            yield f"127.0.0.1:{port}"
        finally:
            stop(server)


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Storage that speaks S3 (moto's server, in memory) of its own; yields `http://127.0.0.1:PORT`.

    Raises:
        ServerFailed: it does not start.
    """
    with folder_for("s3", None) as folder:
        port = free_port()
        command: list[str | Path] = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = start(command, folder / "s3.log", None)
        try:
            wait_until(lambda: _listens(port), server, "moto's server")
            yield f"http://127.0.0.1:{port}"
        finally:
            stop(server)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
