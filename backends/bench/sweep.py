"""Which loads does a bench drive, and what does each of them say about a step's time?

A cell is one load: a task at one concurrency, input and output length, in a closed loop. Cells come in three
kinds: first tokens only (what a prompt costs), fixed output lengths (what a batch costs), and answers that
end by themselves (what a task's speculation is worth, and what a user sees).

A cell's whole duration, without the time in which the engine waited for a core, is one observation for the
fit: while requests are there the engine always steps, so the time is the sum of its steps, in any order.
Between the rounds of a closed loop it idles for as long as a request takes to come in front of it
(`request_s`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from backends.bench.counters import Counters, read_counters
from backends.bench.fit import Observation
from backends.bench.load import Client, LoadResult, Sample, closed_loop
from backends.bench.machine import CpuTimes
from backends.bench.workload import TEMPERATURE, Prompts, TaskName
from backends.pool import PoolSpec
from backends.profile import GridPoint, Spread

NATURAL_OUTPUT_MAX: Final = 160
"""Tokens after which an answer that ought to end by itself is cut."""
_SMALL: Final = 1
"""Nothing is added to the task's own prompt."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One load."""

    task: TaskName
    concurrency: int
    input_tokens: int
    """About so many; 1: as short as the task's prompts are."""
    output_tokens_max: int
    is_output_fixed: bool
    requests: int

    def __str__(self) -> str:
        length = f"{self.output_tokens_max} out" if self.is_output_fixed else "whole answers"
        size = "short in" if self.input_tokens == _SMALL else f"{self.input_tokens} in"
        return f"{self.task}, {self.concurrency} at a time, {size}, {length}"


@dataclass(frozen=True, slots=True)
class CellResult:
    """What one cell showed."""

    cell: Cell
    load: LoadResult
    counted: Counters
    """What the engine counted meanwhile."""
    foreign_cpu_ratio: float | None
    engine_waited_s: float | None = None
    """That the engine was ready and had no core; None: not known."""
    chain_waited_s: float | None = None
    """The same of client, front and engine, added up."""

    @property
    def disturbance(self) -> float | None:
        """All these waits by the cell's duration: how little its times say; None: not known."""
        return None if self.chain_waited_s is None else self.chain_waited_s / self.load.duration_s


def cells(spec: PoolSpec, *, is_quick: bool) -> list[Cell]:
    """The grid for this pool, cut to its context and batch size."""
    most = spec.batching.max_num_seqs
    levels = [level for level in ((1, 8) if is_quick else (1, 4, 8, 16, 32, 64)) if level <= most]
    inputs = _inputs(spec.model.max_model_len, is_quick=is_quick)
    found = [Cell("creative", 1, size, 1, is_output_fixed=True, requests=8) for size in inputs]
    for concurrency in levels:
        found += [
            Cell(
                "creative", concurrency, size, length, is_output_fixed=True, requests=max(4, 2 * concurrency)
            )
            for size in (inputs[0], inputs[-1] // 2)
            for length in ((24,) if is_quick else (16, 96))
        ]
    for task in TEMPERATURE:
        for concurrency in levels[1:2] if is_quick else levels[::2]:
            requests = max(12, concurrency * 2)
            found.append(
                Cell(task, concurrency, _SMALL, NATURAL_OUTPUT_MAX, is_output_fixed=False, requests=requests)
            )
    return found


def _inputs(context: int, *, is_quick: bool) -> list[int]:
    """From the shortest prompt to three quarters of the context, at most 8,192 tokens."""
    longest = min(8_192, int(context * 0.75))
    parts = (2,) if is_quick else (4, 2)
    return [_SMALL, *(longest // part for part in parts), longest]


async def run_cell(
    cell: Cell,
    client: Client,
    url: str,
    *,
    prompts: Prompts,
    session: int | None,
    on_answer: Callable[[], None] = lambda: None,
) -> CellResult:
    """Drive one cell.

    Args:
        cell: the load.
        client: sends the requests.
        url: of the same server, for its counters.
        prompts: where the next ones come from.
        session: id of the session of the server's processes; None: not on this machine.
        on_answer: called after each answer.

    Raises:
        BenchError: a request failed, or the server is not alone ours.
    """
    items = [
        prompts.take(
            cell.task,
            input_tokens=cell.input_tokens,
            output_tokens_max=cell.output_tokens_max,
            is_output_fixed=cell.is_output_fixed,
        )
        for _ in range(cell.requests)
    ]
    before = await read_counters(url)
    cpu = CpuTimes.now(session)
    load = await closed_loop(client, items, concurrency=cell.concurrency, on_answer=on_answer)
    cpu_after = CpuTimes.now(session)
    counted = await read_counters(url) - before
    if cpu is None or cpu_after is None:
        return CellResult(cell, load, counted, None)
    _, waited_s = cpu_after.engine_since(cpu)
    chain_waited_s = cpu_after.chain_waited_s_since(cpu)
    return CellResult(cell, load, counted, cpu_after.foreign_ratio_since(cpu), waited_s, chain_waited_s)


def observation(found: CellResult, *, draft_tokens: int) -> Observation:
    """What the cell's duration is the sum of.

    Args:
        found: the cell.
        draft_tokens: proposed per step and sequence (K); 0: no speculation.
    """
    samples, counted = found.load.samples, found.counted.values
    decode_steps = [_decode_steps(one) for one in samples]
    sequences = len(samples) + sum(decode_steps)
    computed = sum(one.input_tokens - one.cached_tokens for one in samples) + sum(decode_steps) * (
        1 + draft_tokens
    )
    amounts = {
        "fixed_s": float(counted["steps"]),
        "batched_token_s": float(computed),
        "kv_token_s": sum(map(_kv_tokens_read, samples, decode_steps)),
        "request_s": len(samples) / min(found.cell.concurrency, len(samples)),
    }
    if draft_tokens:
        amounts["proposed_token_s"] = float(draft_tokens * sum(decode_steps))
    else:
        amounts["sequence_s"] = float(sequences)
    # An engine that waits for a core does not step; what is left is never nothing.
    seconds = found.load.duration_s - (found.engine_waited_s or 0.0)
    return Observation(max(seconds, found.load.duration_s / 20), amounts)


def _decode_steps(sample: Sample) -> int:
    return sample.output_tokens - 1 if sample.draft_steps is None else sample.draft_steps


def _kv_tokens_read(sample: Sample, decode_steps: int) -> float:
    """Summed over its steps: the whole prompt once, then what there is at each step, on average half-way."""
    return sample.input_tokens + decode_steps * (sample.input_tokens + sample.output_tokens / 2)


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that so large a share of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def spread(values: Sequence[float]) -> Spread:
    """Median and 95th percentile."""
    return Spread(p50=rounded(statistics.median(values)), p95=rounded(percentile(values, 0.95)))


def rounded(value: float, digits: int = 4) -> float:
    """To so many significant digits: more would pretend."""
    return float(f"{value:.{digits}g}")


def grid_point(found: CellResult) -> GridPoint:
    """The cell as the profile keeps it."""
    cell, samples, counted = found.cell, found.load.samples, found.counted.values
    duration_s = found.load.duration_s
    tpots = [one.tpot_s for one in samples if one.tpot_s is not None]
    steps = [one.step_s for one in samples if one.step_s is not None]
    prompt_tokens = sum(one.input_tokens for one in samples)
    length = found.counted.tokens_per_step
    return GridPoint(
        task=cell.task,
        temperature=TEMPERATURE[cell.task],
        concurrency=cell.concurrency,
        input_tokens=rounded(prompt_tokens / len(samples)),
        output_tokens=rounded(statistics.mean(one.output_tokens for one in samples)),
        is_output_fixed=cell.is_output_fixed,
        requests=len(samples),
        duration_s=rounded(duration_s),
        output_tokens_per_s=rounded(sum(one.output_tokens for one in samples) / duration_s),
        requests_per_s=rounded(len(samples) / duration_s),
        ttft_s=spread([one.ttft_s for one in samples]),
        tpot_s=spread(tpots) if tpots else None,
        tokens_per_step=rounded(length) if length is not None else None,
        cached_input_ratio=rounded(sum(one.cached_tokens for one in samples) / prompt_tokens),
        engine_steps=counted["steps"],
        step_s=rounded(statistics.median(steps)) if steps else None,
        engine_waited_ratio=(
            None
            if found.engine_waited_s is None
            else rounded(min(1.0, found.engine_waited_s / duration_s), 2)
        ),
        foreign_cpu_ratio=None if found.foreign_cpu_ratio is None else rounded(found.foreign_cpu_ratio, 2),
    )


def miscounted(found: CellResult) -> Iterator[str]:
    """Where the engine's counters and its answers disagree: then the server was not ours alone."""
    counted = found.counted.values
    for name, total in (
        ("prompt_tokens", sum(one.input_tokens for one in found.load.samples)),
        ("generation_tokens", sum(one.output_tokens for one in found.load.samples)),
    ):
        if counted[name] != total:
            yield f"{name}: the answers say {total}, the engine counted {counted[name]}"
