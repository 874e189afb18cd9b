"""Which requests come to the fleet, when, how long, and of which task?

Times and lengths are those of public traces (tests/load/traces, its README has sources and licences):
Azure's of conversations, the same with that of code completion mixed in as it came in the same hour, and
BurstGPT's. A draw takes consecutive requests from a random place of the trace and keeps its bursts; the
rate is scaled. BurstGPT's slice is short: a draw strings blocks of it together (block bootstrap).

No trace says what was asked. Tasks are drawn from the labels of 4,557 prompts by rank of length: an input
at the 90th percentile of the trace gets a task of prompts about the 90th percentile of theirs
(`prompt_tasks.json`: counts by twentieth and task, no text). Azure's code requests are `code`. How long
an answer is comes from the trace alone: within a trace it does not depend on the task. What the gateway
takes a task for is drawn from the confusions of its classifier as served
(`gateway/routing/classifier/figures.json`).
"""

from __future__ import annotations

import bisect
import csv
import gzip
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Final

from gateway.inference import TaskType
from tests.load.measured import ROOT

TRACES: Final = ROOT / "tests" / "load" / "traces"
FIGURES: Final = ROOT / "gateway" / "routing" / "classifier" / "figures.json"
TRAFFICS: Final = ("azure-conversation", "azure-mixed", "burstgpt")
BLOCK: Final = 25
"""Consecutive requests of BurstGPT that stay together."""


@dataclass(frozen=True, slots=True)
class Row:
    """One request of a trace."""

    at_s: float
    input_tokens: int
    output_tokens: int
    is_code: bool = False


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request to the fleet."""

    at_s: float
    input_tokens: int
    output_tokens: int
    task: TaskType
    """What it is."""
    seen_as: TaskType
    """What the gateway takes it for."""


@cache
def rows_of(traffic: str) -> tuple[Row, ...]:
    """All requests of a trace that were answered, in order of time.

    Raises:
        ValueError: there is no such traffic.
    """
    if traffic == "burstgpt":
        return tuple(_burstgpt())
    conversation = _azure("azure_llm_2023_conv_first_half.csv.gz")
    if traffic == "azure-conversation":
        return tuple(conversation)
    if traffic == "azure-mixed":
        code = _azure("azure_llm_2023_code_first_half.csv.gz", is_code=True)
        return tuple(sorted([*conversation, *code], key=lambda row: row.at_s))
    raise ValueError(f"no traffic '{traffic}'; known: {', '.join(TRAFFICS)}")


def _azure(name: str, *, is_code: bool = False) -> list[Row]:
    with gzip.open(TRACES / name, "rt") as lines:
        return [
            Row(
                datetime.fromisoformat(f"{line['TIMESTAMP'][:26]}+00:00").timestamp(),
                int(line["ContextTokens"]),
                max(1, int(line["GeneratedTokens"])),
                is_code,
            )
            for line in csv.DictReader(lines)
        ]


def _burstgpt() -> list[Row]:
    with (TRACES / "burstgpt1_slice.csv").open() as lines:
        return [
            Row(float(line["Timestamp"]), int(line["Request tokens"]), int(line["Response tokens"]))
            for line in csv.DictReader(lines)
            if int(line["Response tokens"]) > 0  # what failed cost nothing
        ]


@dataclass(frozen=True, slots=True)
class Means:
    """Of a trace's requests, tokens."""

    input_tokens: float
    output_tokens: float


def means_of(rows: Sequence[Row]) -> Means:
    """What an operator knows of the traffic."""
    return Means(
        sum(row.input_tokens for row in rows) / len(rows),
        sum(row.output_tokens for row in rows) / len(rows),
    )


@cache
def _labels() -> tuple[tuple[TaskType, ...], tuple[tuple[int, ...], ...]]:
    found = json.loads((TRACES / "prompt_tasks.json").read_text())
    return tuple(map(TaskType, found["tasks"])), tuple(map(tuple, found["by_length"]))


@cache
def _confusions() -> dict[TaskType, tuple[int, ...]]:
    """How often each task was taken for which, in the order of `TaskType`."""
    matrix = json.loads(FIGURES.read_text())["whole"]["confusion"]
    return {task: tuple(row) for task, row in zip(TaskType, matrix, strict=True)}


@cache
def _sorted_inputs(traffic: str) -> tuple[int, ...]:
    return tuple(sorted(row.input_tokens for row in rows_of(traffic)))


def draw(traffic: str, count: int, *, rate: float, seed: int, is_confused: bool = True) -> list[Arrival]:
    """So many requests at so many a second on average; the same seed gives the same requests at any rate.

    Args:
        traffic: one of `TRAFFICS`.
        count: of requests.
        rate: requests per second.
        seed: of what is drawn.
        is_confused: the gateway's classifier errs as it is known to.
    """
    chance = random.Random(f"{traffic} {seed}")
    rows = _some(rows_of(traffic), count, chance, strings_blocks=traffic == "burstgpt")
    span_s = rows[-1].at_s - rows[0].at_s
    scale = (count - 1) / rate / span_s
    inputs = _sorted_inputs(traffic)
    tasks, counts = _labels()
    arrivals = []
    for row in rows:
        place = bisect.bisect_left(inputs, row.input_tokens) / len(inputs)
        task = chance.choices(tasks, counts[int(place * len(counts))])[0]
        if row.is_code:
            task = TaskType.CODE
        seen_as = chance.choices(tuple(TaskType), _confusions()[task])[0]
        arrivals.append(
            Arrival(
                (row.at_s - rows[0].at_s) * scale,
                row.input_tokens,
                row.output_tokens,
                task,
                seen_as if is_confused else task,
            )
        )
    return arrivals


def _some(rows: Sequence[Row], count: int, chance: random.Random, *, strings_blocks: bool) -> list[Row]:
    if not strings_blocks and count <= len(rows):
        first = chance.randrange(len(rows) - count + 1)
        return list(rows[first : first + count])
    return list(_strung(rows, count, chance))


def _strung(rows: Sequence[Row], count: int, chance: random.Random) -> Iterable[Row]:
    """Blocks one behind the other, with the pauses that they had."""
    at_s, made = 0.0, 0
    while made < count:
        first = chance.randrange(1, len(rows) - BLOCK + 1)
        for place in range(first, min(first + BLOCK, first + count - made)):
            row = rows[place]
            at_s += row.at_s - rows[place - 1].at_s
            made += 1
            yield Row(at_s, row.input_tokens, row.output_tokens, row.is_code)


def shares(arrivals: Iterable[Arrival]) -> dict[str, float]:
    """How much of the output is which task's."""
    tokens: dict[str, int] = {}
    for one in arrivals:
        tokens[one.task.value] = tokens.get(one.task.value, 0) + one.output_tokens
    total = sum(tokens.values())
    return {task: found / total for task, found in sorted(tokens.items(), key=lambda each: -each[1])}
