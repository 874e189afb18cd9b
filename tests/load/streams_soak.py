"""Does memory stay flat while a thousand streams are under way?

    python -m tests.load.streams_soak --streams 1000 --seconds 60

One `tollgate serve` on an embedded database, two mock replicas, so many connections that each ask for one
stream after the other. The gateway's resident memory is read twice a second; reported are its slope over the
measured time by least squares, the highest value, open files, events per second and the CPU time of one
event. A warm-up goes before: in the first minute buffers grow, and the books are audited for the first time.
What must hold: every stream ends with [DONE] and without an error, and nothing is under way or held
afterwards. The slope is for people: on a busy machine a short run says little.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.e2e.faults.plant import metric
from tests.load.measured import write_result
from tests.support.gateway_process import GatewayProcess
from tests.support.mock_process import MockVllm

SAMPLE_S: Final = 0.5
PATIENCE_S: Final = 60.0
DONE: Final = b"data: [DONE]"
TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass
class Seen:
    """What the clients saw and what the gateway used."""

    whole: int = 0
    events: int = 0
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the start, megabytes."""
    files: int = 0


class Soak:
    """The gateway, the engines and the streams."""

    def __init__(self, folder: Path, *, streams: int, tokens: int, tpot_ms: float) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard) if soft != hard else (soft, hard))
        self.streams = streams
        self.engines = [MockVllm(), MockVllm()]
        for engine in self.engines:
            engine.control(tpot_ms=tpot_ms, answer_tokens=tokens)
        urls = [engine.url for engine in self.engines]
        # Twice as many as there are streams: the last seats of a class are not given to one tenant alone.
        settings = {"TOLLGATE_OVERLOAD__IN_FLIGHT_MAX": str(2 * streams)}
        self.gateway = GatewayProcess(folder, {"speculative": urls, "plain": urls}, settings=settings)
        self.seen = Seen()
        body = {"model": "auto", "messages": [{"role": "user", "content": "Tell me a story"}]}
        content = json.dumps({**body, "stream": True, "max_tokens": tokens}).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: tollgate\r\n"
            f"authorization: Bearer {self.gateway.key}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\n\r\n"
        )
        self._request = head.encode() + content
        self._ends_s = 0.0

    def run(self, seconds: float, *, warm_up_s: float) -> dict[str, Any]:
        """Stream for so long and before that to warm up; the figures.

        Raises:
            AssertionError: a stream failed, or something is left over.
        """
        before_mb, cpu_before_s = self._memory_mb(), self._cpu_s()
        all_s = warm_up_s + seconds
        asyncio.run(self._traffic(all_s))
        cpu_s = self._cpu_s() - cpu_before_s
        seen = self.seen
        assert not seen.wrong, f"{len(seen.wrong)} streams failed, such as {seen.wrong[:3]}"
        deadline_s = time.monotonic() + PATIENCE_S
        while any(metric(self.gateway, f"tollgate_{name}") for name in ("attempts_open", "in_flight")):
            assert time.monotonic() < deadline_s, "something is still under way"
            time.sleep(0.1)
        assert metric(self.gateway, "tollgate_held_usd") == 0
        audit = self.gateway.cli("audit")
        assert audit.returncode == 0, audit.stdout + audit.stderr
        steady = [sample for sample in seen.memory if sample[0] >= warm_up_s]
        return {
            "streams_at_once": self.streams,
            "streams_whole": seen.whole,
            "events": seen.events,
            "events_per_s": round(seen.events / all_s),
            "cpu_us_per_event": round(1e6 * cpu_s / max(1, seen.events), 1),
            "memory_before_mb": round(before_mb, 1),
            "memory_highest_mb": round(max(mb for _, mb in seen.memory), 1),
            "memory_mb_every_10_s": [round(mb, 1) for _, mb in seen.memory[:: round(10 / SAMPLE_S)]],
            "memory_slope_mb_per_minute": round(60 * slope(steady), 2),
            "open_files": seen.files,
        }

    def close(self) -> None:
        """End all programs."""
        self.gateway.stop()
        for engine in self.engines:
            engine.stop()

    async def _traffic(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._ends_s = loop.time() + seconds
        async with asyncio.TaskGroup() as group:
            sampling = group.create_task(self._sample(loop.time()))
            async with asyncio.TaskGroup() as clients:
                for number in range(self.streams):
                    # Not all in one moment: what is measured is the plateau.
                    clients.create_task(self._client(number * min(5.0, seconds / 4) / self.streams))
            sampling.cancel()

    async def _client(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        loop = asyncio.get_running_loop()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gateway.port)
        with contextlib.closing(writer):
            while loop.time() < self._ends_s:
                writer.write(self._request)
                problem = await self._one(reader)
                if problem:
                    self.seen.wrong.append(problem)
                    return
                self.seen.whole += 1

    async def _one(self, reader: asyncio.StreamReader) -> str:
        """Read one stream; what is wrong with it."""
        end = b""
        while not end.endswith(b"0\r\n\r\n"):
            data = await reader.read(65_536)
            if not data:
                return f"broke off behind {end[-200:]!r}"
            self.seen.events += data.count(b"data: ")
            if b'"error"' in data:
                return data[:500].decode(errors="replace")
            end = (end + data)[-200:]
        return "" if DONE in end else f"no [DONE]: {end!r}"

    async def _sample(self, began_s: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self.seen.memory.append((loop.time() - began_s, self._memory_mb()))
            self.seen.files = max(self.seen.files, self._open_files())
            await asyncio.sleep(SAMPLE_S)

    def _open_files(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.gateway.process.pid}/fd").iterdir())

    def _memory_mb(self) -> float:
        pages = int(Path(f"/proc/{self.gateway.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6

    def _cpu_s(self) -> float:
        fields = Path(f"/proc/{self.gateway.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


def slope(samples: list[tuple[float, float]]) -> float:
    """Of a straight line through (x, y), by least squares."""
    count = len(samples)
    mean_x = sum(x for x, _ in samples) / count
    mean_y = sum(y for _, y in samples) / count
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    return sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread if spread else 0.0


def soak(
    *, streams: int, seconds: float, warm_up_s: float, tokens: int = 40, tpot_ms: float = 250
) -> dict[str, Any]:
    """All of it.

    Raises:
        AssertionError: a stream failed, or something is left over.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Soak(Path(folder), streams=streams, tokens=tokens, tpot_ms=tpot_ms)
        try:
            return {"seconds": seconds, "warm_up_s": warm_up_s, **run.run(seconds, warm_up_s=warm_up_s)}
        finally:
            run.close()


def main() -> int:
    """Soak and write the result."""
    parser = argparse.ArgumentParser(description="Keep many streams under way.")
    parser.add_argument("--streams", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--warm-up", type=float, default=75, help="seconds before that")
    options = parser.parse_args()
    figures = soak(streams=options.streams, seconds=options.seconds, warm_up_s=options.warm_up)
    write_result("streams_soak", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
