"""What does routing want to be told of attempts that the ledger has just booked?

The ledger hands over its records, routing gets its own form (`learning.Lesson`); neither knows the other.
Only what an engine answered a tenant teaches anything (heartbeats are no work), and of a batch only so much
as tells: the sums decay anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from gateway.inference import AttemptState, Payer, UsageSource
from gateway.ledger.records import Ended
from gateway.routing.learning import Lesson
from gateway.routing.learning_store import LearnedKey, fold_in

LESSONS_MAX: Final = 24
"""Of one pool and task in one batch; evenly taken from more."""
_HIT: Final = "hit"


class Lessons:
    """Folds what a process's own attempts teach into what all processes know."""

    def __init__(self, pools: frozenset[str]) -> None:
        """Only remembers.

        Args:
            pools: whose attempts teach; what is outside the company speaks of itself.
        """
        self._pools = pools
        self._made: set[LearnedKey] = set()

    async def learn(self, connection: Any, fresh: Sequence[Ended], now_ms: int) -> None:
        """Fold in attempts that are booked in this transaction (`ledger.writers.Learn`)."""
        lessons = lessons_of(fresh, self._pools)
        if lessons:
            await fold_in(connection, lessons, now_ms=now_ms, made=self._made)


def lessons_of(fresh: Sequence[Ended], pools: frozenset[str]) -> list[Lesson]:
    """What these attempts teach, in their order."""
    groups: dict[tuple[str, str], list[Ended]] = {}
    for ended in fresh:
        start, end = ended
        if (
            end.state is AttemptState.ANSWERED
            and end.payer is Payer.TENANT
            and end.usage_source is UsageSource.MEASURED
            and start.cache != _HIT
            and start.pool in pools
        ):
            groups.setdefault((start.pool, start.task), []).append(ended)
    return [_lesson(each) for group in groups.values() for each in group[:: -(-len(group) // LESSONS_MAX)]]


def _lesson(ended: Ended) -> Lesson:
    start, end = ended
    read = end.input_tokens + end.cached_input_tokens
    ttft_ms: float | None = end.ttft_ms
    if ttft_ms is None and end.total_ms is not None and end.generation_ms is not None:
        ttft_ms = max(0.0, end.total_ms - end.generation_ms)  # a whole answer: when generation began
    return Lesson(
        start.pool,
        start.task,
        start.tenant_id,
        end.output_tokens + end.reasoning_tokens,
        end.cached_input_tokens / read if read else None,
        end.draft_steps,
        end.accepted_tokens,
        end.queue_ms,
        ttft_ms,
        _step_ms(ended),
        start.modelled_ttft_ms,
        start.modelled_step_ms,
    )


def _step_ms(ended: Ended) -> float | None:
    """Of one step of the engine while it generated, milliseconds; the first token is none of them."""
    end = ended.end
    if end.generation_ms is None:
        return None
    steps = end.draft_steps or end.output_tokens + end.reasoning_tokens - 1
    return end.generation_ms / steps if steps > 0 else None
