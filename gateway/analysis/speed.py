"""How fast were the pools really, and how sure can one be of it? Learned from the record itself.

A profile's step-time model (`backends.profile`) is taken as a guess whose four parts, what a step costs at
all, per sequence, per token of context and per prompt token, may each be off. What the record says of a
span of time, the generation times of its answers against the steps they took and what shared those steps,
corrects the four together (Bayesian linear regression over spans). Where the load of the record varied, the
parts are told apart; where it did not, what remains unknown is how the pool behaves at another load, and the
posterior says just that. The same for acceptance, by pool and task, from the engine's own counts.

Pure. Seconds; scales are ratios to the profile.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from backends.profile import DraftCost
from backends.simulator.calibration import Guessing, SimulatedPool
from gateway.routing.learning import Belief

PARTS: Final = 4
COMMON_DEVIATION: Final = 0.2
"""How far all steps of a measured pool may be off together: another day, another neighbour."""
FOREIGN_DEVIATION: Final = 1.5
"""The same of a profile that was measured on other hardware (`routing.priors.STEP_OTHERS`)."""
OWN_DEVIATION: Final = 0.15
"""How far one part may be off beside that."""
OWN_DEVIATION_BEYOND: Final = 0.6
"""The same of a profile that the record has just contradicted."""
SPAN_ANSWERS: Final = 24
"""Answers of a span, on average."""
SPANS_MAX: Final = 240
SPANS_FEW: Final = 10
"""Of a short record, that has fewer answers to each."""
SPANS_MIN: Final = 5
NOISE_MIN: Final = 0.005
BEYOND_BELIEF: Final = 2.0
"""Deviations of what was believed from what was recorded."""
_ROUNDS: Final = 3
_CORRELATION_MAX: Final = 0.9

Matrix = list[list[float]]


@dataclass(frozen=True, slots=True)
class Ran:
    """One answer on one replica, seconds since the start of the record."""

    start_s: float
    """Sent."""
    scheduled_s: float
    first_s: float
    """First token."""
    end_s: float
    fresh_tokens: int
    """Of the input, not found in the prefix cache."""
    input_tokens: int
    output_tokens: int
    steps: int | None
    """After the first token; None: not known."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a step costs: `fixed + sequence * n + context * tokens held + prompt * tokens read`."""

    parts: tuple[float, float, float, float]

    @classmethod
    def of(cls, pool: SimulatedPool) -> Shape:
        """The pool's as its profile has it."""
        time, draft, guesses = pool.step_time, pool.draft, pool.draft_tokens
        more = 1.0 + (draft.verify_ratio if guesses else 0.0)
        sequence_s = (time.batched_token_s * (1 + guesses) + time.sequence_s) * more
        if guesses:
            sequence_s += draft.proposed_token_s * guesses
        fixed_s = time.fixed_s * more + (draft.fixed_s if guesses else 0.0)
        return cls((fixed_s, sequence_s, pool.context_token_s, time.batched_token_s * more))

    def scaled(self, scales: Sequence[float]) -> Shape:
        """With each part so many times as large."""
        fixed, sequence, context, prompt = (
            part * max(0.05, scale) for part, scale in zip(self.parts, scales, strict=True)
        )
        return Shape((fixed, sequence, context, prompt))

    def put_into(self, pool: SimulatedPool, *, request_s: float) -> SimulatedPool:
        """The pool with these steps, and so much in front of the engine for each request."""
        fixed_s, sequence_s, context_s, prompt_s = self.parts
        step = pool.step_time.model_copy(
            update={
                "fixed_s": fixed_s,
                "batched_token_s": prompt_s,
                "kv_token_s": context_s,
                # What a sequence costs beside the tokens that are computed for it; may be less than nothing.
                "sequence_s": sequence_s - prompt_s * (1 + pool.draft_tokens),
                "request_s": request_s,
            }
        )
        return replace(pool, step_time=step, draft=DraftCost())


@dataclass(frozen=True, slots=True)
class Posterior:
    """What is believed of the four scales."""

    mean: tuple[float, ...]
    root: Matrix
    """Lower triangle whose square is their covariance."""
    spans: int
    noise: float
    """Of one span, relative; 0: nothing was measured."""

    def draw(self, generator: random.Random) -> tuple[float, ...]:
        """One set of scales that may be true."""
        z = [generator.gauss(0.0, 1.0) for _ in self.mean]
        return tuple(
            mean + sum(self.root[row][column] * z[column] for column in range(row + 1))
            for row, mean in enumerate(self.mean)
        )

    def doubted(self, deviation: float) -> Posterior:
        """The same with each part off by so much more, apart from the others."""
        size = len(self.mean)
        covariance = [
            [
                sum(self.root[row][k] * self.root[column][k] for k in range(size))
                + (deviation * deviation if row == column else 0.0)
                for column in range(size)
            ]
            for row in range(size)
        ]
        return replace(self, root=cholesky(covariance))

    def times(self, factor: float) -> Posterior:
        """The same of steps that take so many times as long."""
        if factor == 1.0:
            return self
        mean = tuple(each * factor for each in self.mean)
        return replace(self, mean=mean, root=[[each * factor for each in row] for row in self.root])

    def deviation(self, weights: Sequence[float]) -> float:
        """Standard deviation of a weighted sum of the scales."""
        size = len(self.mean)
        sums = [sum(weights[row] * self.root[row][column] for row in range(size)) for column in range(size)]
        return math.sqrt(sum(each * each for each in sums))


def prior(*, own: bool = True) -> Posterior:
    """What is believed of a profile before the record is looked at.

    Args:
        own: it was measured on this pool; otherwise it is somebody else's.
    """
    common, single = (COMMON_DEVIATION if own else FOREIGN_DEVIATION) ** 2, OWN_DEVIATION**2
    covariance = [
        [common + (single if row == column else 0.0) for column in range(PARTS)] for row in range(PARTS)
    ]
    return Posterior((1.0,) * PARTS, cholesky(covariance), 0, 0.0)


# ------------------------------------------------------------------------------------- what shared the steps
@dataclass(frozen=True, slots=True)
class Occupancy:
    """What a replica did over time, and what each answer met there."""

    busy_s: float
    shares_s: list[float]
    """Of the busy time, each answer's: while several were at work each had an equal part."""
    sequences: list[float]
    """Mean number of sequences in its steps."""
    contexts: list[float]
    """Mean tokens of context in its steps, all sequences together."""
    prompts: list[float]
    """Tokens of others' prompts that were read while it generated."""


def occupancy(runs: Sequence[Ran], shape: Shape) -> Occupancy:
    """Walk through the comings and goings of one replica's answers."""
    fixed_s, sequence_s, context_s, _ = shape.parts
    events: list[tuple[float, int, int]] = []
    for index, run in enumerate(runs):
        events += [
            (run.scheduled_s, 0, index),
            (run.first_s, 1, index),
            (max(run.end_s, run.first_s), 2, index),
        ]
    events.sort()
    size = len(runs)
    at_shares, shares = [0.0] * size, [0.0] * size
    marks: list[tuple[float, float, float, float]] = [(0.0, 0.0, 0.0, 0.0)] * size
    sequences, contexts, prompts = [1.0] * size, [0.0] * size, [0.0] * size
    present = decoding = 0
    context = steps = of_sequences = of_contexts = read = share = busy_s = last_s = 0.0
    for at_s, kind, index in events:
        passed_s = at_s - last_s
        if passed_s > 0:
            if present:
                share += passed_s / present
                busy_s += passed_s
            if decoding:
                taken = passed_s / (fixed_s + sequence_s * decoding + context_s * context)
                steps += taken
                of_sequences += taken * decoding
                of_contexts += taken * context
            last_s = at_s
        run = runs[index]
        held = run.input_tokens + run.output_tokens / 2
        if kind == 0:
            present += 1
            at_shares[index] = share
        elif kind == 1:
            decoding += 1
            context += held
            read += run.fresh_tokens
            marks[index] = (steps, of_sequences, of_contexts, read)
        else:
            decoding -= 1
            present -= 1
            context = context - held if decoding else 0.0
            shares[index] = share - at_shares[index]
            before = marks[index]
            if steps > before[0]:
                taken = steps - before[0]
                sequences[index] = (of_sequences - before[1]) / taken
                contexts[index] = (of_contexts - before[2]) / taken
            prompts[index] = read - before[3]
    return Occupancy(busy_s, shares, sequences, contexts, prompts)


# --------------------------------------------------------------------------------------------- the regression
def learn(replicas: Iterable[Sequence[Ran]], shape: Shape, before: Posterior) -> Posterior:
    """What the record of a pool's replicas makes of its profile's steps; too little of it changes nothing."""
    groups = [[run for run in runs if run.end_s > run.first_s] for runs in replicas]
    found = before
    for _ in range(2):  # what shared a step is weighed by how long steps take, which is what is asked
        rows = [row for runs in groups if runs for row in _rows(runs, shape.scaled(found.mean), shape)]
        if len(rows) < SPANS_MIN:
            return before
        times = _times_as_slow(rows, before)
        known = before if times == 1.0 else before.doubted(OWN_DEVIATION_BEYOND)
        found = _fitted([[part * times for part in row] for row in rows], known).times(times)
    return found


def _times_as_slow(rows: Sequence[Sequence[float]], before: Posterior) -> float:
    """How many times as long as the profile says all steps take, where that is beyond belief; else 1.

    A prior that a record contradicts must not hold against it: a profile that is off by so much is of another
    machine, or of another day of this one. What it says of the parts' proportions is then less sure as well.
    """
    sums = [sum(row) for row in rows]
    times = sum(sums) / sum(each * each for each in sums)
    own = times * _long_run_deviation([1.0 - times * each for each in sums]) / math.sqrt(len(sums))
    believed = before.deviation([1.0 / PARTS] * PARTS)
    return times if abs(times - 1.0) > BEYOND_BELIEF * math.hypot(believed, own) else 1.0


def _rows(runs: Sequence[Ran], now: Shape, shape: Shape) -> list[list[float]]:
    """By span of time: what the profile says that each part took, over what all of it took."""
    met = occupancy(runs, now)
    order = sorted((run.end_s, index) for index, run in enumerate(runs) if run.steps)
    spans = max(1, min(SPANS_MAX, max(len(order) // SPAN_ANSWERS, min(SPANS_FEW, len(order) // 4))))
    rows = []
    for number in range(spans):
        sums, took_s = [0.0] * PARTS, 0.0
        for _, index in order[number * len(order) // spans : (number + 1) * len(order) // spans]:
            run = runs[index]
            steps = float(run.steps or 0)
            took_s += run.end_s - run.first_s
            sums[0] += steps
            sums[1] += steps * met.sequences[index]
            sums[2] += steps * met.contexts[index]
            sums[3] += met.prompts[index]
        if took_s > 0:
            rows.append([part * total / took_s for part, total in zip(shape.parts, sums, strict=True)])
    return rows


def _fitted(rows: Sequence[Sequence[float]], before: Posterior) -> Posterior:
    root = before.root
    covariance = [
        [sum(root[i][k] * root[j][k] for k in range(PARTS)) for j in range(PARTS)] for i in range(PARTS)
    ]
    precision = inverse(covariance)
    weighted = [sum(part * mean for part, mean in zip(line, before.mean, strict=True)) for line in precision]
    noise = 0.1
    mean = list(before.mean)
    for _ in range(_ROUNDS):
        weight = 1.0 / (noise * noise)
        total = [
            [precision[i][j] + weight * sum(row[i] * row[j] for row in rows) for j in range(PARTS)]
            for i in range(PARTS)
        ]
        right = [weighted[i] + weight * sum(row[i] for row in rows) for i in range(PARTS)]
        covariance = inverse(total)
        mean = [sum(covariance[i][j] * right[j] for j in range(PARTS)) for i in range(PARTS)]
        errors = [1.0 - sum(scale * part for scale, part in zip(mean, row, strict=True)) for row in rows]
        noise = max(NOISE_MIN, _long_run_deviation(errors))
    return Posterior(tuple(mean), cholesky(covariance), len(rows), noise)


def _long_run_deviation(errors: Sequence[float]) -> float:
    """Of errors that follow each other, as if they did not: what drifts tells less than its number says."""
    count = len(errors)
    square = sum(each * each for each in errors) / max(1, count - PARTS)
    lagged = sum(one * other for one, other in itertools.pairwise(errors)) / max(1, count - 1)
    correlation = min(_CORRELATION_MAX, max(0.0, lagged / square)) if square > 0 else 0.0
    return math.sqrt(square * (1 + correlation) / (1 - correlation))


def cholesky(matrix: Matrix) -> Matrix:
    """The lower triangle whose square is the matrix, which is symmetric and positive."""
    size = len(matrix)
    root = [[0.0] * size for _ in range(size)]
    for row in range(size):
        for column in range(row + 1):
            rest = matrix[row][column] - sum(root[row][k] * root[column][k] for k in range(column))
            if row == column:
                root[row][row] = math.sqrt(max(rest, 1e-18))
            else:
                root[row][column] = rest / root[column][column]
    return root


def inverse(matrix: Matrix) -> Matrix:
    """Of a symmetric positive matrix."""
    size, root = len(matrix), cholesky(matrix)
    columns = []
    for unit in range(size):
        down = [0.0] * size
        for row in range(size):
            rest = (1.0 if row == unit else 0.0) - sum(root[row][k] * down[k] for k in range(row))
            down[row] = rest / root[row][row]
        up = [0.0] * size
        for row in reversed(range(size)):
            rest = down[row] - sum(root[k][row] * up[k] for k in range(row + 1, size))
            up[row] = rest / root[row][row]
        columns.append(up)
    return columns


# ----------------------------------------------------------------------------------------------- acceptance
def accepted(counts: Sequence[tuple[int, int]], thought: Belief, *, spans: int = 24) -> Belief:
    """Tokens accepted per step of a pool and task.

    Args:
        counts: (steps, accepted tokens) of each answer, in the order of time.
        thought: what is thought of it without the record.
        spans: of time, so that a drift within the record shows in the deviation.
    """
    known = [pair for pair in counts if pair[0] > 0]
    if not known:
        return Belief(thought.mean, thought.deviation, 0.0)
    size = min(spans, max(1, len(known) // 4))
    sums = []
    for number in range(size):
        part = known[number * len(known) // size : (number + 1) * len(known) // size]
        sums.append((sum(each[0] for each in part), sum(each[1] for each in part)))
    steps, tokens = sum(each[0] for each in sums), sum(each[1] for each in sums)
    ratio = tokens / steps
    own = thought.deviation
    if size > 1:
        spread = sum((took - ratio * of) ** 2 for of, took in sums) * size / (size - 1)
        own = math.sqrt(spread) / steps
    new = len(known) / (len(known) + thought.weight)
    mean = thought.mean + new * (ratio - thought.mean)
    return Belief(mean, math.hypot((1 - new) * thought.deviation, new * own), float(len(known)))


def guessing_of(by_position: Sequence[float], mean_accepted: float) -> Guessing:
    """The same kind of acceptance with another mean: every position's share to the same power."""
    positions = [min(0.999, max(1e-6, share)) for share in by_position]
    wanted = min(len(positions) * 0.98, max(0.01, mean_accepted))
    low, high = -8.0, 8.0
    for _ in range(50):
        middle = (low + high) / 2
        if sum(share ** math.exp(middle) for share in positions) > wanted:
            low = middle
        else:
            high = middle
    power = math.exp((low + high) / 2)
    return Guessing(tuple(share**power for share in positions))


def by_task(guessing: Mapping[str, Guessing], task: str) -> Guessing:
    """A task's, or the mean of all."""
    return guessing.get(task) or guessing[""]
