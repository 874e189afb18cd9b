"""Which task has a system prompt turned out to be for?

A product's system prompt says what all its requests are. Once so many fresh classifications under one key
and one system prompt agree without exception, their task is taken for granted, and one request in so many is
still classified afresh to see whether that holds: the first that disagrees, or is unsure, and everything
starts again. Prompts are kept as a 64-bit hash that differs in every process; the least recently used pairs
are forgotten. Not shared between processes: each learns by itself.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from gateway.inference import Task, TaskSource, TaskType

AGREEING: Final = 20
"""Fresh classifications that must agree before their task is remembered."""
CHECK_EVERY: Final = 20
"""Of the requests that a memory could answer, one in so many is classified afresh."""
SYSTEM_CHARS_MIN: Final = 100
"""Shorter system prompts ("You are a helpful assistant.") are for every task."""
PAIRS_MAX: Final = 10_000

Key = tuple[str, int, int, bool]


def key_of(key_id: str, system: str, *, has_tools: bool) -> Key | None:
    """Under what a request's task is remembered; None: its system prompt is empty or too short."""
    if len(system) < SYSTEM_CHARS_MIN:
        return None
    return (key_id, len(system), hash(system), has_tools)


class _Trail:
    """What the fresh classifications of one pair said."""

    __slots__ = ("agreed", "confidence_sum", "is_classified", "known", "since_check", "task")

    def __init__(self, task: Task) -> None:
        self.task: TaskType = task.type
        self.agreed = 1
        self.confidence_sum = task.confidence
        self.is_classified = task.source is TaskSource.CLASSIFIER
        self.since_check = 0
        self.known: Task | None = None


class TaskMemory:
    """Remembers tasks by pair of key and system prompt."""

    def __init__(self, pairs_max: int = PAIRS_MAX) -> None:
        self._trails: OrderedDict[Key, _Trail] = OrderedDict()
        self._pairs_max = pairs_max

    def __len__(self) -> int:
        return len(self._trails)

    def forget(self) -> None:
        """Everything."""
        self._trails.clear()

    def recall(self, key: Key) -> Task | None:
        """What is known of this pair; None: classify afresh, and let `learn` know."""
        trail = self._trails.get(key)
        if trail is None or trail.known is None:
            return None
        trail.since_check += 1
        if trail.since_check >= CHECK_EVERY:
            trail.since_check = 0
            return None
        self._trails.move_to_end(key)
        return trail.known

    def learn(self, key: Key, fresh: Task) -> None:
        """A fresh classification; one from `TaskSource.DEFAULT` says that nothing was recognised."""
        if fresh.source is TaskSource.DEFAULT:
            self._trails.pop(key, None)
            return
        trail = self._trails.get(key)
        if trail is None or trail.task is not fresh.type:
            self._trails[key] = _Trail(fresh)
            self._trails.move_to_end(key)
            if len(self._trails) > self._pairs_max:
                self._trails.popitem(last=False)
            return
        self._trails.move_to_end(key)
        if trail.known is not None:
            return
        trail.agreed += 1
        trail.confidence_sum += fresh.confidence
        trail.is_classified = trail.is_classified or fresh.source is TaskSource.CLASSIFIER
        if trail.agreed >= AGREEING:
            trail.known = Task(
                type=trail.task,
                source=TaskSource.CLASSIFIER if trail.is_classified else TaskSource.SIGNAL,
                confidence=round(trail.confidence_sum / trail.agreed, 2),
            )
