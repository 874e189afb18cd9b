"""How is a gateway started for measuring, when is it up, and how does it end?

It gets a core for itself; this program and whatever else it starts (upstream, load, PostgreSQL, Redis) stay
on another one. Up means: a real request was answered. The kernel ends it with the thread that started it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from gateway.money import UsdNanos, usd_nanos_from_decimal
from tests.load.processor import CpuGroup, tree
from tests.load.targets import Target
from tests.load.traffic import Asked
from tests.support.gateway_process import COVERAGE
from tests.support.servers import die_with_parent

START_S: Final = 180.0
"""LiteLLM takes a tenth of it on an idle machine."""
STOP_S: Final = 15.0
_LOOK_S: Final = 0.02
_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class TargetFailed(RuntimeError):
    """A gateway did not come up, or ended by itself; the message has the end of its log."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Who works where."""

    gateway: int
    load: int

    @property
    def are_apart(self) -> bool:
        """Whether the gateway has a core for itself."""
        return self.gateway != self.load


def choose_cores() -> Cores:
    """The last core for the gateway and the first one for the rest, of those that we may use."""
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(gateway=allowed[-1], load=allowed[0])


class Running:
    """A gateway that is up."""

    def __init__(self, target: Target, core: int, log: Path, body: bytes) -> None:
        """Start it and wait until it answers a request.

        Raises:
            TargetFailed: it does not.
        """
        self.log = log
        self.cpu = CpuGroup(target.name)
        if target.port_file is not None:
            target.port_file.unlink(missing_ok=True)
        own = {
            name: value
            for name, value in os.environ.items()  # noqa: TID251 - a child needs PATH and HOME
            if not name.startswith("TOLLGATE_") and name != COVERAGE
        }
        began_s = time.monotonic()
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                target.command,
                cwd=target.folder,
                env={**own, **target.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=self._prepare(core),  # noqa: PLW1509 - no lock is taken between fork and exec
            )
        try:
            self.target, self.first_cost = self._until_answered(target, body, began_s + START_S)
        except BaseException:
            self.stop()
            raise
        self.start_s = time.monotonic() - began_s

    def _prepare(self, core: int) -> Callable[[], None]:
        die, cpu = die_with_parent(os.getpid(), None), self.cpu

        def prepare() -> None:
            die()
            os.sched_setaffinity(0, {core})
            cpu.enter()

        return prepare

    def _until_answered(self, target: Target, body: bytes, deadline_s: float) -> tuple[Target, UsdNanos]:
        problem: Exception | None = None
        while time.monotonic() < deadline_s:
            if self.process.poll() is not None:
                raise TargetFailed(
                    f"{target.title} ended with status {self.process.returncode}: {self.tail()}"
                )
            try:
                if target.port_file is not None:
                    target = replace(target, port=int(target.port_file.read_text()))
                return target, _ask(target, body)
            except urllib.error.HTTPError as error:  # there, and says that it is not ready
                problem = error
                error.close()
            except (OSError, ValueError) as error:  # not there yet
                problem = error
            time.sleep(_LOOK_S)
        raise TargetFailed(f"{target.title} does not answer ({problem}): {self.tail()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def asked(self) -> Asked:
        """How load reaches it."""
        one = self.target
        return Asked(port=one.port, path=one.path, headers=one.headers, vary=one.vary)

    def cpu_s(self) -> float:
        """CPU of all its processes so far."""
        return self.cpu.cpu_s(self.process.pid)

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-1500:]

    def stop(self) -> None:
        """End it and all that it started."""
        family = tree(self.process.pid)
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(STOP_S)
        for pid in family[1:]:
            try:
                # Only if it is still one of the session that began with the gateway.
                if os.getsid(pid) == self.process.pid:
                    os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.cpu.close()


def _ask(target: Target, body: bytes) -> UsdNanos:
    """Have one request answered; what it cost, by Tollgate's header, or nothing.

    Raises:
        OSError: no answer, or one with another status.
        ValueError: not an answer.
    """
    headers = {"content-type": "application/json"}
    headers |= dict(header.split(": ", 1) for header in (*target.headers, *target.vary[:1]))
    request = urllib.request.Request(f"http://127.0.0.1:{target.port}{target.path}", body, headers)
    with _OPENER.open(request, timeout=10) as answer:
        if not json.loads(answer.read()).get("choices"):
            raise ValueError("an answer without choices")
        cost = answer.headers.get("x-tollgate-cost-usd")
    return UsdNanos(0) if cost is None else usd_nanos_from_decimal(cost, what="the cost")
