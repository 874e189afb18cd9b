"""How does a test look at a page with a real browser?

Chromium as Debian ships it, headless, driven over the DevTools protocol on two pipes (JSON texts, each ended
by a zero byte; `--remote-debugging-pipe`, file descriptors 3 and 4). One tab; nothing but what tests need.
"""

import base64
import fcntl
import json
import os
import selectors
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

_FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
    "--remote-debugging-pipe",
)
_FIRST_FREE: Final = 10  # the browser's own ends are 3 and 4: ours stay clear of them


def chromium_path() -> str | None:
    """The browser's program; None where it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Chromium:
    """A running browser with one empty tab."""

    def __init__(self, program: str, profile: Path, *, timeout_s: float = 60.0) -> None:
        """Start it.

        Args:
            program: what `chromium_path` found.
            profile: an empty folder for its data.
            timeout_s: how long any single step may take.

        Raises:
            RuntimeError: it ended.
            TimeoutError: it did not answer.
        """
        self._timeout_s = timeout_s
        self._ids = 0
        self._session: str | None = None
        self._buffer = b""
        self._loaded: set[str] = set()
        self.console: list[str] = []
        """What the browser complained of: errors of scripts, refused files, broken policies."""
        their_input, self._to = _pipe()
        self._from, their_output = _pipe()
        self._process = subprocess.Popen(
            [  # noqa: S607 - the bash on PATH
                "bash",
                "-c",
                f'exec "$@" 3<&{their_input} 4>&{their_output}',
                "bash",
                program,
                *_FLAGS,
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            pass_fds=(their_input, their_output),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(their_input)
        os.close(their_output)
        try:
            tab = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
            for domain in ("Page", "Log", "Runtime"):
                self.call(f"{domain}.enable")
            self.call("Page.setLifecycleEventsEnabled", enabled=True)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and the processes that it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One call of the protocol.

        Raises:
            RuntimeError: the browser refused or ended.
            TimeoutError: it did not answer.
        """
        self._ids += 1
        message: dict[str, Any] = {"id": self._ids, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = self._deadline()
        answer = self._next(deadline)
        while answer.get("id") != self._ids:
            answer = self._next(deadline)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, url: str) -> None:
        """Go there and wait until the page is loaded."""
        loader = self.call("Page.navigate", url=url)["loaderId"]
        deadline = self._deadline()
        while loader not in self._loaded:
            self._next(deadline)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page.

        Raises:
            RuntimeError: it threw.
        """
        outcome = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in outcome:
            raise RuntimeError(str(outcome["exceptionDetails"]))
        return outcome["result"].get("value")

    def submit(self, selector: str) -> None:
        """Press the button of a form and wait for the next page."""
        before = self._loader()
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")
        deadline = self._deadline()
        while (loader := self._loader()) == before or loader not in self._loaded:
            self._next(deadline)

    def look(self, *, width: int, is_dark: bool) -> None:
        """Pretend a window of this width, and a taste for light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        self.call("Emulation.setScrollbarsHidden", hidden=True)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(picture["data"]))

    def _loader(self) -> str:
        """Which document the tab shows; every navigation has a name of its own."""
        loader: str = self.call("Page.getFrameTree")["frameTree"]["frame"]["loaderId"]
        return loader

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout_s

    def _next(self, deadline: float) -> dict[str, Any]:
        """The next message; what it says of loads and complaints is kept."""
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._from, selectors.EVENT_READ)
            while b"\0" not in self._buffer:
                if not waiting.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError("the browser does not answer")
                piece = os.read(self._from, 1 << 20)
                if not piece:
                    raise RuntimeError("the browser has ended")
                self._buffer += piece
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        values = message.get("params", {})
        if message.get("method") == "Page.lifecycleEvent" and values["name"] == "load":
            self._loaded.add(values["loaderId"])
        if message.get("method") == "Log.entryAdded":
            self.console.append(values["entry"]["text"])
        if message.get("method") == "Runtime.exceptionThrown":
            self.console.append(str(values["exceptionDetails"]))
        return message


def _pipe() -> tuple[int, int]:
    """Both ends of a pipe, to read and to write, with high numbers."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]
