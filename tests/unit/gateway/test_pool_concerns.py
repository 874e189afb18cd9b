"""Is an on-call told why a pool is slow, and nothing where it is not?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backends.breaker import BreakerState, Standing
from backends.pool import PoolSnapshot, ReplicaLoad, ReplicaState
from backends.pool_sections import LatencyTargets
from backends.recent import RecentLoad
from backends.registry import Story, Trouble
from gateway.ledger.pool_history import PoolLately
from gateway.pool_concerns import Concern, PoolFacts, Severity, TaskAcceptance, concerns_of
from tests.support.factories import make_pool

NOW_MS = 1_795_867_200_000
QUIET = PoolLately(100, 0, ttft_p95_ms=80.0, queue_p95_ms=5.0)


def load(running: int = 2, waiting: int = 0, kv: float = 0.1) -> ReplicaLoad:
    return ReplicaLoad(running, waiting, kv, 0, 0, 0, 0, None, None, None, 0.0)


def loaded(pool: PoolSnapshot, *loads: ReplicaLoad) -> PoolSnapshot:
    replicas = [replace(one, load=each) for one, each in zip(pool.replicas, loads, strict=True)]
    return replace(pool, replicas=tuple(replicas))


def story(*, recent: RecentLoad | None = None, troubles: tuple[Trouble, ...] = ()) -> Story:
    return Story(since_s=100.0, restarts=None, troubles=troubles, recent=recent, wake_s=None)


def found(pool: PoolSnapshot, **facts: Any) -> list[Concern]:
    stories = facts.pop("stories", {one.replica: story() for one in pool.replicas})
    known: dict[str, Any] = {"lately": QUIET, "has_profile": True} | facts
    return concerns_of(PoolFacts(pool, stories, NOW_MS, 1_000.0, **known))


def told(*concerns: Concern) -> list[tuple[str, str]]:
    return [(one.severity.value, one.title) for one in concerns]


def test_a_quiet_pool_has_no_concern() -> None:
    pool = loaded(make_pool("plain", ready=2), load(), load())
    assert found(pool, step_ratio=1.1, step_weight=50.0) == []


def test_without_replicas_and_without_a_profile() -> None:
    assert told(*found(make_pool("plain", ready=0), has_profile=False)) == [
        ("bad", "no replica is known"),
        ("note", "nobody measured this pool"),
    ]


def test_a_replica_that_is_out_says_why_and_when_it_is_tried_again() -> None:
    pool = make_pool("plain", ready=0, down=1)
    out = replace(
        pool.replicas[0],
        detail="3 failures in a row: timed out",
        breaker=Standing(state=BreakerState.OPEN, opened=2, retry_at_s=1_007.5),
    )
    concerns = found(replace(pool, replicas=(out,)))
    assert told(*concerns) == [
        ("bad", "no replica can take a request"),
        ("bad", "a replica gets no requests"),
    ]
    assert (
        concerns[1].cause == "Circuit breaker open: 3 failures in a row: timed out; it is tried again in 8 s."
    )


@pytest.mark.parametrize(
    ("seen", "severity", "title"),
    [
        (load(8, 20, 0.4), Severity.BAD, "requests wait in the engine's queue"),
        (load(8, 3, 0.4), Severity.WARNING, "requests wait in the engine's queue"),
        (load(4, 3, 0.97), Severity.BAD, "the KV cache is full"),
        (load(4, 0, 0.9), Severity.WARNING, "the KV cache is nearly full"),
    ],
)
def test_queue_and_cache(seen: ReplicaLoad, severity: Severity, title: str) -> None:
    (one,) = found(loaded(make_pool("plain"), seen))
    assert (one.severity, one.title, one.replica) == (severity, title, "plain-0")
    assert f"{seen.requests_running}" in one.cause


def test_uneven_load_is_named_by_replica() -> None:
    pool = loaded(make_pool("plain", ready=3), load(8), load(0), load(1))
    (one,) = found(pool)
    assert (one.replica, one.title) == ("plain-0", "the load is uneven")
    assert "8 requests, the pool's mean is 3.0" in one.cause


def test_failures_slow_steps_and_missed_targets() -> None:
    lately = PoolLately(100, 5, {"upstream_timeout": 4, "upstream_unavailable": 1}, 50.0, 900.0, 700.0)
    pool = loaded(make_pool("plain", latency_targets=LatencyTargets(ttft_p95_ms=500)), load())
    concerns = found(pool, lately=lately, step_ratio=1.8, step_weight=30.0)
    assert told(*concerns) == [
        ("bad", "requests fail here"),
        ("warning", "steps are slower than measured on the bench"),
        ("warning", "first tokens come later than the pool's target"),
    ]
    assert "4 upstream_timeout, 1 upstream_unavailable" in concerns[0].cause
    assert "1.8 times" in concerns[1].cause
    assert "within 900 ms (in the engine's queue 700 ms); the target is 500 ms" in concerns[2].cause


def test_fallen_acceptance_by_task_and_of_the_last_minute() -> None:
    recent = RecentLoad(60.0, 1.0, 10.0, None, acceptance_length=1.3, acceptance_ratio=0.1)
    pool = loaded(make_pool("speculative"), load())
    concerns = found(
        pool,
        stories={"speculative-0": story(recent=recent)},
        acceptance=[
            TaskAcceptance("extraction", 1.9, 3.8, 40.0),
            TaskAcceptance("chat", 2.0, 2.1, 40.0),
            TaskAcceptance("code", 1.0, 3.0, 1.0),  # one request says nothing
        ],
    )
    assert told(*concerns) == [
        ("warning", "acceptance of extraction has fallen"),
        ("warning", "acceptance of the last minute is low"),
    ]
    assert "1.90 tokens, 3.80 is usual" in concerns[0].cause


def test_trouble_of_a_moment_ago_is_told_and_old_trouble_is_not() -> None:
    pool = loaded(make_pool("plain", ready=2), load(), load())
    stories = {
        "plain-0": story(troubles=(Trouble(NOW_MS - 5_000, "its engine hung"),)),
        "plain-1": story(troubles=(Trouble(NOW_MS - 7_200_000, "long ago"),)),
    }
    (one,) = found(pool, stories=stories)
    assert (one.replica, one.cause) == ("plain-0", "its engine hung.")


def test_calls_that_wait_for_a_sleeping_replica() -> None:
    pool = make_pool("plain")
    asleep = replace(pool, replicas=(replace(pool.replicas[0], state=ReplicaState.SLEEPING),))
    assert told(*found(asleep, waiting_for_wake=2)) == [("warning", "requests wait for a replica to wake")]
