"""How slow is the first request after loading, and what of it does warming up take away?

    python -m tests.load.first_request --starts 3 --pool plain

Starts real vLLM on the reference models again and again, with one token as readiness (`warm_up: false`) and
with the warm-up, and measures at once the time to the first token of a short streamed chat, of the next ones,
and of the other shapes. Medians over the starts; alone on the machine, please. Results in
tests/load/results/first_request.json.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from backends.files import load_pools
from backends.keepwarm import shapes_of
from backends.launch.process import ProcessFleet, ReplicaProgress
from backends.pool import PoolSpec
from backends.warm_spec import KeepWarmSpec
from tests.load.measured import ROOT, write_result

PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
AGAIN = 4
"""Requests of a shape after its first."""


async def one_start(spec: PoolSpec, *, first_shape: str) -> dict[str, Any]:
    """Start once and ask; seconds by shape, and how long the start took."""
    said: list[ReplicaProgress] = []
    with tempfile.TemporaryDirectory() as folder:
        fleet = ProcessFleet(
            {spec.name: spec}, state_dir=Path(folder), python=PYTHON, on_progress=said.append
        )
        began_s = time.monotonic()
        await fleet.start()
        started_s = time.monotonic() - began_s
        try:
            url = fleet.urls[spec.name][0]
            async with httpx.AsyncClient(trust_env=False, timeout=120) as client:  # noqa: TID251 - a measurement
                shapes = sorted(shapes_of(spec), key=lambda shape: shape.name != first_shape)
                found = {shape.name: [await ttft(client, url, shape.path, shape.body)] for shape in shapes}
                for _ in range(AGAIN):
                    for shape in shapes_of(spec):
                        found[shape.name].append(await ttft(client, url, shape.path, shape.body))
        finally:
            await fleet.stop()
    return {"start_s": started_s, "ready": said[-2].detail, "ttft_s": found}


async def ttft(
    client: httpx.AsyncClient,  # noqa: TID251 - a measurement
    url: str,
    path: str,
    body: dict[str, Any],
) -> float:
    """Until the first event with content."""
    began_s = time.monotonic()
    asked = {**body, "stream": True}
    async with client.stream("POST", f"{url}{path}", json=asked) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if '"content":"' in line.replace('"content":""', "") or '"text":"' in line:
                return time.monotonic() - began_s
    raise RuntimeError("the stream had no content")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--pool", action="append", help="default: both")
    options = parser.parse_args()
    pools = load_pools(ROOT / "backends" / "pools")
    results: list[dict[str, Any]] = []
    for name in options.pool or list(pools):
        for warm_up in (False, True):
            spec = pools[name].model_copy(update={"keep_warm": KeepWarmSpec(warm_up=warm_up)})
            runs = [asyncio.run(one_start(spec, first_shape="chat")) for _ in range(options.starts)]
            shapes = runs[0]["ttft_s"]
            row: dict[str, Any] = {
                "pool": name,
                "warm_up": warm_up,
                "starts": options.starts,
                "start_s": round(statistics.median(run["start_s"] for run in runs), 1),
                "ready": runs[-1]["ready"],
                "first_ms": {s: _ms([run["ttft_s"][s][0] for run in runs]) for s in shapes},
                "later_ms": {s: _ms([t for run in runs for t in run["ttft_s"][s][1:]]) for s in shapes},
                "first_ms_each": {s: [_ms([run["ttft_s"][s][0]]) for run in runs] for s in shapes},
            }
            results.append(row)
            sys.stdout.write(f"{row}\n")
            sys.stdout.flush()
    write_result("first_request", {"rows": results})


def _ms(seconds: list[float]) -> float:
    return round(1000 * statistics.median(seconds), 1)


if __name__ == "__main__":
    main()
