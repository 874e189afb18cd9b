"""Why is a pool slow, or about to be? What an on-call should look at, with the cause in words.

Looks at what is known already: states and circuit breakers, the engines' queues and caches, what was learned
against what was measured on the bench, and the attempts of the last minutes. Each concern says what was seen
and what to do. Pure; thresholds are judgements, chosen so that a quiet fleet shows nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from backends.breaker import BreakerState
from backends.pool import ASLEEP, PoolSnapshot, ReplicaSnapshot, ReplicaState
from backends.registry import Story
from gateway.ledger.pool_history import PoolLately

KV_FULL_RATIO: Final = 0.95
KV_TIGHT_RATIO: Final = 0.85
UNEVEN_RATIO: Final = 2.0
"""A replica has so many times the pool's mean load."""
SLOW_STEP_RATIO: Final = 1.5
ACCEPTANCE_KEPT: Final = 0.75
"""Below this share of what is usual, acceptance has fallen."""
FAULTS_MIN: Final = 3
FAULT_RATIO: Final = 0.02
WEIGHT_MIN: Final = 5.0
"""Requests behind a learned figure before it counts."""
LATELY_MINUTES: Final = 15
_RECENT_MS: Final = LATELY_MINUTES * 60_000


class Severity(StrEnum):
    """How soon somebody should look."""

    BAD = "bad"
    """Now: requests wait, fail or go elsewhere."""
    WARNING = "warning"
    """Today: it is slower or dearer than it should be."""
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Concern:
    """Something that makes a pool slow."""

    severity: Severity
    pool: str
    replica: str | None
    """None: the whole pool."""
    title: str
    cause: str
    """What was seen, with numbers."""
    remedy: str


@dataclass(frozen=True, slots=True)
class TaskAcceptance:
    """Tokens that a step of a speculating pool yields for a task."""

    task: str
    now: float
    usual: float
    """By the bench or by what is published."""
    weight: float
    """Requests that `now` rests on."""


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """What is known of a pool at one moment."""

    snapshot: PoolSnapshot
    stories: Mapping[str, Story]
    """By replica."""
    now_ms: int
    monotonic_s: float
    waiting_for_wake: int = 0
    step_ratio: float | None = None
    """A step's time over the model's, lately; None: not learned."""
    step_weight: float = 0.0
    has_profile: bool = False
    acceptance: Sequence[TaskAcceptance] = ()
    lately: PoolLately = field(default_factory=lambda: PoolLately(0, 0))
    """None of its attempts: nothing is known."""


def concerns_of(facts: PoolFacts) -> list[Concern]:
    """What needs attention in a pool, the most urgent first."""
    found = [
        *_availability(facts),
        *_queue(facts),
        *_balance(facts),
        *_faults(facts),
        *_speed(facts),
        *_acceptance(facts),
        *_targets(facts),
        *_restarts(facts),
        *_profile(facts),
    ]
    order = list(Severity)
    return sorted(found, key=lambda one: order.index(one.severity))


def _availability(facts: PoolFacts) -> list[Concern]:
    pool, replicas = facts.snapshot.spec.name, facts.snapshot.replicas
    if not replicas:
        return [
            Concern(
                Severity.BAD,
                pool,
                None,
                "no replica is known",
                "The fleet has not been started, or not from this state folder.",
                "`tollgate pools up`, or look at `urls` in the pool's file.",
            )
        ]
    found = [_broken(facts, one) for one in replicas if one.state is ReplicaState.UNHEALTHY]
    ready = facts.snapshot.ready_count
    asleep = [one for one in replicas if one.state in ASLEEP]
    if not ready and not asleep:
        states = ", ".join(f"{one.replica} {one.state.value}" for one in replicas)
        fallback = "Its requests go to the next pool of the policy, or are refused."
        found.insert(
            0,
            Concern(
                Severity.BAD,
                pool,
                None,
                "no replica can take a request",
                f"{states}. {fallback}",
                "See its replicas below.",
            ),
        )
    if facts.waiting_for_wake:
        found.append(
            Concern(
                Severity.WARNING,
                pool,
                None,
                "requests wait for a replica to wake",
                f"{facts.waiting_for_wake} wait; {len(asleep)} of {len(replicas)} replicas sleep or wake.",
                "`keep_warm` or `sleep` in the pool's file says how many stay awake.",
            )
        )
    return found


def _broken(facts: PoolFacts, one: ReplicaSnapshot) -> Concern:
    breaker = one.breaker
    detail = one.detail or "it does not say why"
    if breaker.state is BreakerState.CLOSED:
        cause = f"{detail}."
    else:
        wait_s = max(0.0, breaker.retry_at_s - facts.monotonic_s)
        again = f"it is tried again in {math.ceil(wait_s)} s" if wait_s else "it is being tried again"
        cause = f"Circuit breaker {breaker.state.value.replace('_', ' ')}: {detail}; {again}."
    return Concern(
        Severity.BAD,
        one.pool,
        one.replica,
        "a replica gets no requests",
        cause,
        "The others carry its load. Look at its log and its last errors.",
    )


def _queue(facts: PoolFacts) -> list[Concern]:
    spec = facts.snapshot.spec
    seats = spec.batching.max_num_seqs
    found = []
    for one in _ready(facts):
        load = one.load
        if load is None:
            continue
        full, waiting = load.kv_cache_usage_ratio, load.requests_waiting
        if waiting and full >= KV_FULL_RATIO and load.requests_running < seats:
            found.append(
                Concern(
                    Severity.BAD,
                    spec.name,
                    one.replica,
                    "the KV cache is full",
                    f"{waiting:,} requests wait, {load.requests_running:,} run of {seats:,} seats: {full:.0%}"
                    " of the cache is in use, so that no further one fits.",
                    "Another replica, more memory for the cache, an 8-bit cache, or shorter contexts.",
                )
            )
        elif waiting:
            found.append(
                Concern(
                    Severity.BAD if waiting >= load.requests_running else Severity.WARNING,
                    spec.name,
                    one.replica,
                    "requests wait in the engine's queue",
                    f"{waiting:,} wait while {load.requests_running:,} run of {seats:,} seats"
                    f" (`batching.max_num_seqs`); {full:.0%} of the KV cache is in use.",
                    "Another replica, a policy that sends less here, or limits on who sends so much.",
                )
            )
        elif full >= KV_TIGHT_RATIO:
            found.append(
                Concern(
                    Severity.WARNING,
                    spec.name,
                    one.replica,
                    "the KV cache is nearly full",
                    f"{full:.0%} is in use by {load.requests_running:,} requests: soon some will wait, or be"
                    " computed anew.",
                    "Another replica, more memory for the cache, or shorter contexts.",
                )
            )
    return found


def _balance(facts: PoolFacts) -> list[Concern]:
    loads = {
        one.replica: one.load.requests_running + one.load.requests_waiting
        for one in _ready(facts)
        if one.load is not None
    }
    spec = facts.snapshot.spec
    if len(loads) < 2:  # noqa: PLR2004 - two can be uneven
        return []
    mean = sum(loads.values()) / len(loads)
    return [
        Concern(
            Severity.WARNING,
            spec.name,
            replica,
            "the load is uneven",
            f"It has {load:,} requests, the pool's mean is {mean:.1f}.",
            "Conversations stay where their prefix is: a lower `replica_choice.load_factor` balances more.",
        )
        for replica, load in loads.items()
        if load > UNEVEN_RATIO * mean and load > spec.requests_at_ease
    ]


def _faults(facts: PoolFacts) -> list[Concern]:
    lately = facts.lately
    if lately.faults < FAULTS_MIN or lately.faults < FAULT_RATIO * lately.attempts:
        return []
    codes = ", ".join(f"{count:,} {code}" for code, count in list(lately.codes.items())[:4])
    return [
        Concern(
            Severity.BAD,
            facts.snapshot.spec.name,
            None,
            "requests fail here",
            f"{lately.faults:,} of {lately.attempts:,} attempts in {LATELY_MINUTES} min: {codes}. Each costs"
            " its caller the time until another target answers.",
            "Open them in Traffic; the replicas' last errors are below.",
        )
    ]


def _speed(facts: PoolFacts) -> list[Concern]:
    ratio = facts.step_ratio
    if ratio is None or ratio < SLOW_STEP_RATIO or facts.step_weight < WEIGHT_MIN:
        return []
    if facts.has_profile:
        return [
            Concern(
                Severity.WARNING,
                facts.snapshot.spec.name,
                None,
                "steps are slower than measured on the bench",
                f"A step takes {ratio:.1f} times what its profile says at this load.",
                "The hardware is shared, throttled or another one: `tollgate pools bench` measures it anew.",
            )
        ]
    return []


def _acceptance(facts: PoolFacts) -> list[Concern]:
    pool = facts.snapshot.spec.name
    found = []
    for one in facts.acceptance:
        if one.weight < WEIGHT_MIN or one.now - 1 >= ACCEPTANCE_KEPT * (one.usual - 1):
            continue
        found.append(
            Concern(
                Severity.WARNING,
                pool,
                None,
                f"acceptance of {one.task} has fallen",
                f"A step yields {one.now:.2f} tokens, {one.usual:.2f} is usual: more of what the draft"
                " proposes is thrown away, and each token takes longer.",
                "The requests have changed, or the draft no longer fits the model: see the heat map, and let"
                " the task go elsewhere by a rule.",
            )
        )
    for replica in _ready(facts):
        story = facts.stories.get(replica.replica)
        recent = None if story is None else story.recent
        known = [each.usual for each in facts.acceptance]
        if recent is None or recent.acceptance_length is None or not known:
            continue
        least = min(known)
        if recent.acceptance_length - 1 < ACCEPTANCE_KEPT * (least - 1):
            found.append(
                Concern(
                    Severity.WARNING,
                    pool,
                    replica.replica,
                    "acceptance of the last minute is low",
                    f"A step yields {recent.acceptance_length:.2f} tokens; for no task less than {least:.2f}"
                    " is usual.",
                    "See which tasks go there: what is creative belongs to a plain pool.",
                )
            )
    return found


def _targets(facts: PoolFacts) -> list[Concern]:
    targets, lately = facts.snapshot.spec.latency_targets, facts.lately
    if targets is None or targets.ttft_p95_ms is None or lately.ttft_p95_ms is None:
        return []
    if lately.ttft_p95_ms <= targets.ttft_p95_ms:
        return []
    queue = "" if lately.queue_p95_ms is None else f" (in the engine's queue {lately.queue_p95_ms:,.0f} ms)"
    return [
        Concern(
            Severity.WARNING,
            facts.snapshot.spec.name,
            None,
            "first tokens come later than the pool's target",
            f"95 of 100 come within {lately.ttft_p95_ms:,.0f} ms{queue}; the target is"
            f" {targets.ttft_p95_ms:,.0f} ms.",
            "See what else is listed here, else add a replica or change `latency_targets`.",
        )
    ]


def _restarts(facts: PoolFacts) -> list[Concern]:
    found = []
    for replica, story in facts.stories.items():
        fresh = [each for each in story.troubles if facts.now_ms - each.at_ms <= _RECENT_MS]
        state = next((one.state for one in facts.snapshot.replicas if one.replica == replica), None)
        if fresh and state is not ReplicaState.UNHEALTHY:
            found.append(
                Concern(
                    Severity.WARNING,
                    facts.snapshot.spec.name,
                    replica,
                    "a replica had trouble a moment ago",
                    f"{fresh[-1].text}" + (f" (and {len(fresh) - 1} more)" if len(fresh) > 1 else "") + ".",
                    "It is back. If it comes again, look at its log.",
                )
            )
    return found


def _profile(facts: PoolFacts) -> list[Concern]:
    if facts.has_profile:
        return []
    return [
        Concern(
            Severity.NOTE,
            facts.snapshot.spec.name,
            None,
            "nobody measured this pool",
            "Predictions begin with published figures of other hardware.",
            f"`tollgate pools bench {facts.snapshot.spec.name} --quick`, then name the file as `profile:`.",
        )
    ]


def _ready(facts: PoolFacts) -> list[ReplicaSnapshot]:
    return [one for one in facts.snapshot.replicas if one.state is ReplicaState.READY]
