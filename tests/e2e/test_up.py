"""`tollgate up`: fleet and gateway in one program, with mock engines standing in for vLLM.

The engines are started by the real driver under the real guard: the folder's `.venv-vllm/bin/python` is a
script that starts the mock with the port and the name that the driver asks for. Real vLLM is in tests/vllm.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.gateway_process import PROGRAM, environment
from tests.support.pool_files import ROOT
from tests.support.servers import die_with_parent

PATIENCE_S = 60.0
ENGINE = """#!{python}
import os, sys
arguments = sys.argv
port = arguments[arguments.index("--port") + 1]
name = arguments[arguments.index("--served-model-name") + 1]
{first}
os.chdir({root!r})
os.execv({python!r}, [{python!r}, "-m", "tests.support.mock_vllm", "--port", port, "--model", name])
"""


class Up:
    """A running `tollgate up` (or `pools up`) in a folder of its own."""

    def __init__(self, folder: Path, *command: str) -> None:
        self.folder = folder
        self.log = folder / "up.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*PROGRAM, *command],
                cwd=folder,
                env=environment(folder, {"TOLLGATE_POOLS": str(ROOT / "backends/pools")}, is_measured=True),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent(os.getpid(), None),  # noqa: PLW1509 - no lock is taken in between
            )

    def said(self) -> str:
        return self.log.read_text()

    def until(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + PATIENCE_S
        while (found := re.search(pattern, self.said())) is None:
            assert time.monotonic() < deadline, self.said()
            assert self.process.poll() is None, self.said()
            time.sleep(0.05)
        return found

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def install_engine(folder: Path, *, first: str = "") -> None:
    python = folder / ".venv-vllm/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(ENGINE.format(python=sys.executable, root=str(ROOT), first=first))
    python.chmod(0o755)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for process in psutil.process_iter():
        try:
            where = process.cwd()
        except (psutil.Error, FileNotFoundError):
            continue  # another test's, which has just ended
        assert where != str(tmp_path), f"{process} was left behind"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_it_prints_works_and_a_stop_leaves_nothing(folder: Path, number: signal.Signals) -> None:
    install_engine(folder)
    up = Up(folder, "up")
    url = up.until(r"Tollgate serves on (http://\S+)")[1]
    key = up.until(r"API key +(tg-\S+)")[1]
    up.until(r"Ctrl-C stops everything")
    body = {"model": "auto", "messages": [{"role": "user", "content": "Tell me a short story."}]}

    answer = httpx.post(
        f"{url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}, trust_env=False
    )

    assert answer.status_code == 200
    assert answer.headers["x-tollgate-pool"] == "plain"
    assert re.search(r"speculative-0: ready", up.said())
    started = up.descendants()
    assert len(started) >= 2
    assert up.stop(number) == 0
    assert "Stopped: the gateway and every replica have ended." in up.said()
    assert [process for process in started if process.is_running()] == []


def test_an_engine_that_does_not_start_is_told_with_the_end_of_its_log(folder: Path) -> None:
    install_engine(folder, first='sys.exit("the weights are for another architecture")')
    up = Up(folder, "up")
    assert up.process.wait(PATIENCE_S) == 2
    assert "the weights are for another architecture" in up.said()
    assert "Traceback" not in up.said()


def test_without_vllm_it_says_what_to_run(folder: Path) -> None:
    up = Up(folder, "up")
    assert up.process.wait(PATIENCE_S) == 2
    assert "vLLM is not installed" in up.said()
    assert "make run" in up.said()


def test_a_stop_while_the_fleet_starts_leaves_nothing(folder: Path) -> None:
    install_engine(folder, first="import time; time.sleep(600)")
    up = Up(folder, "up")
    up.until(r"plain-0: starting")
    assert up.stop(signal.SIGINT) == 0


def test_the_fleet_can_run_apart_from_a_gateway(folder: Path) -> None:
    install_engine(folder)
    fleet = Up(folder, "pools", "up")
    fleet.until(r"The fleet is up")
    assert (folder / "state" / "fleet.json").exists()
    assert fleet.stop(signal.SIGTERM) == 0
