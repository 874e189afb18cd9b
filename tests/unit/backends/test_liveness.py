"""A hung engine is told from a slow one by what moves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backends.liveness import BLIND_PROBES, HealthRule, Liveness
from backends.pool import ReplicaLoad

RULE = HealthRule(stall_s=20, idle_probe_s=60, probe_timeout_s=30)
LOAD = ReplicaLoad(1, 0, 0.5, 100, 200, 0, 0, None, None, None, 0.0, 7)


def watched() -> Liveness:
    liveness = Liveness(RULE, 0.0)
    liveness.saw(LOAD, 0.0)
    return liveness


def test_a_busy_engine_that_stands_still_is_doubted_and_dead_without_a_token() -> None:
    liveness = watched()
    for now_s in range(1, 20):
        liveness.saw(replace(LOAD, requests_waiting=now_s), now_s)  # a queue grows before a hung engine too
        assert not liveness.is_doubtful(now_s, is_busy=True)
    assert liveness.is_doubtful(20, is_busy=True)
    assert liveness.is_dead(20, 50)


@pytest.mark.parametrize(
    "moved",
    [
        {"generation_tokens_total": 201},
        {"prompt_tokens_total": 101},
        {"engine_steps_total": 8},
        {"requests_running": 2},
        {"kv_cache_usage_ratio": 0.500001},  # one chunk of a long prefill
    ],
)
def test_whatever_moves_is_a_sign_of_life(moved: dict[str, float]) -> None:
    liveness = watched()
    liveness.saw(replace(LOAD, **moved), 19)  # type: ignore[arg-type]
    assert not liveness.is_doubtful(38, is_busy=True)
    assert liveness.is_doubtful(39, is_busy=True)


def test_a_slow_prefill_that_moves_while_the_probe_waits_is_no_death() -> None:
    liveness = watched()
    assert liveness.is_doubtful(25, is_busy=True)
    liveness.saw(replace(LOAD, kv_cache_usage_ratio=0.6), 40)
    assert not liveness.is_dead(25, 55)
    assert not liveness.is_doubtful(55, is_busy=True)


def test_an_idle_engine_is_asked_now_and_then() -> None:
    liveness = watched()
    assert not liveness.is_doubtful(59, is_busy=False)
    assert liveness.is_doubtful(90, is_busy=False)
    liveness.alive(90)
    assert not liveness.is_doubtful(149, is_busy=False)
    assert liveness.is_dead(200, 230)


def test_of_an_engine_without_metrics_it_takes_three_silent_probes() -> None:
    liveness = Liveness(RULE, 0.0)
    now_s = 0.0
    for number in range(1, BLIND_PROBES + 1):
        assert not liveness.is_doubtful(now_s + 59, is_busy=True), "stall_s is for what can be seen"
        now_s += 90
        assert liveness.is_doubtful(now_s, is_busy=True)
        assert liveness.is_dead(now_s, now_s) is (number == BLIND_PROBES)
    liveness.alive(now_s)
    assert not liveness.is_dead(now_s + 90, now_s + 120)


def test_a_probe_that_a_full_queue_refuses_at_once_is_no_death() -> None:
    liveness = watched()
    liveness.saw(replace(LOAD, generation_tokens_total=201), 30)
    assert not liveness.is_dead(30.2, 30.3)
    assert liveness.is_dead(30.2, 51)
