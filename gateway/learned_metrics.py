"""What do the metrics say of what was learned, and of how far predictions are off?"""

from __future__ import annotations

import math

from gateway.economist import Economist
from gateway.inference import TaskType
from gateway.routing.learning import EVERY_TASK, Sums
from gateway.routing.learning_store import LearnedRow
from gateway.telemetry import Telemetry

_Values = dict[tuple[str, ...], float]


def watch_learned(telemetry: Telemetry, economist: Economist) -> None:
    """Show it; labels are pools and task types, never tenants."""

    def rows() -> list[LearnedRow]:
        return [row for key, row in economist.rows().items() if not key.tenant_id]

    def tokens_per_step() -> _Values:
        return {
            (row.key.pool, row.key.task): 1 + row.evidence.accepted.slow.ratio
            for row in rows()
            if row.key.task != EVERY_TASK and row.evidence.accepted.slow.weight > 0
        }

    def gates() -> _Values:
        found: _Values = {}
        for row in rows():
            if row.key.task != EVERY_TASK and row.evidence.accepted.slow.weight > 0:
                gates = economist.gates(row.key.pool, TaskType(row.key.task))
                if gates:
                    found[row.key.pool, row.key.task] = min(gate.middle for gate in gates.values())
        return found

    def errors() -> _Values:
        found: _Values = {}
        for row in rows():
            if row.key.task == EVERY_TASK:
                measures = (("step", row.evidence.step_log.slow), ("first_token", row.evidence.ttft_log.slow))
                found |= {(row.key.pool, what): _off(sums) for what, sums in measures if sums.weight > 0}
        return found

    telemetry.watch_by_labels(
        "tollgate_learned_tokens_per_step",
        "Tokens that a verification step yields, the bonus token included",
        labels=("pool", "task"),
        read=tokens_per_step,
    )
    telemetry.watch_by_labels(
        "tollgate_speculation_gate_requests",
        "Requests per replica up to which speculation pays, by measurement; +Inf: as many as it takes",
        labels=("pool", "task"),
        read=gates,
    )
    telemetry.watch_by_labels(
        "tollgate_prediction_error_ratio",
        "How far single requests are off the corrected prediction: 0.2 is 20 %, one standard deviation",
        labels=("pool", "what"),
        read=errors,
    )
    telemetry.count_each(
        "tollgate_routed",
        "Calls by what put their first target first",
        label="why",
        read=lambda: economist.turned,
    )


def _off(sums: Sums) -> float:
    return math.expm1(sums.deviation)
