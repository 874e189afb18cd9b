"""How does a test get a mock vLLM of its own?

    with MockVllm("--speculative", "3") as mock:
        mock.fault("die_mid_stream", 3, times=1)
        ...  # requests to mock.url
        assert mock.stats()["aborted"] == 0

The program is a process of its own, so that a test cannot block it. It ends with the block, with `stop()`,
or when the test process dies: its standard input is a pipe from here, and the kernel closes that. (A
parent-death signal would be sent when the starting *thread* ends, which for a fixture may be long before
the tests do.)
"""

import json
import os
import re
import selectors
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, Self

from tests.support.gateway_process import COVERAGE

_ROOT: Final = Path(__file__).resolve().parents[2]
_LINE: Final = re.compile(r"on (http://127\.0\.0\.1:\d+)")
# The control port must be reached directly, whatever proxy the environment names.
_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _unmeasured() -> dict[str, str]:
    """Our environment, without coverage: nothing that is measured runs there, and it takes twice as long."""
    return {name: value for name, value in os.environ.items() if name != COVERAGE}  # noqa: TID251 - as it is


class MockVllm:
    """A running mock_vllm program."""

    program: ClassVar[str] = "tests.support.mock_vllm"

    def __init__(self, *arguments: str, start_timeout_s: float = 20.0) -> None:
        """Start it and wait until it listens.

        Args:
            arguments: of the program, see `python -m tests.support.mock_vllm --help`.
            start_timeout_s: how long the program may take to say its port.

        Raises:
            RuntimeError: it ended or stayed silent.
        """
        command = [sys.executable, "-m", self.program, "--exit-with-stdin", *arguments]
        self.process = subprocess.Popen(
            command,
            cwd=_ROOT,
            env=_unmeasured(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        deadline = time.monotonic() + start_timeout_s
        self.url = self._announced(deadline)
        """Base URL, without a slash at the end."""
        self.control_url = self._announced(deadline)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The serving port."""
        return int(self.url.rpartition(":")[2])

    def stats(self) -> dict[str, Any]:
        """Requests seen, aborted, in flight, the last one, and more."""
        with _OPENER.open(f"{self.control_url}/_stats", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def wait_for(self, timeout_s: float = 5.0, **expected: object) -> dict[str, Any]:
        """The statistics once they show these values; a closed connection takes a moment to be noticed.

        Raises:
            AssertionError: they never did.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            found = self.stats()
            if all(found[name] == value for name, value in expected.items()):
                return found
            if time.monotonic() > deadline:
                raise AssertionError(f"expected {expected}, found {found}")
            time.sleep(0.01)

    def fault(self, name: str, value: str | float | None = None, times: int | None = None) -> None:
        """Misbehave for so many requests, or until `clear()`."""
        self.control(fault=name, value=value, times=times)

    def clear(self) -> None:
        """Behave again."""
        self.control(clear=True)

    def reset(self) -> None:
        """Behave again, forget all counts and show the real gauges."""
        self.control(clear=True, reset=True, gauges={})

    def control(self, **wanted: object) -> None:
        """Anything else /_control understands: ttft_ms, tpot_ms, answer_tokens, acceptance, gauges.

        Raises:
            urllib.error.HTTPError: the program does not understand it.
        """
        _OPENER.open(f"{self.control_url}/_control", json.dumps(wanted).encode(), timeout=10).close()

    def stop(self) -> None:
        """End it; twice does no harm."""
        self.process.kill()
        self.process.wait(timeout=10)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def _announced(self, deadline: float) -> str:
        line = self._line(deadline)
        found = _LINE.search(line)
        if found is None:
            self.process.kill()
            rest = self.process.communicate(timeout=10)[1].decode(errors="replace")
            raise RuntimeError(f"the mock vLLM did not start: {line!r} {rest}")
        return found[1]

    def _line(self, deadline: float) -> str:
        """One line of its output, read byte by byte so that nothing behind it is swallowed."""
        if self.process.stdout is None:
            raise RuntimeError("the mock vLLM has no standard output")
        line = b""
        with selectors.DefaultSelector() as waiting:
            waiting.register(self.process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n") and waiting.select(max(0.0, deadline - time.monotonic())):
                byte = self.process.stdout.read(1)
                if not byte:
                    break
                line += byte
        return line.decode(errors="replace")


class OpenAiServer(MockVllm):
    """A running openai_server program; `control` takes what its `Manner` has."""

    program = "tests.support.openai_server"

    @property
    def api_base(self) -> str:
        """What a policy says of it."""
        return f"{self.url}/v1"

    def received(self) -> list[dict[str, Any]]:
        """Every request that reached it: path, headers, body."""
        found: list[dict[str, Any]] = self.stats()["received"]
        return found

    def reset(self) -> None:
        """Behave again and forget what was received."""
        self.control(reset=True)
