"""Does an engine that answers /health still work?

vLLM's /health reads a flag (0.32, `async_llm.py`): an engine that hangs answers it for hours. Two signs tell
a hung engine from a slow one, and both are needed before it is taken out:

1. Nothing moves. Tokens read, tokens generated, engine steps, requests running and the fill of the KV cache
   come from the engine itself; its web server only repeats the last of them. A busy replica (requests run, or
   some of ours are under way there) on which none of these changed for `stall_s` is doubted. An idle one is
   doubted after `idle_probe_s`, once a minute by default, because nothing of it can move.
2. A doubted replica does not generate one token within `probe_timeout_s`, and still nothing has moved.

So a healthy busy replica is never asked for anything: what it serves is the proof. One that is slow in a long
prefill is safe: with chunked prefill each step allocates KV blocks, which moves the fill of the cache though
no token comes out (`scheduler.py`, allocate_slots per chunk); without it a prefill is one step, and a single
step would have to last `stall_s` + `probe_timeout_s` (50 s by default) to be taken for a hang: for such an
engine raise `stall_s`. How many wait is no sign of life: a queue grows before a hung engine too.

Where /metrics cannot be read nothing is known to move; then it takes three probes in a row.

Pure: times are seconds of time.monotonic() and come from outside.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from backends.pool import ReplicaLoad

BLIND_PROBES: Final = 3
"""Silent probes in a row that take out a replica of which nothing else is known."""


@dataclass(frozen=True, slots=True)
class HealthRule:
    """How closely replicas are watched; seconds."""

    poll_interval_s: float = 1.0
    """Between two looks at the same replica."""
    stall_s: float = 20.0
    idle_probe_s: float = 60.0
    """Drawn up to half as long again: whoever is first shows all other gateways that the engine moves."""
    probe_timeout_s: float = 30.0


class Liveness:
    """When did one engine last show a sign of life?"""

    __slots__ = ("_idle_for_s", "_rule", "_seen", "_silent_probes", "is_blind", "moved_at_s")

    def __init__(self, rule: HealthRule, now_s: float) -> None:
        self._rule = rule
        self._seen: tuple[float | None, ...] | None = None
        self._silent_probes = 0
        self._idle_for_s = 0.0
        self.is_blind = True
        """Its metrics cannot be read."""
        self.moved_at_s = now_s
        self.alive(now_s)

    def alive(self, now_s: float) -> None:
        """It has generated a token for us."""
        self.moved_at_s = now_s
        self._silent_probes = 0
        self._idle_for_s = self._rule.idle_probe_s * random.uniform(1.0, 1.5)  # noqa: S311 - spreads

    def saw(self, load: ReplicaLoad | None, now_s: float) -> None:
        """What its metrics say; None: they cannot be read."""
        self.is_blind = load is None
        if load is None:
            return
        seen = (
            load.prompt_tokens_total,
            load.generation_tokens_total,
            load.engine_steps_total,
            load.requests_running,
            load.kv_cache_usage_ratio,
        )
        if seen != self._seen:
            self._seen = seen
            self.alive(now_s)

    def is_doubtful(self, now_s: float, *, is_busy: bool) -> bool:
        """Whether it has to prove that it works."""
        limit_s = self._rule.stall_s if is_busy and not self.is_blind else self._idle_for_s
        return now_s - self.moved_at_s >= limit_s

    def is_dead(self, asked_at_s: float, now_s: float) -> bool:
        """Whether a probe that brought no token proves that it does not work.

        Args:
            asked_at_s: when it was sent.
            now_s: the moment that it was given up, or refused.
        """
        # A probe that is refused at once, by a full queue, says nothing: only long stillness counts.
        if self.moved_at_s >= asked_at_s or now_s - self.moved_at_s < self._rule.stall_s:
            return False
        self._silent_probes += 1
        if self.is_blind and self._silent_probes < BLIND_PROBES:
            self.moved_at_s = now_s  # it gets another interval
            return False
        return True
