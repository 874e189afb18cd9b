"""What does one vLLM engine do from step to step?

Continuous batching as vLLM 0.32's V1 scheduler does it (`v1/core/sched/scheduler.py`): first come, first
served; each step decodes every running sequence and fills what is left of `max_num_batched_tokens` with
prompts, in parts where they are longer; a prompt is admitted when all of it fits into the cache
(`scheduler_reserve_full_isl`); when the cache runs out, the sequence that was admitted last gives up its
room and is computed again later.

Steps in which nobody comes or goes are not simulated one by one: while the same sequences decode, the context
grows by the same amount every step, so the time of n steps is a sum in closed form. With speculation a
sequence draws its number of steps when its first token is out; its context then grows evenly, which is right
in sum and off by a few tokens in between.

In front of the engine a request costs `request_s`, one after the other: HTTP and tokenization share a thread.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable

from backends.simulator.cache import KvCache
from backends.simulator.calibration import Guessing, SimulatedPool
from backends.simulator.requests import Sequence, SimulatedRequest

NEVER_S = math.inf


class NeverFits(ValueError):
    """A request is larger than the whole cache; vLLM would refuse it, or wait for ever."""


class Replica:
    """One engine. `offer` requests in the order of their times, `advance` to let time pass."""

    def __init__(
        self, pool: SimulatedPool, *, seed: int = 0, on_end: Callable[[Sequence], None] | None = None
    ) -> None:
        """An idle replica.

        Args:
            pool: what it is a replica of.
            seed: of what is drawn.
            on_end: called when a sequence has ended; it may offer another one.
        """
        self._pool = pool
        self._draw = random.Random(seed)  # noqa: S311 - a simulation
        self._on_end = on_end
        self._cache = KvCache(
            pool.capacity_tokens,
            block_size=pool.engine.block_size,
            prefix_block_tokens=pool.prefix_block_tokens,
        )
        self.clock_s = 0.0
        """Start of the next step."""
        self.busy_s = 0.0
        self.steps = 0
        self.ended: list[Sequence] = []
        self._front_free_s = 0.0
        self._incoming: deque[Sequence] = deque()
        """In front of the engine."""
        self._waiting: deque[Sequence] = deque()
        self._prefilling: list[Sequence] = []
        self._running: dict[Sequence, None] = {}
        """Admitted, in that order."""
        self._finishes: list[tuple[int, int, Sequence]] = []
        self._numbers = itertools.count()
        self._decoding = 0
        self._growth = 0.0
        """Tokens that the decoding sequences add in a step, together."""
        self._context_tokens = 0.0
        """That they attend to in the next step, together."""
        self._jump: tuple[int, float] | None = None
        """Steps until something changes, and when that is; None: to be computed."""

    @property
    def requests(self) -> int:
        """In front of it, waiting and running."""
        return len(self._incoming) + len(self._waiting) + len(self._running)

    @property
    def requests_running(self) -> int:
        """Admitted: they hold cache, and are computed in every step that has room."""
        return len(self._running)

    @property
    def kv_peak_tokens(self) -> float:
        """The most that sequences held at any time."""
        return self._cache.peak_tokens

    @property
    def kv_held_tokens(self) -> float:
        """That sequences hold now."""
        return self._cache.held_tokens

    @property
    def kv_held_ratio(self) -> float:
        """Share of the cache that sequences hold now."""
        return self._cache.held_tokens / self._cache.capacity_tokens

    def offer(self, request: SimulatedRequest, at_s: float | None = None) -> Sequence:
        """A request comes, not before those that came already.

        Args:
            request: what is asked.
            at_s: when; None: when it says itself.

        Raises:
            NeverFits: the cache is too small for it.
        """
        lookahead = 1 + self._pool.draft_tokens
        needed = request.input_tokens + request.output_tokens + lookahead + self._pool.engine.block_size
        if needed > self._cache.capacity_tokens:
            raise NeverFits(
                f"a request of {request.input_tokens} + {request.output_tokens} tokens does not fit into a "
                f"cache of {self._cache.capacity_tokens}"
            )
        sent_s = request.at_s if at_s is None else at_s
        self._front_free_s = max(sent_s, self._front_free_s) + self._pool.step_time.request_s
        sequence = Sequence(request, sent_s, self._front_free_s)
        self._incoming.append(sequence)
        self._jump = None
        return sequence

    def advance(self, until_s: float = NEVER_S) -> None:
        """Let time pass; every step that starts by then is taken, if no later arrival could change it."""
        while True:
            while self._incoming and self._incoming[0].arrived_s <= self.clock_s:
                self._waiting.append(self._incoming.popleft())
                self._jump = None
            if self._prefilling or (self._waiting and self._has_room()):
                if self.clock_s > until_s:
                    return
                self._mixed_step()
            elif self._decoding:
                if not self._decode(until_s):
                    return
            elif self._incoming and self._incoming[0].arrived_s <= until_s:
                self.clock_s = max(self.clock_s, self._incoming[0].arrived_s)
            else:
                return

    # ------------------------------------------------------------------------------------ many steps at once
    def _decode(self, until_s: float) -> bool:
        """Decode until somebody comes, goes or must make room; False if that is later than `until_s`."""
        if self._jump is None:
            self._jump = self._next_change()
        steps, end_s = self._jump
        if end_s > until_s:
            return False
        self._jump = None
        if steps == 0:
            self._preempt_last()
            return True
        self.busy_s += end_s - self.clock_s
        self.clock_s = end_s
        self._take_steps(steps)
        self._end_those_due()
        return True

    def _next_change(self) -> tuple[int, float]:
        finishes = self._finishes
        while finishes[0][2].finish_step != finishes[0][0]:
            heapq.heappop(finishes)  # preempted since
        steps = finishes[0][0] - self.steps
        free = self._cache.capacity_tokens - self._cache.held_tokens
        if steps * self._growth > free:
            steps = int(free / self._growth)
            if steps == 0:
                return 0, self.clock_s
        end_s = self.clock_s + self._time_of(steps)
        if self._incoming and self._incoming[0].arrived_s < end_s and self._may_admit():
            steps = min(steps, self._steps_until(self._incoming[0].arrived_s))
            end_s = self.clock_s + self._time_of(steps)
        return steps, end_s

    def _time_of(self, steps: int) -> float:
        """So many steps from now, if the same sequences decode in all of them."""
        pool, decoding = self._pool, self._decoding
        first_s = pool.step_s(
            tokens=decoding * (1 + pool.draft_tokens),
            context_tokens=self._context_tokens,
            sequences=decoding,
            proposed=decoding * pool.draft_tokens,
        )
        return steps * first_s + pool.context_token_s * self._growth * (steps * (steps - 1) / 2)

    def _steps_until(self, at_s: float) -> int:
        """The first number of steps, 1 or more, that do not end before this time."""
        wanted_s = at_s - self.clock_s
        square = self._pool.context_token_s * self._growth / 2
        linear = self._time_of(1) - square
        if square > 0:
            root = (math.sqrt(linear * linear + 4 * square * wanted_s) - linear) / (2 * square)
        else:
            root = wanted_s / linear
        steps = max(1, math.ceil(root))
        while self._time_of(steps) < wanted_s:  # what rounding may have cost
            steps += 1
        return steps

    def _take_steps(self, steps: int) -> None:
        self.steps += steps
        self._context_tokens += self._growth * steps
        self._cache.grow(self._growth * steps)

    # --------------------------------------------------------------------------------------- one with prompts
    def _mixed_step(self) -> None:
        """Decode everybody and compute what fits of the prompts."""
        self._jump = None
        is_short = False
        while self._cache.held_tokens + self._growth > self._cache.capacity_tokens:
            self._preempt_last()
            is_short = True
        pool, decoding = self._pool, self._decoding
        budget = pool.engine.max_num_batched_tokens - decoding * (1 + pool.draft_tokens)
        parts: list[tuple[Sequence, int]] = []
        for sequence in self._prefilling:
            budget -= self._plan(sequence, budget, parts)
        # Who had to make room for the others is not let in again by the same step.
        while not is_short and budget > 0 and self._waiting and self._has_room():
            if not self._is_worth_starting(self._waiting[0], budget):
                break
            budget -= self._plan(self._admit(), budget, parts)
        context = self._context_tokens + sum(
            sequence.context_tokens - sequence.prefill_left for sequence, _ in parts
        )
        tokens = decoding * (1 + pool.draft_tokens) + sum(part for _, part in parts)
        took_s = pool.step_s(
            tokens=tokens,
            context_tokens=context,
            sequences=decoding + len(parts),
            proposed=decoding * pool.draft_tokens,
        )
        self.busy_s += took_s
        self.clock_s += took_s
        self._take_steps(1)
        self._end_those_due()
        for sequence, _ in parts:
            if not sequence.prefill_left:
                self._first_token(sequence)

    def _is_worth_starting(self, sequence: Sequence, budget: int) -> bool:
        """Without chunked prefill a prompt waits for a step that has room for all of it."""
        if self._pool.engine.enable_chunked_prefill or sequence.context_tokens <= budget:
            return True
        return not self._running and budget == self._pool.engine.max_num_batched_tokens

    @staticmethod
    def _plan(sequence: Sequence, budget: int, parts: list[tuple[Sequence, int]]) -> int:
        part = min(sequence.prefill_left, budget)
        if part > 0:
            sequence.prefill_left -= part
            parts.append((sequence, part))
        return max(0, part)

    def _may_admit(self) -> bool:
        """Would one that comes now be started, were there room in the cache?"""
        return not self._waiting and len(self._running) < self._pool.sequences_max

    def _has_room(self) -> bool:
        """Can the first that waits be started now?"""
        if len(self._running) >= self._pool.sequences_max:
            return False
        first = self._waiting[0]
        prefix = first.request.prefix
        found = self._cache.found(prefix, first.context_tokens)
        needed = self._cache.room_for(first.context_tokens + 1 + self._pool.draft_tokens, prefix, found)
        return self._cache.held_tokens + self._growth + needed <= self._cache.capacity_tokens

    def _admit(self) -> Sequence:
        sequence = self._waiting.popleft()
        prefix = sequence.request.prefix
        found = self._cache.found(prefix, sequence.context_tokens)
        sequence.held_tokens, sequence.own_blocks = self._cache.admit(
            sequence.context_tokens + 1 + self._pool.draft_tokens, prefix, found
        )
        cached = found * self._pool.prefix_block_tokens
        if sequence.scheduled_s < 0:
            cached = max(cached, min(sequence.request.cached_tokens, sequence.context_tokens - 1))
        sequence.prefill_left = sequence.context_tokens - cached
        if sequence.scheduled_s < 0:
            sequence.scheduled_s = self.clock_s
            sequence.cached_tokens = cached
        self._running[sequence] = None
        self._prefilling.append(sequence)
        return sequence

    # ------------------------------------------------------------------------------------- comings and goings
    def _first_token(self, sequence: Sequence) -> None:
        """Its prompt is computed, and with that one token is out; now it decodes, or has ended."""
        self._prefilling.remove(sequence)
        if sequence.first_token_s < 0:
            sequence.first_token_s = self.clock_s
            left = sequence.request.output_tokens - 1
            guessing = self._guessing_of(sequence)
            sequence.steps_left = self._steps_of(sequence, left, guessing)
            if guessing:
                sequence.draft_steps = sequence.steps_left
                sequence.accepted_tokens = left - sequence.steps_left
            sequence.growth = left / sequence.steps_left if sequence.steps_left else 0.0
        else:
            sequence.steps_left -= 1
        if not sequence.steps_left:
            self._end(sequence, held_tokens=sequence.held_tokens)
            return
        sequence.admitted_at = self.steps
        sequence.finish_step = self.steps + sequence.steps_left
        heapq.heappush(self._finishes, (sequence.finish_step, next(self._numbers), sequence))
        self._decoding += 1
        self._growth += sequence.growth
        self._context_tokens += sequence.context_tokens + 1

    def _steps_of(self, sequence: Sequence, left: int, guessing: Guessing | None) -> int:
        """Steps that so many tokens take."""
        known = sequence.request.decode_steps
        if guessing is None:
            return left
        if known is None:
            return guessing.steps(left, self._draw)
        return min(left, max(-(-left // (1 + self._pool.draft_tokens)), known))

    def _guessing_of(self, sequence: Sequence) -> Guessing | None:
        known = self._pool.guessing
        if not self._pool.draft_tokens:
            return None
        return known.get(sequence.request.task) or known[""]

    def _end_those_due(self) -> None:
        finishes = self._finishes
        while finishes and finishes[0][0] <= self.steps:
            finish_step, _, sequence = heapq.heappop(finishes)
            if sequence.finish_step == finish_step:
                self._end(sequence, held_tokens=self._leave(sequence))

    def _leave(self, sequence: Sequence) -> float:
        """It decodes no more; what it holds by now, beside named blocks."""
        grown = sequence.growth * (self.steps - sequence.admitted_at)
        self._decoding -= 1
        self._growth -= sequence.growth
        self._context_tokens -= sequence.context_tokens + 1 + grown
        sequence.finish_step = -1
        if not self._decoding:
            self._growth = self._context_tokens = 0.0  # what rounding left of them
        return sequence.held_tokens + grown

    def _end(self, sequence: Sequence, *, held_tokens: float) -> None:
        del self._running[sequence]
        self._cache.release(held_tokens, sequence.own_blocks, is_last=not self._running)
        sequence.end_s = self.clock_s
        self.ended.append(sequence)
        if self._on_end is not None:
            self._on_end(sequence)

    def _preempt_last(self) -> None:
        """Who was admitted last gives up its room, and is the first to be admitted again."""
        sequence, _ = self._running.popitem()
        if sequence.finish_step >= 0:
            sequence.steps_left = sequence.finish_step - self.steps
            done = self.steps - sequence.admitted_at
            held = self._leave(sequence)
            sequence.context_tokens += 1 + round(sequence.growth * done)
        else:
            self._prefilling.remove(sequence)
            held = sequence.held_tokens
        self._cache.release(held, sequence.own_blocks, is_last=not self._running)
        sequence.own_blocks = ()
        sequence.prefill_left = 0
        sequence.preemptions += 1
        self._waiting.appendleft(sequence)
        self._jump = None
