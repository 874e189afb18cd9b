"""What do ended requests teach about a pool, and how sure may one be of it?

Kept are sufficient statistics only: decayed weights, sums and sums of products, never a request. What is
learned of a pool and a task is the tokens that a step yields (vLLM's mean acceptance length, the bonus token
included), how long steps and first tokens take against what the pool's step-time model said when the
request was sent, how long answers are, how much of the input the prefix cache had, and times for people.

Old evidence fades in two ways: by half with every `SAMPLES_HALF` requests that bring new evidence, and by
half with every `SECONDS_HALF`. A change under way is noticed sooner: a quick copy, which forgets within a
few requests, takes the slow one's place where the two disagree by more than chance allows.

A sum is folded once: whoever folds knows which attempts were booked just now and which are booked already.
Pure. Logarithms are natural; a weight of 1 is one request that has just ended.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

SAMPLES_HALF = 50.0
SECONDS_HALF = 600.0
QUICK_SAMPLES_HALF = 5.0
QUICK_WEIGHT_MIN = 4.0
"""The quick copy has seen too little below this."""
DRIFT_SIGMAS = 4.0
DRIFT_KEPT = 0.25
"""A change is noticed while the quick copy still holds some of what was before: it counts for little."""
NOISE_RATIO_MIN = 0.02
"""Differences of this size are noise, however regular an engine looks."""
LOG_RATIO_MAX = 5.0
"""A time that is 150 times what was modelled, or a 150th, teaches no more than that."""
EVERY_TASK = ""
"""Stands for the task where evidence is of a whole pool."""
EVERY_TENANT = ""


class Lesson(msgspec.Struct, frozen=True):
    """What one answered attempt has to say; None where its engine did not say."""

    pool: str
    task: str
    tenant_id: str
    output_tokens: int
    cached_ratio: float | None
    """Share of the input that the prefix cache had."""
    draft_steps: int | None
    """Verification steps; None: the engine did not speculate."""
    accepted_tokens: int | None
    queue_ms: float | None
    ttft_ms: float | None
    """To the first token; of whole answers, to where generation began."""
    step_ms: float | None
    """Of one engine step while it generated."""
    modelled_ttft_ms: float | None
    """What the pool's model said when the request was sent, before any correction; None: nothing."""
    modelled_step_ms: float | None


class Sums(msgspec.Struct, frozen=True, array_like=True):
    """Weighted sums of pairs (size, value); their quotient is what is estimated. All zero: nothing known."""

    weight: float = 0.0
    size: float = 0.0
    value: float = 0.0
    size_size: float = 0.0
    size_value: float = 0.0
    value_value: float = 0.0

    @property
    def ratio(self) -> float:
        """Value per size; 0 where nothing is known."""
        return self.value / self.size if self.size > 0 else 0.0

    @property
    def variance(self) -> float:
        """Of one pair around the quotient, in the value's unit squared."""
        if self.weight <= 0:
            return 0.0
        ratio = self.ratio
        spread = self.value_value - 2 * ratio * self.size_value + ratio * ratio * self.size_size
        return max(0.0, spread / self.weight)

    @property
    def deviation(self) -> float:
        """Standard deviation of one pair's own quotient; what a single request may be off by."""
        mean_size = self.size / self.weight if self.weight > 0 else 0.0
        return math.sqrt(self.variance) / mean_size if mean_size > 0 else 0.0

    def faded(self, factor: float) -> Sums:
        """The same evidence with less weight.

        Args:
            factor: 0 to 1.
        """
        return Sums(
            self.weight * factor,
            self.size * factor,
            self.value * factor,
            self.size_size * factor,
            self.size_value * factor,
            self.value_value * factor,
        )

    def plus(self, pairs: Iterable[tuple[float, float]]) -> Sums:
        """With further pairs, each of weight 1."""
        weight, size, value = self.weight, self.size, self.value
        size_size, size_value, value_value = self.size_size, self.size_value, self.value_value
        for one_size, one_value in pairs:
            weight += 1.0
            size += one_size
            value += one_value
            size_size += one_size * one_size
            size_value += one_size * one_value
            value_value += one_value * one_value
        return Sums(weight, size, value, size_size, size_value, value_value)


class Tracked(msgspec.Struct, frozen=True, array_like=True):
    """Evidence that follows a change under way."""

    slow: Sums = Sums()
    quick: Sums = Sums()

    def faded(self, factor: float) -> Tracked:
        """The same evidence with less weight."""
        return Tracked(self.slow.faded(factor), self.quick.faded(factor))

    def plus(self, pairs: Sequence[tuple[float, float]]) -> Tracked:
        """With further pairs, the latest last."""
        if not pairs:
            return self
        quick = self.quick.faded(_half(len(pairs), QUICK_SAMPLES_HALF)).plus(pairs)
        slow = self.slow.faded(_half(len(pairs), SAMPLES_HALF)).plus(pairs)
        return Tracked(quick.faded(DRIFT_KEPT) if has_drifted(slow, quick) else slow, quick)


def has_drifted(slow: Sums, quick: Sums) -> bool:
    """The latest requests say something else than those before, and chance does not explain it."""
    if quick.weight < QUICK_WEIGHT_MIN or slow.weight <= quick.weight or slow.size <= 0:
        return False
    difference = abs(quick.ratio - slow.ratio)
    floor = NOISE_RATIO_MIN * max(abs(slow.ratio), abs(quick.ratio), NOISE_RATIO_MIN)
    noise = max(slow.deviation, floor) * math.sqrt(1 / quick.weight + 1 / slow.weight)
    return difference > DRIFT_SIGMAS * noise


class Evidence(msgspec.Struct, frozen=True):
    """What is known of one pool and task, perhaps of one tenant's requests only."""

    accepted: Tracked = Tracked()
    """Accepted tokens per verification step."""
    step_log: Tracked = Tracked()
    """Logarithm of a step's time over the modelled one."""
    ttft_log: Tracked = Tracked()
    output_tokens: Sums = Sums()
    cached_ratio: Sums = Sums()
    queue_ms: Sums = Sums()
    ttft_ms: Sums = Sums()
    tpot_ms: Sums = Sums()

    def faded(self, factor: float) -> Evidence:
        """The same evidence with less weight."""
        return Evidence(*(getattr(self, name).faded(factor) for name in self.__struct_fields__))


def after(evidence: Evidence, seconds: float) -> Evidence:
    """What evidence is still worth when nothing came for so long."""
    return evidence if seconds <= 0 else evidence.faded(_half(seconds, SECONDS_HALF))


def fold(evidence: Evidence, lessons: Sequence[Lesson]) -> Evidence:
    """Evidence with what came since, the latest last."""
    return Evidence(
        evidence.accepted.plus(
            [
                (each.draft_steps, each.accepted_tokens or 0)
                for each in lessons
                if each.draft_steps  # a request that ended before the first verification says nothing
            ]
        ),
        evidence.step_log.plus(_logs((each.step_ms, each.modelled_step_ms) for each in lessons)),
        evidence.ttft_log.plus(_logs((each.ttft_ms, each.modelled_ttft_ms) for each in lessons)),
        _averaged(evidence.output_tokens, [each.output_tokens for each in lessons]),
        _averaged(evidence.cached_ratio, [each.cached_ratio for each in lessons]),
        _averaged(evidence.queue_ms, [each.queue_ms for each in lessons]),
        _averaged(evidence.ttft_ms, [each.ttft_ms for each in lessons]),
        _averaged(evidence.tpot_ms, [tpot_ms(each) for each in lessons]),
    )


def tpot_ms(lesson: Lesson) -> float | None:
    """Milliseconds per token after the first; None where that is not known."""
    if lesson.step_ms is None:
        return None
    if not lesson.draft_steps:
        return lesson.step_ms
    return lesson.step_ms / (1 + (lesson.accepted_tokens or 0) / lesson.draft_steps)


def _averaged(sums: Sums, values: Sequence[float | None]) -> Sums:
    pairs = [(1.0, value) for value in values if value is not None]
    return sums.faded(_half(len(pairs), SAMPLES_HALF)).plus(pairs) if pairs else sums


def _logs(times: Iterable[tuple[float | None, float | None]]) -> list[tuple[float, float]]:
    return [
        (1.0, _clamped_log(measured / modelled))
        for measured, modelled in times
        if measured is not None and modelled is not None and measured >= 0 and modelled > 0
    ]


def _clamped_log(ratio: float) -> float:
    least = math.exp(-LOG_RATIO_MAX)
    return math.log(min(max(ratio, least), 1 / least))


def _half(amount: float, half: float) -> float:
    return math.exp(-math.log(2) * amount / half)


# -------------------------------------------------------------------------------------- what it comes to
@dataclass(frozen=True, slots=True)
class Belief:
    """A value and how sure one may be: a mean, its standard deviation, and the requests behind it."""

    mean: float
    deviation: float
    weight: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 of 100."""
        return self.mean - 1.96 * self.deviation, self.mean + 1.96 * self.deviation


def believe(sums: Sums, prior: Belief) -> Belief:
    """What evidence makes of a prior.

    Args:
        sums: the evidence.
        prior: what was thought before; its weight is how many requests would outweigh it.
    """
    total = sums.weight + prior.weight
    if total <= 0 or sums.size <= 0:
        return Belief(prior.mean, prior.deviation, 0.0)
    new = sums.weight / total
    mean = prior.mean + new * (sums.ratio - prior.mean)
    own = sums.deviation / math.sqrt(max(1.0, sums.weight))
    return Belief(mean, math.hypot((1 - new) * prior.deviation, new * own), sums.weight)
