"""What is believed of the pools, given the record: steps, what stands in front of them, acceptance.

A belief is a best guess and how far it may be off; `world` makes a simulated fleet of it, the best guess or
one of the others. A pool's profile is where belief begins (`routing.priors`); what the record says of the
pool takes over as far as it says something. Support tells what a claim about a pool and a task rests on.
"""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from backends.pool import PoolSpec
from backends.simulator.calibration import Guessing, SimulatedPool
from gateway.analysis.fleet import FleetRun, SimulatedFleet, Work
from gateway.analysis.history import RecordedAttempt, RecordedRequest
from gateway.analysis.speed import Posterior, Ran, Shape, accepted, guessing_of, learn, prior
from gateway.errors import ConfigurationError
from gateway.inference import TaskType
from gateway.routing.learning import Belief
from gateway.routing.priors import Priors

ANSWERS_MIN: Final = 20
"""Recorded answers of a pool, or of a task on a speculating pool, before a claim rests on them."""
_AT_EASE_QUANTILE: Final = 0.5


class Support(StrEnum):
    """What a claim about a pool and a task rests on."""

    RECORDED = "recorded"
    """Enough answers in the record."""
    PROFILED = "profiled"
    """The pool's own bench, made with that task where the task matters; no record."""
    NONE = "none"


@dataclass(slots=True)
class PoolBelief:
    """One pool."""

    spec: PoolSpec
    simulated: SimulatedPool
    shape: Shape
    posterior: Posterior
    request_s: float
    has_profile: bool
    """Measured with its own bench."""
    delay_s: float = 0.0
    """That first tokens are later than the engine explains."""
    answers: int = 0
    """In the record, with engine times."""
    accepted: dict[str, Belief] = field(default_factory=dict)
    """Tokens accepted per step, by task."""
    profiled_tasks: frozenset[str] = frozenset()
    recorded_tasks: dict[str, int] = field(default_factory=dict)

    def support(self, task: str) -> Support:
        """What is known of a task on this pool."""
        is_known = self.posterior.spans > 0
        if self.spec.speculation is None:
            if is_known and self.answers >= ANSWERS_MIN:
                return Support.RECORDED
            return Support.PROFILED if self.has_profile else Support.NONE
        if is_known and self.recorded_tasks.get(task, 0) >= ANSWERS_MIN:
            return Support.RECORDED
        is_profiled = self.has_profile and task in self.profiled_tasks
        return Support.PROFILED if is_profiled else Support.NONE

    def world(self, generator: random.Random | None) -> SimulatedPool:
        """The pool as it may be; None: as it most probably is."""
        scales = self.posterior.mean if generator is None else self.posterior.draw(generator)
        pool = self.shape.scaled(scales).put_into(self.simulated, request_s=self.request_s)
        if not pool.draft_tokens:
            return pool
        guessing: dict[str, Guessing] = dict(pool.guessing)
        for task, belief in self.accepted.items():
            mean = belief.mean
            if generator is not None:
                mean += belief.deviation * generator.gauss(0.0, 1.0)
            base = pool.guessing.get(task) or pool.guessing[""]
            guessing[task] = guessing_of(base.by_position, mean)
        return SimulatedPool(
            pool.engine,
            pool.step_time,
            draft=pool.draft,
            draft_tokens=pool.draft_tokens,
            guessing=guessing,
            prefix_block_tokens=0,
        )


@dataclass(slots=True)
class Beliefs:
    """All pools."""

    pools: dict[str, PoolBelief]

    def fleet(self, specs: Mapping[str, PoolSpec], seed: int | None = None) -> SimulatedFleet:
        """A fleet of these pools: the most probable one, or the one of a seed."""
        made = {}
        for name in specs:
            generator = None if seed is None else random.Random(f"{seed}:{name}")  # noqa: S311 - a simulation
            made[name] = self.pools[name].world(generator)
        delays_s = {name: self.pools[name].delay_s for name in specs}
        return SimulatedFleet(made, {name: spec.replicas for name, spec in specs.items()}, delays_s)


def before_the_record(specs: Mapping[str, PoolSpec]) -> Beliefs:
    """What profiles say.

    Raises:
        ConfigurationError: a profile does not fit its pool.
        ProfileError: a profile cannot be read.
    """
    priors = Priors(specs)
    return Beliefs({name: _from_profile(spec, priors) for name, spec in specs.items()})


def _from_profile(spec: PoolSpec, priors: Priors) -> PoolBelief:
    profile = priors.profile(spec.name)
    own = profile is not None and profile.provenance.kind == "measured"
    speculation = None
    if spec.speculation is not None:
        speculation = (spec.speculation.method, spec.speculation.num_speculative_tokens)
    try:
        simulated = SimulatedPool.of(
            profile or priors.published, speculation=speculation, prefix_block_tokens=0
        )
    except ValueError as error:
        raise ConfigurationError(f"pool {spec.name!r} cannot be simulated: {error}") from None
    limits = {
        "max_num_seqs": spec.batching.max_num_seqs,
        "max_num_batched_tokens": spec.batching.max_num_batched_tokens,
    }
    if profile is None:
        limits["kv_cache_tokens"] = None  # type: ignore[assignment] # somebody else's accelerator
    simulated = SimulatedPool(
        simulated.engine.model_copy(update=limits),
        simulated.step_time,
        draft=simulated.draft,
        draft_tokens=simulated.draft_tokens,
        guessing=simulated.guessing,
    )
    found = PoolBelief(
        spec, simulated, Shape.of(simulated), prior(own=own), simulated.step_time.request_s, has_profile=own
    )
    if spec.speculation is not None:
        found.accepted = {task.value: priors.accepted(spec, task) for task in TaskType}
        if profile is not None:
            method = spec.speculation.method
            found.profiled_tasks = frozenset(one.task for one in profile.acceptance if one.method == method)
    return found


# ------------------------------------------------------------------------------------------- from the record
def first_token_s(attempt: RecordedAttempt) -> float | None:
    """From sending to the first token, as the engine's own times have it, else as the gateway's."""
    if attempt.generation_ms is not None and attempt.total_ms is not None:
        return max(0.0, attempt.total_ms - attempt.generation_ms) / 1000
    return None if attempt.ttft_ms is None else attempt.ttft_ms / 1000


def works_of(requests: Sequence[RecordedRequest], pools: Mapping[str, PoolSpec]) -> list[Work]:
    """What the recorded answers asked of the pools, in the order of their times."""
    start_ms = requests[0].at_ms if requests else 0
    works = []
    for index, request in enumerate(requests):
        answer = request.answer
        if answer is None or answer.pool not in pools:
            continue
        works.append(
            Work(
                index,
                (request.at_ms - start_ms) / 1000,
                answer.pool,
                request.task.type.value,
                max(1, answer.input_tokens),
                min(answer.usage.cached_input, max(0, answer.input_tokens - 1)),
                max(1, answer.output_tokens),
                answer.draft_steps,
            )
        )
    return works


def take_record(beliefs: Beliefs, requests: Sequence[RecordedRequest]) -> dict[str, list[list[Ran]]]:
    """Let the record correct what is believed; returns what ran on each replica of each pool."""
    start_ms = requests[0].at_ms if requests else 0
    ran: dict[str, dict[str, list[Ran]]] = defaultdict(lambda: defaultdict(list))
    counts: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for request in requests:
        answer = request.answer
        if answer is None or answer.pool not in beliefs.pools:
            continue
        belief = beliefs.pools[answer.pool]
        task = request.task.type.value
        if answer.draft_steps:
            counts[answer.pool, task].append((answer.draft_steps, answer.accepted_tokens or 0))
        one = _ran(answer, start_ms, belief)
        if one is not None:
            ran[answer.pool][answer.replica].append(one)
            belief.answers += 1
    for name, replicas in ran.items():
        belief = beliefs.pools[name]
        belief.posterior = learn(replicas.values(), belief.shape, belief.posterior)
    for (name, task), pairs in counts.items():
        belief = beliefs.pools[name]
        if belief.spec.speculation is None:
            continue
        belief.recorded_tasks[task] = len(pairs)
        belief.accepted[task] = accepted(pairs, belief.accepted[task])
    return {name: list(replicas.values()) for name, replicas in ran.items()}


def _ran(answer: RecordedAttempt, start_ms: int, belief: PoolBelief) -> Ran | None:
    first_s = first_token_s(answer)
    if first_s is None or answer.total_ms is None or answer.generation_ms is None:
        return None
    sent_s = (answer.started_at_ms - start_ms) / 1000
    before_s = belief.request_s + (answer.queue_ms or 0.0) / 1000
    is_speculating = belief.spec.speculation is not None
    steps = answer.draft_steps if is_speculating else max(0, answer.output_tokens - 1)
    return Ran(
        sent_s,
        sent_s + min(before_s, first_s),
        sent_s + first_s,
        sent_s + answer.total_ms / 1000,
        answer.usage.input + answer.usage.cache_write,
        answer.input_tokens,
        answer.output_tokens,
        steps,
    )


def fit_front(beliefs: Beliefs, requests: Sequence[RecordedRequest], run: FleetRun) -> None:
    """Correct what a request costs in front of the engine, by first tokens that come later or sooner.

    Args:
        beliefs: corrected in place.
        requests: the record.
        run: the same requests on the same pools, simulated.
    """
    late: dict[str, list[float]] = defaultdict(list)
    for index, request in enumerate(requests):
        answer, times = request.answer, run.times.get(index)
        if answer is None or times is None:
            continue
        measured_s = first_token_s(answer)
        if measured_s is not None:
            late[answer.pool].append(measured_s - times.ttft_s)
    for name, differences in late.items():
        if len(differences) >= ANSWERS_MIN:
            belief = beliefs.pools[name]
            late_s = statistics.median(differences)
            # Sooner: what stands in front takes less. Later: by something that others need not wait for.
            belief.delay_s = max(0.0, late_s)
            belief.request_s = max(0.0, belief.request_s + min(0.0, late_s))
