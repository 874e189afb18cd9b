"""How does a test get a Tollgate of its own, as a program over sockets?

    with GatewayProcess(folder, {"speculative": [mock.url], "plain": [other.url]}) as gateway:
        httpx.get(f"{gateway.url}/v1/models", headers=gateway.headers)
        gateway.cli("report", "--json")

The program runs in a folder of its own with an environment of its own, so that nothing on this machine
changes what it does. It ends with the block, and the kernel ends it with the thread that started it.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.support.pool_files import DEFAULT_POLICY, ROOT, write_pools
from tests.support.servers import die_with_parent

PATIENCE_S: Final = 120.0
"""For a start or a stop on a busy machine: only against what hangs."""
COVERAGE: Final = "COVERAGE_PROCESS_CONFIG"
"""What coverage.py (7.x, `patch = subprocess`) leaves for child processes."""
_SERVES: Final = re.compile(r"Tollgate serves on (http://127\.0\.0\.1:\d+)")
# The gateway must be reached directly, whatever proxy the environment names.
_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class GatewayProcess:
    """A running `tollgate serve`."""

    def __init__(
        self,
        folder: Path,
        urls: Mapping[str, Sequence[str]],
        *,
        settings: Mapping[str, str] | None = None,
        is_up: bool = True,
        start_timeout_s: float = PATIENCE_S,
        program: Sequence[str] | None = None,
        is_measured: bool = False,
    ) -> None:
        """Start it and wait until it serves.

        Args:
            folder: its working folder; state, pool files and log go there. The same folder again means the
                same installation again.
            urls: base URLs of the engines, by pool.
            settings: further `TOLLGATE_…` variables, or others of these names.
            is_up: wait until /readyz says yes; else only until it listens.
            start_timeout_s: how long it may take to listen.
            program: what stands for `tollgate`; None: itself.
            is_measured: its coverage counts where its parent's does; see `environment`.

        Raises:
            RuntimeError: it ended or did not serve in time; its log is in the message.
        """
        self.folder = folder
        self.state_dir = folder / "state"
        self.log = folder / "gateway.log"
        write_pools(folder / "pools", urls)
        self.environment = environment(folder, settings, is_measured=is_measured)
        with self.log.open("ab") as log:
            self._log_starts_at = log.tell()
            self.process = subprocess.Popen(
                [*(program or PROGRAM), "serve"],
                cwd=folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent(os.getpid(), None),  # noqa: PLW1509 - no lock is taken between fork and exec
            )
        try:
            self.url = self._announced(start_timeout_s)
            if is_up:
                self._until_ready()
        except BaseException:
            self.kill9()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.url.rpartition(":")[2])

    @property
    def key(self) -> str:
        """The demo tenant's API key, made at the first start."""
        return (self.state_dir / "demo-key").read_text().strip()

    @property
    def admin_key(self) -> str:
        """The administrator's key, made at the first start."""
        return (self.state_dir / "admin-key").read_text().strip()

    @property
    def headers(self) -> dict[str, str]:
        """What authenticates the demo tenant."""
        return {"authorization": f"Bearer {self.key}"}

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another `tollgate` command with the same settings."""
        return run_cli(self.environment, self.folder, *arguments)

    def said(self) -> str:
        """What this start has printed and logged so far."""
        return self.log.read_bytes()[self._log_starts_at :].decode(errors="replace")

    def terminate(self) -> None:
        """Ask it to stop, as an init system does; does not wait."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Its exit status once it has ended.

        Raises:
            RuntimeError: it has not, in good time.
        """
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill9()
            raise RuntimeError(f"the gateway does not stop:\n{self.said()}") from None

    def stop(self) -> None:
        """End it; twice does no harm."""
        if self.process.poll() is None:
            self.terminate()
        self.wait()

    def kill9(self) -> None:
        """End it as a crash or the out-of-memory killer would."""
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def _announced(self, timeout_s: float) -> str:
        deadline = time.monotonic() + timeout_s
        while True:
            found = _SERVES.search(self.said())
            if found is not None:
                return found[1]
            self._check(deadline)

    def _until_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                _OPENER.open(f"{self.url}/readyz", timeout=5).close()
            except OSError:
                self._check(deadline)
            else:
                return

    def _check(self, deadline: float) -> None:
        if self.process.poll() is not None:
            raise RuntimeError(f"the gateway ended with status {self.process.returncode}:\n{self.said()}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"the gateway does not serve:\n{self.said()}")
        time.sleep(0.05)


_SCRIPT: Final = Path(sys.executable).parent / "tollgate"
PROGRAM: Final[tuple[str, ...]] = (
    (str(_SCRIPT),) if _SCRIPT.exists() else (sys.executable, "-c", "from gateway.cli import main; main()")
)


def environment(
    folder: Path, settings: Mapping[str, str] | None = None, *, is_measured: bool = False
) -> dict[str, str]:
    """The environment of a Tollgate that lives in this folder: this machine's, without its Tollgate.

    Args:
        folder: its working folder.
        settings: further `TOLLGATE_…` variables, or others of these names.
        is_measured: its coverage counts where its parent's does. Only for what no test runs in its own
            process: measured programs take twice as long.
    """
    own = os.environ  # noqa: TID251 - a child needs PATH and HOME
    unwanted = set() if is_measured else {COVERAGE}
    kept = {name: value for name, value in own.items() if not name.startswith("TOLLGATE_")}
    kept = {name: value for name, value in kept.items() if name not in unwanted}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "NO_COLOR": "1",
        "COLUMNS": "200",
        "TOLLGATE_STATE_DIR": str(folder / "state"),
        "TOLLGATE_POOLS": str(folder / "pools"),
        "TOLLGATE_POLICY": str(DEFAULT_POLICY),
        "TOLLGATE_PORT": "0",
        "TOLLGATE_FRESHNESS__POLL_INTERVAL_S": "0.1",
        "TOLLGATE_SPOOL__SHIP_INTERVAL_MS": "50",
        # Tests count what their engines are asked, and hold requests for longer than an engine stands still.
        "TOLLGATE_HEALTH__IDLE_PROBE_S": "86400",
        "TOLLGATE_HEALTH__STALL_S": "86400",
        **(settings or {}),
    }


def run_cli(
    environment: Mapping[str, str], folder: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """One `tollgate` command, to its end."""
    return subprocess.run(
        [*PROGRAM, *arguments],
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def json_of(outcome: subprocess.CompletedProcess[str]) -> Any:
    """What a command printed with --json.

    Raises:
        AssertionError: it failed.
    """
    if outcome.returncode != 0:
        raise AssertionError(f"status {outcome.returncode}: {outcome.stdout}{outcome.stderr}")
    return json.loads(outcome.stdout)
