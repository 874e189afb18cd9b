"""How does a test stop a real PostgreSQL or Redis under a program's feet, and start it again where it was?

Both keep their port and their folder. `tests.support.servers` has those that only run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.support import servers

_PG_SETTINGS: Final = {"timezone": "UTC", "log_timezone": "UTC", "log_lock_waits": "on"}


class BreakablePostgres:
    """One cluster, running or not. fsync is on: a crash must lose nothing that was committed."""

    def __init__(self, folder: Path) -> None:
        """Make and start it.

        Args:
            folder: of its own, owned by the server's user (`servers.folder_for`).

        Raises:
            ServerMissing: PostgreSQL is not installed.
            ServerFailed: it does not start.
        """
        self._programs, self._user = servers.postgres_bin(), servers.postgres_user()
        self._folder, self._data = folder, folder / "data"
        self.port = servers.free_port()
        servers.initialise_cluster(self._programs, self._data, self._user)
        self.start()

    @property
    def url(self) -> str:
        """Of its first database."""
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def log(self) -> str:
        """All that it has logged, over all starts."""
        return "".join(path.read_text(errors="replace") for path in sorted(self._folder.glob("server-*.log")))

    def start(self) -> None:
        """Start it again; it recovers by itself."""
        values = {
            **_PG_SETTINGS,
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self._folder),
        }
        options = [part for name, value in values.items() for part in ("-c", f"{name}={value}")]
        log = self._folder / f"server-{len(list(self._folder.glob('server-*.log'))):03d}.log"
        self._server = servers.start(
            [self._programs / "postgres", "-D", self._data, *options], log, self._user
        )
        probe: list[str | Path] = [
            self._programs / "pg_isready",
            "-q",
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
        ]
        servers.wait_until(
            lambda: subprocess.run(probe, check=False).returncode == 0, self._server, "PostgreSQL"
        )

    def stop_immediately(self) -> None:
        """As a crash would: nothing is written down at the end."""
        subprocess.run(
            [self._programs / "pg_ctl", "stop", "-D", self._data, "-m", "immediate"],
            check=True,
            capture_output=True,
            cwd=self._folder,
            preexec_fn=servers.die_with_parent(os.getpid(), self._user),
        )
        self._server.process.wait(servers.STOP_S)

    def own_folder(self, name: str) -> Path:
        """A new folder that the server may write to, for a tablespace."""
        path = self._folder / name
        path.mkdir()
        self.give(path)
        return path

    def give(self, path: Path) -> None:
        """Make a folder the server's."""
        if self._user is not None:
            os.chown(path, self._user.uid, self._user.gid)

    def stop(self) -> None:
        """End it for good."""
        servers.stop(self._server)


class BreakableRedis:
    """One Redis without persistence: every start is empty."""

    def __init__(self, folder: Path) -> None:
        """Start it.

        Raises:
            ServerMissing: Redis is not installed.
            ServerFailed: it does not start.
        """
        program = shutil.which("redis-server")
        if program is None:
            raise servers.ServerMissing("redis-server is missing: apt-get install redis-server")
        self._program, self._folder = program, folder
        self.data = folder / "data"
        self.port = servers.free_port()
        self.start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it again, empty."""
        self.data.mkdir(exist_ok=True)
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.data),
            "save": "",
            "appendonly": "no",
            "enable-debug-command": "yes",
        }
        command = [self._program, *(part for name, value in options.items() for part in (f"--{name}", value))]
        self._server = servers.start([*command], self._folder / "server.log", None)
        servers.wait_until(lambda: servers.redis_answers(self.port), self._server, "Redis")

    def kill9(self) -> None:
        """As the out-of-memory killer would."""
        self._server.process.kill()
        self._server.process.wait(servers.STOP_S)

    def stop(self) -> None:
        """End it for good."""
        servers.stop(self._server)
