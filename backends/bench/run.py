"""How is a pool's profile made, from warm-up to file?

Warms the server up, drives every cell of the grid, fits the step-time model and puts the profile together.
Nothing is written but by `write`, and there in one step each: an interrupted bench leaves what was there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Final

import httpx

from backends.bench.counters import Counters, read_counters
from backends.bench.fit import Fit, fit
from backends.bench.load import BenchError, Client, closed_loop
from backends.bench.machine import commit_of, describe_hardware, weights_identity
from backends.bench.plot import draw
from backends.bench.sweep import CellResult, cells, grid_point, miscounted, observation, rounded, run_cell
from backends.bench.target import Target
from backends.bench.workload import NATURE, TEMPERATURE, Prompts
from backends.pool import PoolSpec
from backends.profile import (
    Acceptance,
    DraftCost,
    Engine,
    Profile,
    Provenance,
    StepTime,
    save_profile,
    write_whole,
)

ROOT: Final = Path(__file__).resolve().parents[2]
_WARM_UP_REQUESTS: Final = 16
_DRAFTS_MIN: Final = 20
"""Fewer say nothing about acceptance."""
TRIES: Final = 3
"""So often is a cell measured while other programs disturb it; the least disturbed time counts."""
REPEATING_S_MAX: Final = 60.0
"""For all cells together: on a machine that is never calm, figures stay what they are, and say so."""
_DISTURBED_RATIO: Final = 0.15


def disturbed(waited_ratio: float | None) -> bool:
    """Did server and client wait for cores so long that the figures say little about the pool?"""
    return waited_ratio is not None and waited_ratio > _DISTURBED_RATIO


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the bench stands; answers are counted, not cells, because cells differ in length."""

    done: int
    total: int
    what: str


@dataclass(frozen=True, slots=True)
class Measured:
    """What a bench found, before it is a profile."""

    results: tuple[CellResult, ...]
    engine: Counters
    vllm_version: str
    seed: int


async def measure(
    spec: PoolSpec,
    target: Target,
    *,
    is_quick: bool,
    seed: int,
    on_progress: Callable[[Progress], None],
) -> Measured:
    """Drive the whole grid.

    Args:
        spec: the pool.
        target: its server, which must have no other traffic.
        is_quick: a small grid, for a first look.
        seed: of the prompts; on a server that has seen them, its prefix cache would answer.
        on_progress: called after each answer.

    Raises:
        BenchError: a request failed, the server is no vLLM, or somebody else uses it.
    """
    grid = cells(spec, is_quick=is_quick)
    total = _WARM_UP_REQUESTS + sum(cell.requests for cell in grid)
    prompts, done = Prompts(seed), 0
    client = Client(target.url, spec.model.served_name)

    def answered(what: str) -> None:
        nonlocal done
        done += 1
        on_progress(Progress(done, total, what))

    try:
        version = await _version(target.url)
        warm = [
            prompts.take("creative", input_tokens=200, output_tokens_max=24, is_output_fixed=True)
            for _ in range(_WARM_UP_REQUESTS)
        ]
        await closed_loop(client, warm, concurrency=8, on_answer=partial(answered, "warm-up"))
        results, repeated_s = [], 0.0
        for cell in grid:
            tries: list[CellResult] = []
            while not tries or (
                disturbed(tries[-1].disturbance)
                and len(tries) < TRIES
                and repeated_s + tries[-1].load.duration_s < REPEATING_S_MAX
            ):
                if tries:
                    total += cell.requests
                    repeated_s += tries[-1].load.duration_s
                found = await run_cell(
                    cell,
                    client,
                    target.url,
                    prompts=prompts,
                    session=target.session,
                    on_answer=partial(answered, str(cell)),
                )
                for complaint in miscounted(found):
                    raise BenchError(f"{cell}: {complaint}; somebody else uses {target.url}")
                tries.append(found)
            results.append(min(tries, key=lambda one: one.disturbance or 0.0))
        return Measured(tuple(results), await read_counters(target.url), version, seed)
    finally:
        await client.aclose()


async def _version(url: str) -> str:
    async with httpx.AsyncClient(trust_env=False, timeout=30.0) as client:  # noqa: TID251 - as a scrape
        try:
            return str((await client.get(f"{url}/version")).json()["version"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise BenchError(f"{url}/version does not answer as vLLM does: {error!r}") from error


def profile_of(spec: PoolSpec, target: Target, measured: Measured, *, command: str) -> Profile:
    """Fit and put together.

    Raises:
        Underdetermined: the grid cannot tell the coefficients apart.
    """
    speculation = spec.speculation
    draft_tokens = speculation.num_speculative_tokens if speculation else 0
    own = "proposed_token_s" if speculation else "sequence_s"
    names = ["fixed_s", "batched_token_s", "kv_token_s", "request_s", own]
    found = fit([observation(one, draft_tokens=draft_tokens) for one in measured.results], names)
    return Profile(
        pool=spec.name,
        model=Path(spec.model.path).name if spec.model.path else spec.model.served_name,
        method=speculation.method if speculation else None,
        num_speculative_tokens=draft_tokens,
        provenance=_provenance(spec, target, measured, command=command),
        engine=Engine(
            max_num_seqs=spec.batching.max_num_seqs,
            max_num_batched_tokens=spec.batching.max_num_batched_tokens,
            kv_cache_tokens=measured.engine.kv_cache_tokens,
            block_size=measured.engine.block_size or 16,
            enable_prefix_caching=spec.batching.enable_prefix_caching,
            enable_chunked_prefill=spec.batching.enable_chunked_prefill,
        ),
        step_time=_step_time(found),
        draft_costs=_draft_costs(spec, found),
        acceptance=_acceptance(measured.results, method=speculation.method if speculation else ""),
        grid=tuple(grid_point(one) for one in measured.results),
    )


def _provenance(spec: PoolSpec, target: Target, measured: Measured, *, command: str) -> Provenance:
    client_s = sum(one.load.client_cpu_s for one in measured.results)
    duration_s = sum(one.load.duration_s for one in measured.results)
    conditions: dict[str, str | int | float] = {
        "server": target.how,
        "seed": measured.seed,
        "duration_s": rounded(duration_s),
        # On the server's own machine the client takes from what is measured.
        "client_cores_used": rounded(client_s / duration_s, 2),
    }
    foreign = [one.foreign_cpu_ratio for one in measured.results if one.foreign_cpu_ratio is not None]
    if foreign:
        conditions |= {
            "foreign_cpu_ratio_mean": rounded(sum(foreign) / len(foreign), 2),
            "foreign_cpu_ratio_max": rounded(max(foreign), 2),
            "engine_waited_s": rounded(sum(one.engine_waited_s or 0.0 for one in measured.results)),
        }
    paths = {"target": spec.model.path, "draft": spec.speculation.model if spec.speculation else None}
    return Provenance(
        kind="measured",
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        hardware=describe_hardware(spec.hardware.gpu, spec.hardware.gpus_per_replica),
        source="tollgate pools bench",
        command=command,
        vllm_version=measured.vllm_version,
        commit=commit_of(ROOT),
        weights={name: known for name, path in paths.items() if (known := weights_identity(path))},
        conditions=conditions,
    )


def _step_time(found: Fit) -> StepTime:
    seconds = {name: rounded(value) for name, value in found.coefficients.items()}
    return StepTime(
        fixed_s=seconds["fixed_s"],
        batched_token_s=seconds["batched_token_s"],
        kv_token_s=seconds["kv_token_s"],
        sequence_s=seconds.get("sequence_s", 0.0),
        request_s=seconds["request_s"],
        error_median_ratio=rounded(found.error_median_ratio, 2),
        error_max_ratio=rounded(found.error_max_ratio, 2),
    )


def _draft_costs(spec: PoolSpec, found: Fit) -> dict[str, DraftCost]:
    """A pool always proposes as many tokens, so what each step of the draft costs is part of `fixed_s`."""
    if spec.speculation is None:
        return {}
    cost = DraftCost(
        proposed_token_s=rounded(found.coefficients["proposed_token_s"]),
        sources={"fixed_s": "not told apart from step_time.fixed_s: every step of this pool drafts"},
    )
    return {spec.speculation.method: cost}


def _acceptance(results: Sequence[CellResult], *, method: str) -> tuple[Acceptance, ...]:
    found = []
    for task in TEMPERATURE:
        # Behind an end token that is ignored stands text that nobody asked for.
        counted = [one.counted for one in results if one.cell.task == task and not one.cell.is_output_fixed]
        if not counted:
            continue
        total = reduce(add, counted)
        drafts = total.values.get("drafts", 0)
        if drafts >= _DRAFTS_MIN:
            found.append(
                Acceptance(
                    task=task,
                    nature=NATURE[task],
                    method=method,
                    by_position=tuple(rounded(one) for one in total.acceptance),
                    temperature=TEMPERATURE[task],
                    drafts=drafts,
                    source="whole answers of this bench, by the engine's counters",
                )
            )
    return tuple(found)


def write(profile: Profile, folder: Path) -> tuple[Path, Path]:
    """Write `<pool>.json` and `<pool>.svg`, each in one step; where they are."""
    json_path, plot_path = folder / f"{profile.pool}.json", folder / f"{profile.pool}.svg"
    write_whole(plot_path, draw(profile))
    save_profile(profile, json_path)
    return json_path, plot_path
