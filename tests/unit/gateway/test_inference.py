"""Do the nouns count and name as they say?"""

from __future__ import annotations

from datetime import UTC, timedelta

from gateway.clock import Clock
from gateway.inference import TokenUsage, new_id
from tests.support.clock import START, MovableClock


def test_a_usages_total_is_the_sum_of_its_meters() -> None:
    assert TokenUsage(1, 20, 300, 4_000, 50_000).total == 54_321


def test_ids_sort_by_time_and_never_repeat() -> None:
    ids = [new_id("req_", moment) for moment in (1, 255, 256, 1_795_000_000_000)]
    assert ids == sorted(ids)
    assert {len(each) for each in ids} == {4 + 12 + 20}
    assert len({new_id("req_", 5) for _ in range(100)}) == 100


def test_the_clock_is_the_machines() -> None:
    clock = Clock()
    assert clock.now().tzinfo is UTC
    assert abs(clock.now().timestamp() * 1000 - clock.epoch_ms()) < 60_000
    assert clock.monotonic_s() <= clock.monotonic_s()


def test_a_tests_clock_moves_all_its_faces_together() -> None:
    clock = MovableClock()
    before_ms, before_s = clock.epoch_ms(), clock.monotonic_s()
    clock.move(1.5)
    assert clock.epoch_ms() - before_ms == 1_500
    assert clock.monotonic_s() - before_s == 1.5
    assert clock.now() - START == timedelta(seconds=1.5)
