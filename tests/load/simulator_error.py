"""How far is the simulator from real vLLM, on load that it was not calibrated with?

For each bundled pool: starts a replica, benches it as `tollgate pools bench` does, calibrates the simulator
from that profile, then sends loads that the bench did not: other concurrencies and lengths, both tasks at
once, and requests that arrive by chance (Poisson) instead of one after the other. The simulator is told
when each request was sent, how long its input was and how many tokens came out; it predicts throughput,
time to the first token and time per output token. The same loads are predicted from the profile in
`backends/profiles` too, which was measured at another time: the difference is what the machine's other work
and its heat make of a profile.

    python -m tests.load.simulator_error [--pool plain] [--quick] [--state-dir .tollgate]

Writes tests/load/results/simulator_error.{json,md}. Relative errors: |predicted - measured| / measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from backends.bench.load import Client, LoadResult, closed_loop, open_loop
from backends.bench.machine import CpuTimes
from backends.bench.run import TRIES, Progress, disturbed, measure, profile_of
from backends.bench.sweep import percentile
from backends.bench.target import Target, target_of
from backends.bench.workload import Prompt, Prompts, TaskName
from backends.files import load_pools
from backends.pool import PoolSpec
from backends.profile import Profile, load_profile
from backends.simulator.calibration import SimulatedPool
from backends.simulator.fleet import Outcome, simulate, simulate_closed_loop
from backends.simulator.requests import SimulatedRequest
from tests.load.measured import RESULTS, ROOT, write_result

NAME: Final = "simulator_error"
PYTHON: Final = ROOT / ".venv-vllm" / "bin" / "python"
SEEDS: Final = 5
"""What is drawn is drawn so often; a prediction is the median."""
METRICS: Final = {
    "output_tokens_per_s": "throughput",
    "ttft_p50_s": "TTFT, median",
    "ttft_p95_s": "TTFT, P95",
    "tpot_p50_s": "TPOT, median",
    "tpot_p95_s": "TPOT, P95",
}
CALIBRATIONS: Final = {
    "fresh": "calibrated just before",
    "calm": "the same, calm loads",
    "bundled": "from the bundled profile",
}
COLUMNS: Final = [f"{words}, ms" for words in METRICS.values() if words != "throughput"]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A load that is in no profile's grid."""

    name: str
    tasks: tuple[TaskName, ...]
    requests: int
    concurrency: int = 0
    """Closed loop with so many; 0: by chance."""
    per_s: float = 0.0
    """Poisson arrivals per second."""
    input_tokens: int = 1
    output_tokens: int = 160
    is_output_fixed: bool = False


BOTH: Final[tuple[TaskName, ...]] = ("extraction", "creative")
LOADS: Final = (
    HeldOut("stories, 2 at a time", ("creative",), 16, concurrency=2),
    HeldOut("stories, 12 at a time", ("creative",), 36, concurrency=12),
    HeldOut("JSON, 6 at a time", ("extraction",), 48, concurrency=6),
    HeldOut("JSON, 24 at a time, 120 in", ("extraction",), 72, concurrency=24, input_tokens=120),
    HeldOut(
        "stories, 5 at a time, 250 in, 40 out",
        ("creative",),
        25,
        concurrency=5,
        input_tokens=250,
        output_tokens=40,
        is_output_fixed=True,
    ),
    HeldOut("both, 10 at a time, 150 in", BOTH, 50, concurrency=10, input_tokens=150),
    HeldOut("both, Poisson 1 a second", BOTH, 20, per_s=1.0),
    HeldOut("both, Poisson 4 a second", BOTH, 60, per_s=4.0),
    HeldOut("both, Poisson 8 a second", BOTH, 90, per_s=8.0),
    HeldOut("both, Poisson 3 a second, 200 in", BOTH, 45, per_s=3.0, input_tokens=200),
)


def prompts_of(load: HeldOut, prompts: Prompts) -> list[Prompt]:
    return [
        prompts.take(
            load.tasks[index % len(load.tasks)],
            input_tokens=load.input_tokens,
            output_tokens_max=load.output_tokens,
            is_output_fixed=load.is_output_fixed,
        )
        for index in range(load.requests)
    ]


def arrivals(load: HeldOut, seed: int) -> list[float]:
    draw, at_s = random.Random(seed), 0.0
    moments = []
    for _ in range(load.requests):
        at_s += draw.expovariate(load.per_s)
        moments.append(at_s)
    return moments


async def drive(load: HeldOut, client: Client, prompts: Prompts, seed: int) -> LoadResult:
    items = prompts_of(load, prompts)
    if load.concurrency:
        return await closed_loop(client, items, concurrency=load.concurrency)
    return await open_loop(client, items, arrivals(load, seed))


@dataclass(frozen=True, slots=True)
class Try:
    """One time that a load was driven."""

    result: LoadResult
    foreign_cpu_ratio: float
    engine_waited_ratio: float
    """Of the time in which the engine had something to do: it was ready and had no core."""
    disturbance: float
    """Waits of client, front and engine, added up, by its duration."""


async def calm(load: HeldOut, client: Client, prompts: Prompts, *, target: Target, tries_max: int) -> Try:
    """Drive it as a bench drives a cell: again while others disturb it; the least disturbed time."""
    tries: list[Try] = []
    while not tries or (disturbed(tries[-1].disturbance) and len(tries) < tries_max):
        before = CpuTimes.now(target.session)
        result = await drive(load, client, prompts, len(tries))
        after = CpuTimes.now(target.session)
        assert before is not None
        assert after is not None
        ran_s, waited_s = after.engine_since(before)
        waited = waited_s / (ran_s + waited_s)
        disturbance = after.chain_waited_s_since(before) / result.duration_s
        tries.append(Try(result, after.foreign_ratio_since(before), waited, disturbance))
    return min(tries, key=lambda one: one.disturbance)


def undisturbed(load: HeldOut, measured: Mapping[str, float], waited_ratio: float) -> dict[str, float]:
    """As it would have been, had the engine always had a core: its own time is what the model is of.

    In an open loop the throughput is what arrives, so it stays as it is.
    """
    share = 1 - waited_ratio
    found = {name: value * share for name, value in measured.items()}
    throughput = measured["output_tokens_per_s"]
    return found | {"output_tokens_per_s": throughput / share if load.concurrency else throughput}


def seen(result: LoadResult) -> dict[str, float]:
    """What the client saw."""
    tpots = [one.tpot_s for one in result.samples if one.tpot_s is not None]
    ttfts = [one.ttft_s for one in result.samples]
    return {
        "output_tokens_per_s": sum(one.output_tokens for one in result.samples) / result.duration_s,
        "ttft_p50_s": statistics.median(ttfts),
        "ttft_p95_s": percentile(ttfts, 0.95),
        "tpot_p50_s": statistics.median(tpots),
        "tpot_p95_s": percentile(tpots, 0.95),
    }


def predicted(load: HeldOut, result: LoadResult, pool: SimulatedPool) -> dict[str, float]:
    """The same requests, simulated; the median of several seeds."""
    start_s = min(one.start_s for one in result.samples)
    requests = [
        SimulatedRequest(one.start_s - start_s, one.input_tokens, one.output_tokens, one.prompt.task)
        for one in result.samples
    ]
    runs = []
    for seed in range(SEEDS):
        if load.concurrency:
            runs.append(
                figures_of(simulate_closed_loop(requests, pool, concurrency=load.concurrency, seed=seed))
            )
        else:
            runs.append(figures_of(simulate(sorted(requests, key=lambda one: one.at_s), pool, seed=seed)))
    return {name: statistics.median(run[name] for run in runs) for name in METRICS}


def figures_of(outcome: Outcome) -> dict[str, float]:
    return {
        "output_tokens_per_s": outcome.output_tokens_per_s,
        "ttft_p50_s": outcome.ttft_s(),
        "ttft_p95_s": outcome.ttft_s(0.95),
        "tpot_p50_s": outcome.tpot_s() or 0.0,
        "tpot_p95_s": outcome.tpot_s(0.95) or 0.0,
    }


def compare(measured: Mapping[str, float], model: Mapping[str, float]) -> dict[str, float]:
    """Signed relative errors."""
    return {name: model[name] / measured[name] - 1 for name in METRICS}


async def one_pool(
    spec: PoolSpec, target: Target, *, is_quick: bool, bundled: Profile | None
) -> dict[str, Any]:
    """Bench, then every held-out load, on one replica."""

    def tell(at: Progress) -> None:
        if at.done == at.total or at.done % 100 == 0:
            print(f"{spec.name}: {at.done} of {at.total}: {at.what}", flush=True)

    seed = 20_261
    found = await measure(spec, target, is_quick=is_quick, seed=seed, on_progress=tell)
    profile = profile_of(spec, target, found, command=f"python -m tests.load.{NAME}")
    pools = {"fresh": SimulatedPool.of(profile)} | ({"bundled": SimulatedPool.of(bundled)} if bundled else {})
    client, prompts = Client(target.url, spec.model.served_name), Prompts(seed + 1)
    rows = []
    try:
        for load in LOADS:
            best = await calm(load, client, prompts, target=target, tries_max=TRIES)
            result = best.result
            raw = seen(result)
            measured = undisturbed(load, raw, best.engine_waited_ratio)
            models = {name: predicted(load, result, pool) for name, pool in pools.items()}
            errors = {name: rounded(compare(measured, model), 3) for name, model in models.items()}
            row = {
                "load": load.name,
                "requests": load.requests,
                "input_tokens": round(statistics.mean(one.input_tokens for one in result.samples), 1),
                "output_tokens": round(statistics.mean(one.output_tokens for one in result.samples), 1),
                "foreign_cpu_ratio": round(best.foreign_cpu_ratio, 2),
                "disturbance": round(best.disturbance, 2),
                "engine_waited_ratio": round(best.engine_waited_ratio, 3),
                "measured": rounded(measured),
                "measured_with_waits": rounded(raw),
                "predicted": rounded(models["fresh"]),
                "errors": errors,
            }
            rows.append(row)
            waited = f"others {best.foreign_cpu_ratio:.0%}, engine waited {best.engine_waited_ratio:.0%}"
            told = ", ".join(f"{METRICS[name]} {errors['fresh'][name]:+.0%}" for name in METRICS)
            print(f"{spec.name}: {load.name}: {told}; {waited}", flush=True)
    finally:
        await client.aclose()
    return {
        "profile": {
            "step_time": profile.step_time.model_dump(exclude_none=True, exclude={"sources"}),
            "acceptance": {one.task: one.by_position for one in profile.acceptance},
            "conditions": profile.provenance.conditions,
            "vllm_version": profile.provenance.vllm_version,
            "weights": profile.provenance.weights,
            "date": profile.provenance.date,
            "commit": profile.provenance.commit,
            "hardware": profile.provenance.hardware,
        },
        "loads": rows,
    }


def rounded(values: Mapping[str, float], digits: int = 5) -> dict[str, float]:
    return {name: round(value, digits) for name, value in values.items()}


def summary(pools: Mapping[str, Any], which: str) -> dict[str, dict[str, float]]:
    """Median and P95 of the errors' sizes, over the loads of all pools."""
    found = {}
    rows = [row for pool in pools.values() for row in pool["loads"]]
    if which == "calm":
        rows, which = [row for row in rows if not disturbed(row["disturbance"])], "fresh"
    for name in METRICS:
        sizes = [abs(row["errors"][which][name]) for row in rows if which in row["errors"]]
        if sizes:
            found[name] = {
                "median": round(statistics.median(sizes), 3),
                "p95": round(percentile(sizes, 0.95), 3),
                "loads": len(sizes),
            }
    return found


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    figures = result["figures"]
    hardware = result["hardware"]
    lines = [
        "# The simulator's error against real vLLM",
        "",
        f"{result['date'][:10]}, commit {result['commit']}, {hardware['cpu']}, {hardware['cores']} cores:",
        f"`{result['command']}`.",
        "Loads that the profile was not made with. The client and other programs ran on the same cores",
        "(`others`: their share); the time in which the engine was ready and had no core is taken out of",
        "what was measured (last column; with it: `measured_with_waits` in the JSON), because that is no",
        "property of the pool. Waits of the client and of the server in front of the engine are not, and",
        "spoil times to the first token: `waits` is what client, front and engine waited, by the load's",
        "duration. Calm loads are those with at most 15 % of it.",
        "",
        f"| | {' | '.join(f'{words}: median error | P95' for words in CALIBRATIONS.values())} |",
        f"|---|{'---:|---:|' * len(CALIBRATIONS)}",
    ]
    for name, words in METRICS.items():
        cells = [
            f"{one[key]:.0%}" if (one := figures[f"errors_{which}"].get(name)) else "-"
            for which in CALIBRATIONS
            for key in ("median", "p95")
        ]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    counts = [figures[f"errors_{which}"].get("ttft_p50_s", {"loads": 0})["loads"] for which in CALIBRATIONS]
    lines.append(f"| loads | {' | | '.join(map(str, counts))} | |")
    lines += [
        "",
        "Predicted against measured, each load (calibrated just before):",
        "",
        f"| pool | load | tokens/s | {' | '.join(COLUMNS)} | others | waits | engine waited |",
        "|---|---|---|---|---|---|---|---:|---:|---:|",
    ]
    for pool, found in figures["pools"].items():
        for row in found["loads"]:
            measured, model = row["measured"], row["predicted"]
            cells = [f"{model['output_tokens_per_s']:.0f} / {measured['output_tokens_per_s']:.0f}"]
            cells += [
                f"{model[name] * 1e3:.1f} / {measured[name] * 1e3:.1f}"
                for name in METRICS
                if name.endswith("_s") and name != "output_tokens_per_s"
            ]
            disturbance = " | ".join(
                f"{row[name]:.0%}" for name in ("foreign_cpu_ratio", "disturbance", "engine_waited_ratio")
            )
            lines.append(f"| {pool} | {row['load']} | {' | '.join(cells)} | {disturbance} |")
    return "\n".join(lines) + "\n"


async def run(names: Sequence[str], *, is_quick: bool, state_dir: Path | None) -> dict[str, Any]:
    pools = load_pools(ROOT / "backends" / "pools")
    found = {}
    for name in names:
        bundled = ROOT / "backends" / "profiles" / f"{name}.json"
        with tempfile.TemporaryDirectory(prefix="tollgate-simulator-") as folder:
            async with target_of(
                name,
                pools,
                url=None,
                state_dir=state_dir or Path(folder),
                python=PYTHON,
                on_progress=lambda _: None,
            ) as target:
                known = load_profile(bundled) if bundled.exists() else None
                found[name] = await one_pool(pools[name], target, is_quick=is_quick, bundled=known)
    return found


def main() -> int:
    """Measure, compare, write both files."""
    parser = argparse.ArgumentParser(description="Compare the simulator with real vLLM.")
    parser.add_argument(
        "--pool", choices=("plain", "speculative"), help="one, keeping the other's last figures"
    )
    parser.add_argument("--quick", action="store_true", help="calibrate from the small grid")
    parser.add_argument("--state-dir", type=Path, help="of a fleet that runs: take its replica")
    options = parser.parse_args()
    pools: dict[str, Any] = {}
    if options.pool and (RESULTS / f"{NAME}.json").exists():
        pools = json.loads((RESULTS / f"{NAME}.json").read_text())["figures"]["pools"]
    names = [options.pool] if options.pool else ["plain", "speculative"]
    pools |= asyncio.run(run(names, is_quick=options.quick, state_dir=options.state_dir))
    figures = {f"errors_{which}": summary(pools, which) for which in CALIBRATIONS}
    path = write_result(NAME, {**figures, "pools": pools})
    text = table(json.loads(path.read_text()))
    path.with_suffix(".md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
