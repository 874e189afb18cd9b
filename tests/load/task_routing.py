"""What does routing by task and by measured speculation bring, on real vLLM?

The bundled fleet (a pool with a draft model and a plain one, on the cores of one machine), mixed traffic of
which nobody declares the task, and six rules: round robin over both pools, everything to one of them, least
loaded, and Tollgate with its policy's order alone and with economics on. Every request goes through a real
gateway. A run is one rule under one load; runs are repeated, each time with the rules in another order and
with prompts of its own.

    python -m tests.load.task_routing [--runs 3] [--quick] [--only LOAD] [--apart]

With --apart each pool has cores of its own, as pools have on machines of their own; without it both have all
of them, as `make run` leaves it. Writes tests/load/results/task_routing[_apart].{json,md,svg}. Figures are
ratios to round robin in the same repetition.

Cost is the company's, not the tenant's charge: `wall` takes the hours of both pools while the load lasted,
whether they were used or not; `engine` takes only what the engines' processors worked, by the kernel's
count, at the pool's price: what a token costs where something else fills the gaps. Both over output tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import httpx

from backends.files import load_pools
from backends.launch.process import ReplicaProgress
from backends.profile import load_profile
from backends.registry import PoolRegistry
from gateway.clock import Clock
from gateway.economist import Economist
from gateway.inference import TaskType
from gateway.routing.priors import Priors
from tests.load.engine_counters import comparison, engine_tokens, ledger_tokens
from tests.load.measured import ROOT, write_result
from tests.load.task_fleet import Fleet, Gateways, running_fleet, running_gateways, wait_booked
from tests.load.task_routing_report import crossover, draw, figures_of, run_sums, table
from tests.load.task_traffic import RULES, TASKS, Client, Load, Rule, Seen, drive

NAME: Final = "task_routing"
LOADS: Final = (
    Load("closed, 4 at a time", 32, concurrency=4),
    Load("closed, 24 at a time", 96, concurrency=24),
    Load("open, 4 a second", 44, per_s=4.0),
)
QUICK: Final = (Load("closed, 4 at a time", 16, concurrency=4),)
WARM: Final = Load("warm-up", 32, concurrency=8)
"""For each gateway, with its pools named in turn and then free to choose; not counted."""
RECEIPTS: Final = 40
"""Of each run with economics, for predicted against actual."""


def told(text: str) -> None:
    """Progress, for whoever waits."""
    print(text, flush=True)


def starting(at: ReplicaProgress) -> None:
    """Progress of a start."""
    told(f"  {at.replica}: {at.state} ({at.elapsed_s:.0f} s) {at.detail}")


async def run_once(
    rule: Rule, load: Load, *, fleet: Fleet, gateways: Gateways, seed: int
) -> tuple[dict[str, Any], list[Seen], str]:
    """One rule under one load; its sums, the answers and the key that asked."""
    key = gateways.next_key(rule.gateway)
    client = Client(gateways.url(rule.gateway), key)
    try:
        before = fleet.cpu()
        answers = await drive(load, client, rule.make(), seed)
        after = fleet.cpu()
    finally:
        await client.aclose()
    worked = {pool: after[pool].engine_since(before[pool]) for pool in after}
    return run_sums(answers, worked, fleet.usd_per_hour), answers, key


async def receipts_of(gateway: str, key: str, answers: Sequence[Seen]) -> list[dict[str, Any]]:
    """The last requests' receipts, as their tenant sees them."""
    found = []
    async with httpx.AsyncClient(  # noqa: TID251 - control plane of a measurement
        base_url=gateway, trust_env=False, headers={"authorization": f"Bearer {key}"}, timeout=30
    ) as client:
        for one in answers[-RECEIPTS:]:
            answer = await client.get(f"/v1/receipts/{one.request_id}")
            answer.raise_for_status()
            found.append(answer.json())
    return found


def errors_of(receipts: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Predicted over actual of each answered attempt."""
    found = []
    for receipt in receipts:
        attempt = receipt["attempts"][-1]
        predicted, actual = attempt["predicted"], attempt["actual"]
        found.append(
            {
                what: predicted[what] / actual[what]
                for what in ("first_token_ms", "token_ms", "total_ms")
                if actual[what]
            }
        )
    return found


async def warm_up(gateways: Gateways, names: Sequence[str]) -> int:
    """Both pools by name, then by choice, at every gateway; returns the requests of each."""
    for name in names:
        for number, rule in enumerate((RULES[0], RULES[-1])):
            client = Client(gateways.url(name), gateways.next_key(name))
            try:
                await drive(WARM, client, rule.make(), 1_000 + number)
            finally:
                await client.aclose()
    return 2 * WARM.requests


async def measure(
    loads: Sequence[Load],
    runs: int,
    folder: Path,
    *,
    seed: int,
    state_dir: Path | None,
    is_apart: bool,
) -> dict[str, Any]:
    """Everything, once the fleet is up."""
    names = sorted({rule.gateway for rule in RULES})
    found: list[dict[str, Any]] = []
    receipts: list[dict[str, Any]] = []
    async with running_fleet(folder / "fleet", starting, state_dir=state_dir) as fleet:
        if is_apart:
            fleet.keep_apart()
        tenants = len(RULES) * len(loads) * runs + 2
        async with running_gateways(folder, fleet, names, tenants=tenants) as gateways:
            counted, since_ms = engine_tokens(fleet.urls), Clock().epoch_ms()
            booked = dict.fromkeys(names, await warm_up(gateways, names))
            for name in names:
                wait_booked(gateways.running[name], booked[name])
            for run in range(runs):
                for place, load in enumerate(loads):
                    order = list(RULES)
                    random.Random(seed + 97 * run + place).shuffle(order)
                    for rule in order:
                        own_seed = seed + 10_000 * run + 100 * place + RULES.index(rule)
                        sums, answers, key = await run_once(
                            rule, load, fleet=fleet, gateways=gateways, seed=own_seed
                        )
                        found.append({"run": run, "load": load.name, "rule": rule.name, **sums})
                        told(_line(run, load, rule, sums))
                        # What is being booked must not take the next rule's processor.
                        booked[rule.gateway] += load.requests
                        wait_booked(gateways.running[rule.gateway], booked[rule.gateway])
                        if rule.gateway == "economics":
                            receipts += await receipts_of(gateways.url(rule.gateway), key, answers)
            gates = {"learned": await learned_gates(gateways)}
            books = [running.state_dir / "tollgate.db" for running in gateways.running.values()]
            tokens = comparison(counted, engine_tokens(fleet.urls), ledger_tokens(books, since_ms))
    return {
        "runs": found,
        "summary": figures_of(found),
        "gates": gates | gates_by_profile(),
        "tokens": tokens,
        "predicted_over_actual": _spread_of(errors_of(receipts)),
        "receipt": next((one for one in reversed(receipts) if one["decision"]["candidates"][1:]), None),
    }


def _line(run: int, load: Load, rule: Rule, sums: dict[str, Any]) -> str:
    return (
        f"run {run + 1}, {load.name}, {rule.title}: {sums['output_tokens_per_s']:.0f} tokens/s, "
        f"TTFT {sums['ttft_p50_ms']:.0f}/{sums['ttft_p95_ms']:.0f} ms, "
        f"TPOT {sums['tpot_p50_ms']:.1f}/{sums['tpot_p95_ms']:.1f} ms, "
        f"USD/M wall {sums['cost_wall_usd']:.4f} engine {sums['cost_engine_usd']:.4f}, "
        f"to speculative {sums['to_speculative']}"
    )


def _spread_of(errors: Sequence[dict[str, float]]) -> dict[str, Any]:
    found: dict[str, Any] = {"requests": len(errors)}
    for what in ("first_token_ms", "token_ms", "total_ms"):
        ratios = sorted(one[what] for one in errors if what in one)
        if len(ratios) > 1:
            tenths = statistics.quantiles(ratios, n=10)
            found[what] = {
                "median": round(statistics.median(ratios), 3),
                "p10": round(tenths[0], 3),
                "p90": round(tenths[-1], 3),
            }
    return found


async def learned_gates(gateways: Gateways) -> list[dict[str, Any]]:
    """What the gateway with economics had learned by the end, of the pool that speculates."""
    running = gateways.running["economics"]
    async with httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=30) as client:  # noqa: TID251 - control plane of a measurement
        answer = await client.get(
            "/admin/v1/pools/learned", headers={"authorization": f"Bearer {running.admin_key}"}
        )
        answer.raise_for_status()
    rows: list[dict[str, Any]] = answer.json()["data"]
    return [row for row in rows if row["task"] in {*TASKS, None}]


def gates_by_profile() -> dict[str, Any]:
    """Up to how many requests per replica speculation pays: by the profiles' model, and by their grids."""
    specs = load_pools(ROOT / "backends" / "pools")
    economist = Economist(PoolRegistry(specs), Priors(specs), clock=Clock())
    profiles = {name: load_profile(ROOT / "backends" / "profiles" / f"{name}.json") for name in specs}
    found: dict[str, Any] = {}
    for task in TASKS:
        gate = economist.gates("speculative", TaskType(task))["plain"]
        found[task] = {
            "model": {name: _finite(getattr(gate, name)) for name in ("least", "middle", "most")},
            "grid": crossover(profiles["speculative"].grid, profiles["plain"].grid, task),
        }
    return {"profile": found}


def _finite(value: float) -> float | None:
    return round(value, 2) if math.isfinite(value) else None


def main() -> int:
    """Measure, and write the three files."""
    parser = argparse.ArgumentParser(
        description="Compare routing rules on real vLLM.",
        epilog="example: python -m tests.load.task_routing --runs 3",
    )
    parser.add_argument("--runs", type=int, default=3, help="repetitions of every rule under every load")
    parser.add_argument(
        "--quick", action="store_true", help="one small load, once; says nothing, shows that it works"
    )
    parser.add_argument("--only", help="loads whose name has this in it")
    parser.add_argument("--seed", type=int, default=20_261)
    parser.add_argument("--apart", action="store_true", help="each pool on cores of its own")
    parser.add_argument("--state-dir", type=Path, help="of a fleet that runs: take it")
    parser.add_argument("--out", type=Path, help="folder for the results; default: tests/load/results")
    options = parser.parse_args()
    loads = QUICK if options.quick else tuple(one for one in LOADS if (options.only or "") in one.name)
    if not loads:
        parser.error(f"no load has {options.only!r} in its name: {', '.join(one.name for one in LOADS)}")
    state_dir = None if options.state_dir is None else options.state_dir.resolve()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tollgate-routing-") as folder:
        runs = 1 if options.quick else options.runs
        figures = asyncio.run(
            measure(
                loads,
                runs,
                Path(folder),
                seed=options.seed,
                state_dir=state_dir,
                is_apart=options.apart,
            )
        )
    figures["duration_s"] = round(time.monotonic() - began_s)
    more = {} if options.out is None else {"folder": options.out}
    path = write_result(f"{NAME}_apart" if options.apart else NAME, figures, **more)
    result = json.loads(path.read_text())
    path.with_suffix(".md").write_text(table(result))
    path.with_suffix(".svg").write_text(draw(result))
    told(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
