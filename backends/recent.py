"""How did a replica do in the last minute, by the counters of its engine?

vLLM counts since its process began; what says how it is doing now is the difference of two looks. A counter
that went backwards is another process: then nothing is known until there are two looks at that one. Pure.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from backends.pool import ReplicaLoad

WINDOW_S = 60.0
_SPACING_S = 5.0
"""Looks that are kept lie so far apart at least."""


@dataclass(frozen=True, slots=True)
class RecentLoad:
    """Differences over some seconds; None where there was nothing to count."""

    over_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float
    prefix_hit_ratio: float | None
    """Share of the input tokens that the prefix cache had."""
    acceptance_length: float | None
    """Tokens per step of the target, the bonus token included; None also where nothing speculates."""
    acceptance_ratio: float | None
    """Share of the proposed tokens that were accepted."""


class LoadHistory:
    """The looks of the last minute at one replica."""

    __slots__ = ("_latest", "_looks")

    def __init__(self) -> None:
        self._looks: deque[ReplicaLoad] = deque(maxlen=round(WINDOW_S / _SPACING_S) + 2)
        self._latest: ReplicaLoad | None = None

    def saw(self, load: ReplicaLoad) -> None:
        """What its metrics say now."""
        if self._latest is not None and _is_another_process(self._latest, load):
            self._looks.clear()
        self._latest = load
        if not self._looks or load.scraped_at_s - self._looks[-1].scraped_at_s >= _SPACING_S:
            self._looks.append(load)

    def recent(self) -> RecentLoad | None:
        """Over the last minute, or as much of it as is known; None without two looks."""
        now = self._latest
        if now is None:
            return None
        before = next((each for each in self._looks if now.scraped_at_s - each.scraped_at_s <= WINDOW_S), now)
        over_s = now.scraped_at_s - before.scraped_at_s
        if over_s <= 0:
            return None
        queried = now.prefix_cache_query_tokens_total - before.prefix_cache_query_tokens_total
        hit = now.prefix_cache_hit_tokens_total - before.prefix_cache_hit_tokens_total
        steps = (now.draft_steps_total or 0) - (before.draft_steps_total or 0)
        drafted = (now.draft_tokens_total or 0) - (before.draft_tokens_total or 0)
        accepted = (now.accepted_tokens_total or 0) - (before.accepted_tokens_total or 0)
        return RecentLoad(
            over_s=over_s,
            input_tokens_per_s=(now.prompt_tokens_total - before.prompt_tokens_total) / over_s,
            output_tokens_per_s=(now.generation_tokens_total - before.generation_tokens_total) / over_s,
            prefix_hit_ratio=hit / queried if queried > 0 else None,
            acceptance_length=1 + accepted / steps if steps > 0 else None,
            acceptance_ratio=accepted / drafted if drafted > 0 else None,
        )


def _is_another_process(before: ReplicaLoad, now: ReplicaLoad) -> bool:
    return (
        now.prompt_tokens_total < before.prompt_tokens_total
        or now.generation_tokens_total < before.generation_tokens_total
        or (now.draft_steps_total or 0) < (before.draft_steps_total or 0)
    )
