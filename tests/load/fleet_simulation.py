"""What would a fleet of GPUs cost under Tollgate's routing, and under rules that know nothing of tasks?

    python -m tests.load.fleet_simulation [--quick] [--seeds 3] [--requests 1500] [--only "H100: EAGLE"]
                                          [--jobs 2]
    python -m tests.load.fleet_simulation --short [...]    Tollgate and the task-blind rules alone, sooner

Fleets of speculating and plain pools on A100 and H100, simulated (`backends/simulator`) from published
figures, get the requests of public traces with tasks drawn from labelled prompts. Nothing of it was
measured on a GPU. Tollgate is its own code (`decide`, `Economist`, `PoolRegistry`, learning from
receipts) in two gateways that see the engines once a second and take tasks for others as often as the
classifier does. For each rule: the greatest load at which 95 of 100 requests keep a target, and what the
fleet's hours come to per million output tokens there. The oracle knows true acceptance, lengths and
states (`tests/load/fleet/oracle.py`).

Each fleet with each seed is simulated by itself, in as many processes as asked. The same seeds give the
same figures, whatever the number of processes. Writes tests/load/results/fleet_simulation.{json,md,svg}.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.load.fleet.physics import bound
from tests.load.fleet.play import Played
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
JOBS: Final = 2
CELLS: Final = tuple(
    [Cell(fleet, "azure-conversation") for fleet in FLEETS]
    + [Cell(fleet, "burstgpt") for fleet in (FLEETS[0], FLEETS[3], FLEETS[4])]
)
QUICK_CELLS: Final = (CELLS[0], CELLS[-1])


LOOK_S: Final = 0.5
"""How often what is shown of the progress is renewed."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One fleet and traffic with one seed: what a process does at a time."""

    cell: Cell
    seed: int
    requests: int
    """In each simulation."""
    is_short: bool = False
    """Tollgate and the task-blind rules alone, and only what they carry."""


@dataclass(frozen=True, slots=True)
class Found:
    """What came of it."""

    carried: dict[str, dict[str, float]]
    """Load → rule → requests per second within the load's target."""
    at_loads: dict[str, dict[str, dict[str, Any]]]
    """Load → rule → figures at that load; none of a short one."""


def simulated(unit: Unit, *, on_run: Callable[[], None] = lambda: None) -> Found:
    """All simulations of a unit, which depend on nothing but it.

    Args:
        unit: which.
        on_run: called after each simulation.
    """
    rules = (*BLIND, TOLLGATE) if unit.is_short else rules_of(unit.cell)
    runs = Runs(unit.cell, seed=unit.seed, requests=unit.requests, on_run=on_run)
    found = Found({}, {})
    for target in TARGETS:
        carried: dict[str, float] = {}
        near = 0
        for rule in rules:
            carried[rule], place = runs.sustained(rule, target, near=near)
            if unit.is_short:
                near = near or place
            elif rule == "least loaded" or near:
                near = place
        found.carried[target.load] = carried
        if not unit.is_short:
            found.at_loads[target.load] = {
                rule: _figures_of(runs.at(rule, target, LOADS[target.load])) for rule in rules
            }
    return found


def _figures_of(played: Played) -> dict[str, Any]:
    return {
        "ttft_p95_s": played.ttft_p95_s,
        "tpot_p95_s": played.tpot_p95_s,
        "busy_usd_per_million": played.busy_usd / played.output_tokens * 1e6,
        "busy_ratio": played.busy_ratio,
        "under_way": played.running,
        "to_pool": played.to_pool,
        "to_first_by_task": played.to_first_by_task,
        "prompt_tokens_by_pool": played.prompt_tokens_by_pool,
    }


def studied(cell: Cell, found: Sequence[Found]) -> dict[str, Any]:
    """All figures of a fleet and its traffic, from those of each seed."""
    return {
        "fleet": cell.fleet.name,
        "traffic": cell.traffic,
        "usd_per_hour": round(cell.fleet.usd_per_hour, 2),
        "bound": bound(cell),
        "at_targets": {
            each.load: compared(
                cell, {rule: [one.carried[each.load][rule] for one in found] for rule in rules_of(cell)}
            )
            for each in TARGETS
        },
        "at_loads": {
            load: {rule: _mean_of([one.at_loads[load][rule] for one in found]) for rule in by_rule}
            for load, by_rule in found[0].at_loads.items()
        },
    }


def shortly(cell: Cell, found: Sequence[Found]) -> dict[str, Any]:
    """What Tollgate and each task-blind rule cost at each target, USD per million output tokens."""
    figures: dict[str, Any] = {"fleet": cell.fleet.name, "traffic": cell.traffic}
    for target in TARGETS:
        costs = {
            rule: usd_per_million(cell, sum(one.carried[target.load][rule] for one in found) / len(found))
            for rule in (*BLIND, TOLLGATE)
        }
        best = min(BLIND, key=costs.__getitem__)
        figures[target.load] = {
            "usd_per_million_tokens": {rule: round(cost, 4) for rule, cost in costs.items()},
            "best_blind": best,
            "tollgate_over_best": round(costs[TOLLGATE] / costs[best], 3),
        }
    return figures


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


# ------------------------------------------------------------------------------------- in several processes
class _Counted:
    """The simulations that all processes have made."""

    def __init__(self) -> None:
        self.count: Synchronized[int] | None = None

    def add(self) -> None:
        if self.count is not None:
            with self.count.get_lock():
                self.count.value += 1


_MADE: Final = _Counted()


def _begin(count: Synchronized[int]) -> None:
    """What a process is told at its start."""
    _MADE.count = count


def _work(unit: Unit) -> Found:
    return simulated(unit, on_run=_MADE.add)


def _in_processes(
    units: Sequence[Unit], jobs: int, *, on_look: Callable[[int, int], None]
) -> Iterator[Found]:
    """What comes of each unit, in their order; `on_look` gets the units and the simulations that are done."""
    # Not forked: what shows the progress is a thread, and a fork would inherit its locks.
    context = multiprocessing.get_context("spawn")
    count = context.Value("L", 0)
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(count,)) as processes:
        waited: list[Future[Found]] = [processes.submit(_work, unit) for unit in units]
        for each in waited:
            while not each.done():
                wait([each], timeout=LOOK_S)
                on_look(sum(one.done() for one in waited), count.value)
            yield each.result()


def study(
    cells: Sequence[Cell], *, seeds: Sequence[int], requests: int, jobs: int, is_short: bool = False
) -> list[dict[str, Any]]:
    """All cells, with progress.

    Args:
        cells: fleets and their traffic.
        seeds: with each of which each is simulated.
        requests: in each simulation.
        jobs: processes.
        is_short: see `Unit`.
    """
    units = [Unit(cell, seed, requests, is_short) for cell in cells for seed in seeds]
    figures: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        shown = progress.add_task("fleets with each seed", total=len(units))

        def on_look(done: int, simulations: int) -> None:
            said = f"fleets with each seed ({simulations} simulations)"
            progress.update(shown, completed=done, description=said)

        found: list[Found] = []
        for one in _in_processes(units, jobs, on_look=on_look):
            found.append(one)
            if len(found) == len(seeds):
                cell = cells[len(figures)]
                figures.append((shortly if is_short else studied)(cell, found))
                progress.console.print(_said_of(cell, figures[-1], is_short=is_short))
                found = []
    return figures


def _said_of(cell: Cell, figures: dict[str, Any], *, is_short: bool) -> str:
    """One line for whoever waits."""
    if is_short:
        ratios = ", ".join(f"{each.load} {figures[each.load]['tollgate_over_best']}" for each in TARGETS)
        return f"{cell.name}: Tollgate over the best task-blind rule: {ratios}"
    costs = figures["at_targets"]["moderate"]["usd_per_million_tokens"]
    listed = ", ".join(f"{rule} {cost}" for rule, cost in costs.items())
    return f"{cell.name}: USD per million tokens at the moderate target {listed}"


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
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"processes (default {JOBS})")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write into")
    options = parser.parse_args(arguments)
    cells = [each for each in (QUICK_CELLS if options.quick else CELLS) if each.name.startswith(options.only)]
    if not cells or options.seeds < 1 or options.requests < 100 or options.jobs < 1:
        parser.error("no such fleet, or fewer than 1 seed, 1 process or 100 requests")
    seeds = range(1, 1 + (QUICK_SEEDS if options.quick else options.seeds))
    requests = QUICK_REQUESTS if options.quick else options.requests
    found = study(cells, seeds=seeds, requests=requests, jobs=options.jobs, is_short=options.short)
    figures = {"seeds": list(seeds), "requests": requests, "cells": found}
    if options.short:
        write_result(f"{NAME}-short", figures, folder=options.results)
    else:
        write_all(f"{NAME}-quick" if options.quick else NAME, figures, folder=options.results)
    return 0


def write_all(name: str, figures: dict[str, Any], *, folder: Path) -> None:
    """The figures, the report and its picture.

    Args:
        name: of the files.
        figures: seeds, requests and cells.
        folder: where.
    """
    write_result(name, {**figures, "oracle": ORACLE}, folder=folder)
    (folder / f"{name}.md").write_text(markdown(figures, picture_name=f"{name}.svg"))
    (folder / f"{name}.svg").write_text(picture(figures["cells"]))


if __name__ == "__main__":
    sys.exit(main())
