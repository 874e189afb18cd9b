"""What is known of the pools, put together for people: facts, acceptance by task, curves.

From memory and from what `books` read; no database here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic

from backends.pool import PoolSnapshot, ReplicaState
from backends.profile import GridPoint, Profile
from gateway.console.charts import Chart, Series
from gateway.dependencies import Services
from gateway.economist import Economist
from gateway.inference import TaskType
from gateway.ledger.pool_history import PoolLately
from gateway.pool_concerns import PoolFacts, TaskAcceptance
from gateway.routing.learning import EVERY_TASK, EVERY_TENANT

HEAT_STEPS = 7
"""Shades of the heat map, from 0 (nothing of a draft is accepted) on."""
_S_PER_HOUR = 3600
_MS = 1000.0
_SHORT_TOKENS = 100
_NOTHING = PoolLately(0, 0)


@dataclass(frozen=True, slots=True)
class HeatCell:
    """One pool and task."""

    tokens_per_step: float | None
    """None: the pool does not speculate."""
    error: float | None
    """Half of its 95 % interval."""
    shade: int
    """0 to HEAT_STEPS - 1, by the share of the drafts that is accepted."""
    accepted_ratio: float | None
    lessons: int
    """Requests it was learned from; 0: only what was thought before."""


@dataclass(frozen=True, slots=True)
class LearnedLine:
    """What was learned of a pool and task, against what was predicted."""

    task: str
    lessons: int
    step_ratio: float | None
    """A step's time over the model's."""
    first_token_ratio: float | None
    queue_ms: float | None
    first_token_ms: float | None
    token_ms: float | None
    output_tokens: float | None
    cached_input_ratio: float | None
    usd_nanos_per_million: int | None
    """What supply costs for a lone request's output, by what is believed."""


def facts_of(services: Services, pool: PoolSnapshot, lately: Mapping[str, PoolLately]) -> PoolFacts:
    """What concerns are looked for in."""
    economist, name = services.pipeline.routing.economist, pool.spec.name
    evidence = economist.evidence(name, EVERY_TASK).step_log
    return PoolFacts(
        snapshot=pool,
        stories={one.replica: services.registry.story(one.replica) for one in pool.replicas},
        now_ms=services.clock.epoch_ms(),
        monotonic_s=monotonic(),
        waiting_for_wake=services.waker.waiting[name],
        step_ratio=math.exp(evidence.slow.ratio) if evidence.slow.weight > 0 else None,
        step_weight=evidence.slow.weight,
        has_profile=economist.priors.profile(name) is not None,
        acceptance=_acceptance(economist, pool),
        lately=lately.get(name, _NOTHING),
    )


def _acceptance(economist: Economist, pool: PoolSnapshot) -> list[TaskAcceptance]:
    if pool.spec.speculation is None:
        return []
    found = []
    for task in TaskType:
        sums = economist.evidence(pool.spec.name, task).accepted.slow
        usual = 1 + economist.priors.accepted(pool.spec, task).mean
        found.append(
            TaskAcceptance(task.value, 1 + sums.ratio if sums.weight > 0 else usual, usual, sums.weight)
        )
    return found


def heat_map(economist: Economist, pools: Sequence[PoolSnapshot]) -> list[tuple[str, list[HeatCell]]]:
    """Acceptance by task (rows) and pool (columns)."""
    return [(task.value, [_cell(economist, pool, task) for pool in pools]) for task in TaskType]


def _cell(economist: Economist, pool: PoolSnapshot, task: TaskType) -> HeatCell:
    spec = pool.spec
    row = economist.rows().get((spec.name, task.value, EVERY_TENANT))  # type: ignore[call-overload]
    lessons = 0 if row is None else row.lessons
    if spec.speculation is None:
        return HeatCell(None, None, 0, None, lessons)
    belief = economist.accepted(spec.name, task)
    ratio = min(1.0, max(0.0, belief.mean / spec.speculation.num_speculative_tokens))
    shade = min(HEAT_STEPS - 1, int(ratio * HEAT_STEPS))
    return HeatCell(1 + belief.mean, 1.96 * belief.deviation, shade, ratio, lessons)


def learned_lines(economist: Economist, pool: str) -> list[LearnedLine]:
    """What was learned of a pool, task by task, its whole first."""
    found = []
    for key, row in sorted(economist.rows().items()):
        if key.pool != pool or key.tenant_id:
            continue
        evidence = economist.evidence(*key)
        cost = None
        if key.task != EVERY_TASK:
            outlook = economist.outlook(pool, TaskType(key.task))
            step_s = (outlook.fixed_s + outlook.sequence_s) / outlook.tokens_per_step
            cost = round(outlook.usd_nanos_per_s * step_s * 1_000_000)
        found.append(
            LearnedLine(
                key.task or "all tasks",
                row.lessons,
                math.exp(evidence.step_log.slow.ratio) if evidence.step_log.slow.weight > 0 else None,
                math.exp(evidence.ttft_log.slow.ratio) if evidence.ttft_log.slow.weight > 0 else None,
                evidence.queue_ms.ratio if evidence.queue_ms.weight > 0 else None,
                evidence.ttft_ms.ratio if evidence.ttft_ms.weight > 0 else None,
                evidence.tpot_ms.ratio if evidence.tpot_ms.weight > 0 else None,
                evidence.output_tokens.ratio if evidence.output_tokens.weight > 0 else None,
                evidence.cached_ratio.ratio if evidence.cached_ratio.weight > 0 else None,
                cost,
            )
        )
    return found


def usd_nanos_per_million_now(services: Services, pool: PoolSnapshot) -> int | None:
    """What a million output tokens cost at the pace of the last minute; None: nothing was written."""
    per_s = 0.0
    serving = 0
    for one in pool.replicas:
        if one.state is not ReplicaState.READY:
            continue
        serving += 1
        recent = services.registry.story(one.replica).recent
        per_s += 0.0 if recent is None else recent.output_tokens_per_s
    if not serving or per_s <= 0:
        return None
    nanos_per_hour = float(pool.spec.hardware.usd_per_hour) * 1e9 * serving
    return round(nanos_per_hour / (per_s * _S_PER_HOUR) * 1_000_000)


# --------------------------------------------------------------------------------------------------- curves
def curves(profile: Profile) -> list[Chart]:
    """What the bench measured, by requests at a time."""
    series: dict[str, dict[int, GridPoint]] = {}
    for point in profile.grid:
        if point.tpot_s is not None:
            series.setdefault(_kind(point), {})[point.concurrency] = point
    if not series:
        return []
    levels = sorted({level for points in series.values() for level in points})
    said = f"{profile.provenance.kind} {profile.provenance.date} on {profile.provenance.hardware}"

    def chart(name: str, title: str, *, unit: str, value: str) -> Chart:
        return Chart(
            id=name,
            title=f"{title}; {said}",
            description=f"Lines of {title.lower()} by requests at a time, one for each kind of request.",
            across="Requests at a time",
            labels=[str(level) for level in levels],
            series=[
                Series(kind, [_value(points.get(level), value) for level in levels], kind="line")
                for kind, points in series.items()
            ],
            unit="tokens/s" if unit == "tokens/s" else "ms",
            is_tall=True,  # its legend takes half of a low one
        )

    return [
        chart("throughput", "Output tokens per second", unit="tokens/s", value="throughput"),
        chart("ttft", "Time to the first token, ms, median", unit="ms", value="ttft"),
        chart("tpot", "Time per output token, ms, median", unit="ms", value="tpot"),
        chart("step", "Time of a step while decoding, ms, median", unit="ms", value="step"),
    ]


def _kind(point: GridPoint) -> str:
    size = (
        "short input"
        if point.input_tokens < _SHORT_TOKENS
        else f"about {round(point.input_tokens, -2):.0f} in"
    )
    out = f"{point.output_tokens:.0f} out" if point.is_output_fixed else "whole answers"
    return f"{point.task}, {size}, {out}"


def _value(point: GridPoint | None, value: str) -> float | None:
    if point is None:
        return None
    found = {
        "throughput": point.output_tokens_per_s,
        "ttft": point.ttft_s.p50 * _MS,
        "tpot": None if point.tpot_s is None else point.tpot_s.p50 * _MS,
        "step": None if point.step_s is None else point.step_s * _MS,
    }[value]
    return None if found is None else round(found, 3)
