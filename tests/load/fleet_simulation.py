"""What would a fleet of GPUs cost under Tollgate's routing, and under rules that know nothing of tasks?

    python -m tests.load.fleet_simulation [--quick] [--seeds 3] [--requests 1500] [--only "H100: EAGLE"]
    python -m tests.load.fleet_simulation --short [...]    Tollgate and the task-blind rules alone, sooner

Fleets of speculating and plain pools on A100 and H100, simulated (`backends/simulator`) from published
figures, get the requests of public traces with tasks drawn from labelled prompts. Nothing of it was
measured on a GPU. Tollgate is its own code (`decide`, `Economist`, `PoolRegistry`, learning from
receipts) in two gateways that see the engines once a second and take tasks for others as often as the
classifier does. For each rule: the greatest load at which 95 of 100 requests keep a target, and what the
fleet's hours come to per million output tokens there. The oracle knows true acceptance, lengths and
states (`tests/load/fleet/oracle.py`).

The same seeds give the same figures. Writes tests/load/results/fleet_simulation.{json,md,svg}.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from tests.load.fleet.physics import bound
from tests.load.fleet.pools import FLEETS
from tests.load.fleet.report import markdown, picture
from tests.load.fleet.sustain import (
    BLIND,
    LOADS,
    ORACLE,
    TARGETS,
    TOLLGATE,
    Cell,
    Runs,
    compared,
    rules_of,
    usd_per_million,
)
from tests.load.measured import RESULTS, write_result

NAME: Final = "fleet_simulation"
SEEDS, REQUESTS = 3, 1_500
QUICK_SEEDS, QUICK_REQUESTS = 2, 400
CELLS: Final = tuple(
    [Cell(fleet, "azure-conversation") for fleet in FLEETS]
    + [Cell(fleet, "burstgpt") for fleet in (FLEETS[0], FLEETS[3], FLEETS[4])]
)
QUICK_CELLS: Final = (CELLS[0], CELLS[-1])


def studied(
    cell: Cell, *, seeds: Sequence[int], requests: int, on_run: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """All figures of a fleet and its traffic.

    Args:
        cell: which.
        seeds: one after the other.
        requests: in each simulation.
        on_run: called after each simulation.
    """
    rules = rules_of(cell)
    carried: dict[str, dict[str, list[float]]] = {each.load: {rule: [] for rule in rules} for each in TARGETS}
    at_loads: dict[str, dict[str, list[dict[str, Any]]]] = {
        load: {rule: [] for rule in rules} for load in LOADS
    }
    for seed in seeds:
        runs = Runs(cell, seed=seed, requests=requests, on_run=on_run)
        for target in TARGETS:
            near = 0
            for rule in rules:
                rate, place = runs.sustained(rule, target, near=near)
                carried[target.load][rule].append(rate)
                near = place if rule == "least loaded" or near else near
            for rule in rules:
                played = runs.at(rule, target, LOADS[target.load])
                at_loads[target.load][rule].append(
                    {
                        "ttft_p95_s": played.ttft_p95_s,
                        "tpot_p95_s": played.tpot_p95_s,
                        "busy_usd_per_million": played.busy_usd / played.output_tokens * 1e6,
                        "busy_ratio": played.busy_ratio,
                        "under_way": played.running,
                        "to_pool": played.to_pool,
                        "to_first_by_task": played.to_first_by_task,
                    }
                )
    return {
        "fleet": cell.fleet.name,
        "traffic": cell.traffic,
        "usd_per_hour": round(cell.fleet.usd_per_hour, 2),
        "bound": bound(cell),
        "at_targets": {each.load: compared(cell, carried[each.load]) for each in TARGETS},
        "at_loads": {
            load: {rule: _mean_of(found) for rule, found in by_rule.items()}
            for load, by_rule in at_loads.items()
        },
    }


def shortly(cell: Cell, *, seeds: Sequence[int], requests: int, on_run: Callable[[], None]) -> dict[str, Any]:
    """What Tollgate and each task-blind rule cost at each target, USD per million output tokens."""
    rules = (*BLIND, TOLLGATE)
    runs = [Runs(cell, seed=seed, requests=requests, on_run=on_run) for seed in seeds]
    found: dict[str, Any] = {"fleet": cell.fleet.name, "traffic": cell.traffic}
    for target in TARGETS:
        near = dict.fromkeys(seeds, 0)
        costs = {}
        for rule in rules:
            total = 0.0
            for seed, each in zip(seeds, runs, strict=True):
                rate, place = each.sustained(rule, target, near=near[seed])
                near[seed] = near[seed] or place
                total += rate
            costs[rule] = usd_per_million(cell, total / len(runs))
        best = min(BLIND, key=costs.__getitem__)
        found[target.load] = {
            "usd_per_million_tokens": {rule: round(cost, 4) for rule, cost in costs.items()},
            "best_blind": best,
            "tollgate_over_best": round(costs[TOLLGATE] / costs[best], 3),
        }
    return found


def _mean_of(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, of numbers and of numbers by name."""
    mean: dict[str, Any] = {}
    for key, value in found[0].items():
        if isinstance(value, dict):
            names = sorted({name for each in found for name in each[key]})
            mean[key] = {
                name: round(sum(each[key].get(name, 0.0) for each in found) / len(found), 3) for name in names
            }
        else:
            mean[key] = round(sum(each[key] for each in found) / len(found), 5)
    return mean


def study(
    cells: Sequence[Cell], *, seeds: Sequence[int], requests: int, is_short: bool = False
) -> list[dict[str, Any]]:
    """All cells, with progress."""
    console, found = Console(stderr=True), []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        shown = progress.add_task("", total=None)
        count = 0

        def on_run() -> None:
            nonlocal count
            count += 1
            progress.update(shown, description=f"{cell.name} ({place} of {len(cells)}): {count} simulations")

        for place, cell in enumerate(cells, start=1):  # noqa: B007 - what on_run shows
            if is_short:
                found.append(shortly(cell, seeds=seeds, requests=requests, on_run=on_run))
                ratios = ", ".join(
                    f"{each.load} {found[-1][each.load]['tollgate_over_best']}" for each in TARGETS
                )
                progress.console.print(f"{cell.name}: Tollgate over the best task-blind rule: {ratios}")
                continue
            found.append(studied(cell, seeds=seeds, requests=requests, on_run=on_run))
            moderate = found[-1]["at_targets"]["moderate"]
            progress.console.print(
                f"{cell.name}: USD per million tokens at the moderate target "
                + ", ".join(f"{rule} {cost}" for rule, cost in moderate["usd_per_million_tokens"].items())
            )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, and write the results; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Simulate fleets of GPUs under Tollgate's routing and under other rules.",
        epilog="Example: python -m tests.load.fleet_simulation --quick",
    )
    parser.add_argument("--quick", action="store_true", help="two fleets, two seeds, short runs: a minute")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how many (default {SEEDS})")
    parser.add_argument("--requests", type=int, default=REQUESTS, help=f"in a run (default {REQUESTS})")
    parser.add_argument("--only", default="", help="only fleets and traffics whose name begins so")
    parser.add_argument("--short", action="store_true", help="Tollgate and the task-blind rules alone")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write into")
    options = parser.parse_args(arguments)
    cells = [each for each in (QUICK_CELLS if options.quick else CELLS) if each.name.startswith(options.only)]
    if not cells or options.seeds < 1 or options.requests < 100:
        parser.error("no such fleet, or fewer than 1 seed or 100 requests")
    seeds = range(1, 1 + (QUICK_SEEDS if options.quick else options.seeds))
    requests = QUICK_REQUESTS if options.quick else options.requests
    found = study(cells, seeds=seeds, requests=requests, is_short=options.short)
    figures = {"seeds": list(seeds), "requests": requests, "cells": found, "oracle": ORACLE}
    if options.short:
        write_result(
            f"{NAME}-short", {k: figures[k] for k in ("seeds", "requests", "cells")}, folder=options.results
        )
        return 0
    name = f"{NAME}-quick" if options.quick else NAME
    write_result(name, figures, folder=options.results)
    (options.results / f"{name}.md").write_text(markdown(figures, picture_name=f"{name}.svg"))
    (options.results / f"{name}.svg").write_text(picture(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
