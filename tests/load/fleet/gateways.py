"""Where does Tollgate send a request? Its own code, fed by what simulated engines say.

Several gateway processes, each with its registry, economist, policy and courses. `decide()` and
`Economist.order()` choose the pool, `PoolRegistry.lease()` the replica. Once a second a gateway scrapes
the engines' load and reads what was learned; answers that have ended are folded into that once a second,
by all gateways into the same rows, as the ledger's writer does it. So a gateway knows its own requests at
once, those of others after a second, and what answers teach after one to two.

"Everything plain", "everything speculative" and the static order are the same gateways under a policy
without economics.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence as SequenceOf
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from backends.pool import PoolSpec, ReplicaLoad, ReplicaState
from backends.registry import PoolRegistry, ReplicaLease
from backends.simulator.replica import Replica
from backends.simulator.requests import Sequence
from gateway.course import Course
from gateway.economist import Economist, Forecasts
from gateway.inference import Task, TaskSource, TaskType
from gateway.lessons import LESSONS_MAX
from gateway.pricing.book import Prices
from gateway.routing.decide import decide
from gateway.routing.learning import Evidence, Lesson, after, fold
from gateway.routing.learning_store import LearnedKey, LearnedRow, by_key
from gateway.routing.policy import Policy, parse_policy
from gateway.routing.priors import Priors
from gateway.routing.rules import BYTES_PER_TOKEN
from tests.load.fleet.blind import GATEWAYS
from tests.load.fleet.play import MakeRule, Site
from tests.load.fleet.pools import Fleet, spec_of
from tests.load.fleet.traffic import Arrival, Means
from tests.support.clock import MovableClock
from tests.support.factories import make_call, make_price

START: Final = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
TENANT: Final = "ten_1"
CONFIDENCE: Final = 0.8


def policy_text(fleet: Fleet, *, only: str | None = None, economics: str = "") -> str:
    """A policy for the fleet: predictable tasks to its speculating pools first, creative ones to plain pools.

    Args:
        fleet: its pools.
        only: the one pool, or kind of pool (`plain`, `speculative`), that is used at all; None: all.
        economics: that section of the file.
    """
    speculative = [pool.name for pool, _ in fleet.pools if pool.method is not None]
    plain = [pool.name for pool, _ in fleet.pools if pool.method is None]
    used = {"plain": plain, "speculative": speculative}.get(only or "", [*speculative, *plain])
    return (
        "name: fleet\n"
        f"models:\n  auto: {{pools: [{', '.join(used)}]}}\n"
        "routes:\n"
        f"  predictable: [{', '.join([*speculative, *plain])}]\n"
        f"  creative: [{', '.join([*plain, *speculative])}]\n"
        f"max_tokens_default: 1024\n{economics}"
    )


def economics_text(*, ttft_s: float, tpot_s: float, exploration: float) -> str:
    """What measurements may change, and what shall hold 95 of 100 times."""
    targets = f"{{ttft_p95_ms: {ttft_s * 1000:g}, tpot_p95_ms: {tpot_s * 1000:g}}}"
    return (
        f"economics:\n  enabled: true\n  exploration: {exploration:g}\n"
        f"  latency_targets:\n    default: {targets}\n"
    )


class _Process:
    """One gateway."""

    def __init__(
        self, specs: dict[str, PoolSpec], priors: Priors, policy: Policy, *, clock: MovableClock, seed: int
    ) -> None:
        self.registry = PoolRegistry(specs)
        for name, spec in specs.items():
            urls = {f"{name}-{number}": url for number, url in enumerate(spec.urls)}
            self.registry.set_replicas(name, urls)
            for replica in urls:
                self.registry.set_state(replica, ReplicaState.READY)
        self.economist = Economist(self.registry, priors, clock=clock, draw=random.Random(seed).random)
        self.policy = policy
        self._prices = Prices({name: make_price(f"{name}@0") for name in specs})
        self._courses: dict[TaskType, Course] = {}

    def lease(self, arrival: Arrival) -> tuple[ReplicaLease, Forecasts | None]:
        call = make_call(body_bytes=arrival.input_tokens * BYTES_PER_TOKEN)
        task = Task(arrival.seen_as, TaskSource.CLASSIFIER, CONFIDENCE)
        course = self._courses.get(task.type)
        if course is None:
            pools = {each.spec.name: each for each in self.registry.snapshots()}
            decision = decide(call, task, self.policy, pools=pools)
            course = self._courses[task.type] = Course(decision, self._prices, task=task, baseline=None)
        forecasts = None
        if self.policy.economics.is_enabled:
            course, forecasts = self.economist.order(
                course, call, task, tenant_id=TENANT, latency_class="default", policy=self.policy
            )
        lease = self.registry.lease(course.decision.targets[0].pool)
        if lease is None:
            raise RuntimeError("a simulated replica is always ready")
        return lease, forecasts


class Gateways:
    """Some processes, and what they learn together."""

    def __init__(self, site: Site, policy_yaml: str, *, means: Means, seed: int) -> None:
        """Processes that have just started.

        Args:
            site: the replicas.
            policy_yaml: the policy in force.
            means: of the traffic, as the pools' files say it.
            seed: of which gateway a request comes to, and of its chances.
        """
        self._site = site
        random.seed(seed)  # the registry's two choices are drawn from the process's own generator
        self._draw = random.Random(seed)
        self._clock = MovableClock(START)
        with tempfile.TemporaryDirectory() as folder:
            specs = {
                pool.name: spec_of(pool, count, means=means, folder=Path(folder))
                for pool, count in site.fleet.pools
            }
            priors = Priors(specs)
        policy = parse_policy(policy_yaml, source="fleet.yaml", pools=specs)
        self.processes = [
            _Process(specs, priors, policy, clock=self._clock, seed=seed * 100 + number)
            for number in range(GATEWAYS)
        ]
        self._numbers = {
            f"{pool}-{place}": number
            for pool, numbers in site.numbers.items()
            for place, number in enumerate(numbers)
        }
        self._names = {number: name for name, number in self._numbers.items()}
        self._sent: tuple[ReplicaLease, Forecasts | None] | None = None
        self._open: dict[Sequence, tuple[ReplicaLease, Forecasts | None, Arrival]] = {}
        self._lessons: list[Lesson] = []
        self._rows: dict[LearnedKey, LearnedRow] = {}

    # ------------------------------------------------------------------------------------------- a request
    def route(self, arrival: Arrival, now_s: float) -> int:
        """Choose pool and replica as the serving path does."""
        del now_s
        process = self.processes[self._draw.randrange(GATEWAYS)]
        self._sent = process.lease(arrival)
        return self._numbers[self._sent[0].replica]

    def sent(self, arrival: Arrival, number: int, sequence: Sequence) -> None:
        """Remember the lease."""
        del number
        if self._sent is not None:
            self._open[sequence] = (*self._sent, arrival)

    def ended(self, number: int, sequence: Sequence) -> None:
        """Release the lease, and write down what the answer teaches."""
        del number
        lease, forecasts, arrival = self._open.pop(sequence)
        lease.succeeded()
        lease.release()
        if forecasts is not None:
            self._lessons.append(lesson_of(lease.pool, arrival, sequence, forecasts))

    # ---------------------------------------------------------------------------------------------- a second
    def tick(self, now_s: float) -> None:
        """Scrape, fold what has ended, read what is known."""
        self._clock.move(now_s - (self._clock.now() - START).total_seconds())
        for process in self.processes:
            for number, replica in enumerate(self._site.replicas):
                process.registry.set_load(self._names[number], _load(replica, now_s))
        changed = self._fold()
        if changed:
            for process in self.processes:
                process.economist.take(changed)

    def _fold(self) -> list[LearnedRow]:
        """As `learning_store` does in SQL; what a second brings of one pool and task is thinned alike."""
        groups: dict[tuple[str, str], list[Lesson]] = {}
        for lesson in self._lessons:
            groups.setdefault((lesson.pool, lesson.task), []).append(lesson)
        self._lessons.clear()
        kept = [each for group in groups.values() for each in group[:: -(-len(group) // LESSONS_MAX)]]
        now_ms, changed = self._clock.epoch_ms(), []
        for key, lessons in by_key(kept).items():
            row = self._rows.get(key)
            count, evidence = 0, Evidence()
            if row is not None:
                count, evidence = row.lessons, after(row.evidence, (now_ms - row.folded_at_ms) / 1000)
            row = self._rows[key] = LearnedRow(key, count + len(lessons), now_ms, fold(evidence, lessons))
            changed.append(row)
        return changed


def _load(replica: Replica, now_s: float) -> ReplicaLoad:
    """What its /metrics would say, as far as routing reads it."""
    running = replica.requests_running
    return ReplicaLoad(
        requests_running=running,
        requests_waiting=replica.requests - running,
        kv_cache_usage_ratio=replica.kv_held_ratio,
        prompt_tokens_total=0,
        generation_tokens_total=0,
        prefix_cache_query_tokens_total=0,
        prefix_cache_hit_tokens_total=0,
        draft_steps_total=None,
        draft_tokens_total=None,
        accepted_tokens_total=None,
        scraped_at_s=now_s,
    )


def lesson_of(pool: str, arrival: Arrival, sequence: Sequence, forecasts: Forecasts) -> Lesson:
    """What an answer teaches (`gateway.lessons`, from the engine's own figures for the request)."""
    predicted = forecasts.of(pool)
    steps = sequence.draft_steps or arrival.output_tokens - 1
    generation_s = sequence.end_s - sequence.first_token_s
    return Lesson(
        pool,
        arrival.seen_as.value,
        TENANT,
        arrival.output_tokens,
        0.0,
        sequence.draft_steps or None,
        sequence.accepted_tokens if sequence.draft_steps else None,
        sequence.queue_s * 1000,
        sequence.ttft_s * 1000,
        generation_s / steps * 1000 if steps > 0 else None,
        None if predicted is None else predicted.modelled_ttft_s * 1000,
        None if predicted is None else predicted.modelled_step_s * 1000,
    )


# ------------------------------------------------------------------------------------------------ the rules
def under_policy(fleet: Fleet, means: Means, *, only: str | None = None) -> MakeRule:
    """Gateways without economics: the static order, or one kind of pool."""
    text = policy_text(fleet, only=only)

    def make(site: Site, *, seed: int, rate: float) -> Gateways:
        del rate
        return Gateways(site, text, means=means, seed=seed)

    return make


def tollgate(fleet: Fleet, means: Means, *, targets: SequenceOf[float], exploration: float = 0.0) -> MakeRule:
    """Gateways with economics.

    Args:
        fleet: its pools.
        means: of the traffic.
        targets: time to the first token and per further token, seconds, 95 of 100 times.
        exploration: share of requests that measure another pool than the best.
    """
    ttft_s, tpot_s = targets
    economics = economics_text(ttft_s=ttft_s, tpot_s=tpot_s, exploration=exploration)
    text = policy_text(fleet, economics=economics)

    def make(site: Site, *, seed: int, rate: float) -> Gateways:
        del rate
        return Gateways(site, text, means=means, seed=seed)

    return make
