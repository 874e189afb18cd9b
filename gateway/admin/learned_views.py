"""How is what was learned shown, in the API and on the command line alike?"""

from __future__ import annotations

import math
from datetime import UTC, datetime

from pydantic import BaseModel, Field

from gateway.economist import Economist
from gateway.inference import TaskType
from gateway.routing.economics import Gate
from gateway.routing.learning import EVERY_TASK, Sums
from gateway.routing.learning_store import LearnedRow


class GateView(BaseModel):
    """Up to how many requests per replica speculation pays; null: as many as the replica takes."""

    against: str = Field(description="a pool that does not speculate")
    requests: float | None
    requests_least: float | None = Field(description="if acceptance is as low as it may be, 95 of 100")
    requests_most: float | None


class LearnedView(BaseModel):
    """What is known of one pool and task."""

    pool: str
    task: str | None = Field(description="null: of the pool, whatever the task")
    tenant_id: str | None = Field(description="null: of everybody's requests")
    lessons: int = Field(description="answered attempts that were ever folded in")
    weight: float = Field(description="requests that the figures rest on, old ones counted less")
    folded_at: datetime
    tokens_per_step: float | None = Field(description="believed: measured, drawn to what was thought before")
    tokens_per_step_error: float | None = Field(description="half of its 95 % interval")
    step_ratio: float | None = Field(description="a step's time over the model's")
    step_error_ratio: float | None = Field(description="how far single steps are off, one standard deviation")
    first_token_ratio: float | None
    first_token_error_ratio: float | None
    queue_ms: float | None
    first_token_ms: float | None
    token_ms: float | None
    output_tokens: float | None
    cached_input_ratio: float | None
    usd_per_million_tokens: float | None = Field(
        description="what supply costs for a lone request's output, by what is believed"
    )
    gates: list[GateView]


class LearnedListView(BaseModel):
    """Everything that is known, newest figures of all processes together."""

    data: list[LearnedView]


def learned_view(economist: Economist, row: LearnedRow) -> LearnedView:
    """One row."""
    key = row.key
    evidence = economist.evidence(*key)
    is_whole = key.task == EVERY_TASK
    outlook = None if is_whole else economist.outlook(key.pool, TaskType(key.task), key.tenant_id)
    speculates = outlook is not None and outlook.is_speculative
    belief = None if is_whole else economist.accepted(key.pool, TaskType(key.task))
    gates = {} if is_whole or key.tenant_id else economist.gates(key.pool, TaskType(key.task))
    step_s = None if outlook is None else (outlook.fixed_s + outlook.sequence_s) / outlook.tokens_per_step
    return LearnedView(
        pool=key.pool,
        task=key.task or None,
        tenant_id=key.tenant_id or None,
        lessons=row.lessons,
        weight=round(evidence.output_tokens.weight, 1),
        folded_at=datetime.fromtimestamp(row.folded_at_ms / 1000, tz=UTC),
        tokens_per_step=round(1 + belief.mean, 3) if speculates and belief else None,
        tokens_per_step_error=round(1.96 * belief.deviation, 3) if speculates and belief else None,
        step_ratio=_factor(evidence.step_log.slow),
        step_error_ratio=_error(evidence.step_log.slow),
        first_token_ratio=_factor(evidence.ttft_log.slow),
        first_token_error_ratio=_error(evidence.ttft_log.slow),
        queue_ms=_mean(evidence.queue_ms),
        first_token_ms=_mean(evidence.ttft_ms),
        token_ms=_mean(evidence.tpot_ms),
        output_tokens=_mean(evidence.output_tokens),
        cached_input_ratio=_mean(evidence.cached_ratio),
        usd_per_million_tokens=None
        if outlook is None or step_s is None
        else round(outlook.usd_nanos_per_s * step_s / 1000, 4),
        gates=[_gate_view(name, gate) for name, gate in gates.items()],
    )


def _gate_view(against: str, gate: Gate) -> GateView:
    return GateView(
        against=against,
        requests=_finite(gate.middle),
        requests_least=_finite(gate.least),
        requests_most=_finite(gate.most),
    )


def _finite(value: float) -> float | None:
    return round(value, 1) if math.isfinite(value) else None


def _mean(sums: Sums) -> float | None:
    return round(sums.ratio, 3) if sums.weight > 0 else None


def _factor(sums: Sums) -> float | None:
    return round(math.exp(sums.ratio), 3) if sums.weight > 0 else None


def _error(sums: Sums) -> float | None:
    return round(math.expm1(sums.deviation), 3) if sums.weight > 0 else None
