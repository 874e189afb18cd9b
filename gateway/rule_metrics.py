"""Which figures do a policy's rules give?"""

from __future__ import annotations

from gateway.pipeline import Pipeline
from gateway.telemetry import Telemetry


def watch_rules(telemetry: Telemetry, pipeline: Pipeline) -> None:
    """Show how often rules found a budget low, and what was refused before any attempt."""
    pipeline.refusals.watch(telemetry)
    telemetry.count_by_labels(
        "tollgate_budget_low",
        "Calls whose rule found a budget low, by what it did",
        labels=("rule", "then"),
        read=lambda: pipeline.watch.seen,
    )
