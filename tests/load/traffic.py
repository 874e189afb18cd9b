"""What is asked of a gateway, and by whom?

Bodies of 0.4 and 8 KB in turn, each with a place for the ticket that `load` writes into it, so that no two
requests of a run are the same. Temperature 0 by default: Tollgate then asks its cache for every one of
them, and never finds it. The four upstream ports are the replicas of two pools of two.
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from tests.load.programs import build
from tests.support.servers import Server, free_port, start, stop

MODEL: Final = "bench-model"
SIZES: Final = (400, 8_000)
"""Bytes of a body, in turn."""
BODIES: Final = 64
PORTS: Final = 4
CHUNKS: Final = 64
"""Of one stream, which also is the limit that requests state."""
GAP_US: Final = 20_000
TICKET: Final = "#000000000000"
TICKETS_PER_RUN: Final = 100_000_000
_PATIENCE_S: Final = 10.0
_DRIVE_PATIENCE_S: Final = 120.0

_SYSTEMS: Final = (
    "You are the assistant of a bank. Answer briefly.",
    "You help developers of a web shop. Be exact.",
    "You work for the editors of a magazine.",
    "You answer customers of a railway politely.",
)
# Of different tasks by their words, for the runs in which nobody declares one.
_INSTRUCTIONS: Final = (
    "Extract all names and dates from this text.",
    "Write a story about what happens here.",
    "Summarise this in two sentences.",
    "Write a poem about it.",
    "Translate this into French.",
    "Brainstorm names for a product like this.",
    "Classify this as a complaint or a praise.",
    "Please see below.",
)
_SENTENCES: Final = (
    "The train to the coast was late again, and nobody on the platform knew why. ",
    "Anna paid 42.50 for the ticket on 3 May and asked for half of it back. ",
    "The new counter opens at nine, closes at five and is shut on Sundays. ",
    "Two boxes of tea arrived broken, the third one smelled of oranges. ",
    "Whoever reads the small print finds that the offer ended last week. ",
)


def body_of(number: int, model: str, *, is_stream: bool, temperature: float) -> str:
    """One body of the file, as one line of JSON."""
    size = SIZES[number % len(SIZES)]
    instruction = _INSTRUCTIONS[number // len(SIZES) % len(_INSTRUCTIONS)]
    request: dict[str, Any] = {
        "model": model,
        "messages": [
            {"role": "system", "content": _SYSTEMS[number % len(_SYSTEMS)]},
            {"role": "user", "content": ""},
        ],
        "max_tokens": CHUNKS,
        "temperature": temperature,
    }
    if is_stream:
        request |= {"stream": True, "stream_options": {"include_usage": True}}
    said = f"{instruction} Case {TICKET}: "
    missing = size - len(json.dumps(request, separators=(",", ":"))) - len(said)
    material = "".join(_SENTENCES[(number + step) % len(_SENTENCES)] for step in range(missing // 60 + 1))
    request["messages"][1]["content"] = said + material[: max(0, missing)]
    return json.dumps(request, separators=(",", ":"))


def write_bodies(folder: Path, model: str, *, is_stream: bool = False, temperature: float = 0) -> Path:
    """The file of differing bodies for a model; made once."""
    file = folder / f"{'stream' if is_stream else 'plain'}-{temperature:g}-{model.replace('/', '-')}.jsonl"
    if not file.exists():
        lines = [
            body_of(number, model, is_stream=is_stream, temperature=temperature) for number in range(BODIES)
        ]
        file.write_text("\n".join(lines) + "\n")
    return file


class Upstream:
    """The running stand-in for four vLLM servers."""

    def __init__(self, folder: Path) -> None:
        self.ports = [free_port() for _ in range(PORTS)]
        command: list[str | Path] = [build("upstream"), "--model", MODEL]
        for port in self.ports:
            command += ["--port", str(port)]
        self.server: Server = start(command, folder / "upstream.log", None)
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self.get("/health")
                break
            except OSError:
                if self.server.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the upstream does not start: {self.server.tail()}") from None
                time.sleep(0.02)
        self.configure()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        stop(self.server)

    @property
    def urls(self) -> list[str]:
        """Base addresses of the replicas, without /v1."""
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    def get(self, path: str) -> bytes:
        """Ask the first port."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.urls[0]}{path}", timeout=_PATIENCE_S) as answer:
            return bytes(answer.read())

    def configure(
        self, *, chunks: int = CHUNKS, gap_us: int = GAP_US, delay_us: int = 0, fault: int = 0
    ) -> None:
        """How it answers from now on, on all ports."""
        self.get(f"/_config?chunks={chunks}&gap_us={gap_us}&delay_us={delay_us}&fault={fault}")

    def counts(self) -> dict[str, Any]:
        """What it has answered so far, on all ports together."""
        counted: dict[str, Any] = json.loads(self.get("/_stats"))
        return counted


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom to ask, and how."""

    port: int
    path: str = "/v1/chat/completions"
    headers: tuple[str, ...] = ()
    vary: tuple[str, ...] = ()
    """Headers of which each pair of bodies gets one, in turn."""


@dataclass(frozen=True, slots=True)
class Load:
    """One run of `load`."""

    mode: str
    """closed, open or stream."""
    seconds: float
    connections: int = 32
    rate: float = 100
    stagger_us: int = 0
    chunks: int = CHUNKS


@dataclass
class Traffic:
    """Sends load, gives every request of a session its own ticket, and adds up what came of it."""

    folder: Path
    sent: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    _runs: int = 0

    def drive(self, asked: Asked, load: Load, bodies: Path) -> dict[str, Any]:
        """Run it to its end.

        Raises:
            RuntimeError: the load program failed; not: requests failed.
        """
        # A range of tickets for each run: those of two runs never meet.
        first = 1 + self._runs * TICKETS_PER_RUN
        self._runs += 1
        command: list[str | Path] = [
            build("load"),
            load.mode,
            "--port",
            str(asked.port),
            "--path",
            asked.path,
        ]
        command += ["--bodies", bodies, "--tickets-from", str(first), "--seconds", f"{load.seconds:g}"]
        command += ["--connections", str(load.connections), "--rate", f"{load.rate:g}"]
        command += ["--stagger-us", str(load.stagger_us), "--chunks", str(load.chunks)]
        command += ["--cost", "--tally", "x-tollgate-cache"]
        for name, headers in (("--header", asked.headers), ("--vary", asked.vary)):
            for header in headers:
                command += [name, header]
        outcome = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_DRIVE_PATIENCE_S
        )
        if outcome.returncode != 0:
            raise RuntimeError(f"load ended with status {outcome.returncode}: {outcome.stderr}")
        result: dict[str, Any] = json.loads(outcome.stdout)
        self.sent += result["sent"]
        for reason, count in failures_of(result).items():
            self.failures[reason] = self.failures.get(reason, 0) + count
        return result


FAILURES: Final = ("bad_status", "incomplete", "broken", "unfinished", "stray")


def failures_of(result: dict[str, Any], names: Sequence[str] = FAILURES) -> dict[str, int]:
    """What went wrong in a run of `load`, by reason; empty when all is well."""
    return {name: result[name] for name in names if result[name]}
