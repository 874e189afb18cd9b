"""Is what is said of the last minute a difference of two looks, and nothing when there is none?"""

from __future__ import annotations

from dataclasses import replace

import pytest

from backends.pool import ReplicaLoad
from backends.recent import LoadHistory

FIRST = ReplicaLoad(
    requests_running=0,
    requests_waiting=0,
    kv_cache_usage_ratio=0.0,
    prompt_tokens_total=1_000_000,
    generation_tokens_total=500_000,
    prefix_cache_query_tokens_total=1_000_000,
    prefix_cache_hit_tokens_total=900_000,
    draft_steps_total=1000,
    draft_tokens_total=4000,
    accepted_tokens_total=3900,
    scraped_at_s=100.0,
)


def seen(*loads: ReplicaLoad) -> LoadHistory:
    history = LoadHistory()
    for load in loads:
        history.saw(load)
    return history


def later(by_s: float, **more: int) -> ReplicaLoad:
    grown = {name: getattr(FIRST, name) + by for name, by in more.items()}
    return replace(FIRST, scraped_at_s=FIRST.scraped_at_s + by_s, **grown)


def test_one_look_says_nothing() -> None:
    assert LoadHistory().recent() is None
    assert seen(FIRST).recent() is None


def test_the_engines_whole_life_does_not_count() -> None:
    now = later(
        30,
        prompt_tokens_total=300,
        generation_tokens_total=600,
        prefix_cache_query_tokens_total=300,
        prefix_cache_hit_tokens_total=30,
        draft_steps_total=100,
        draft_tokens_total=400,
        accepted_tokens_total=50,
    )
    recent = seen(FIRST, now).recent()
    assert recent is not None
    assert (recent.over_s, recent.input_tokens_per_s, recent.output_tokens_per_s) == (30, 10, 20)
    assert recent.prefix_hit_ratio == pytest.approx(0.1)
    assert recent.acceptance_length == pytest.approx(1.5)
    assert recent.acceptance_ratio == pytest.approx(0.125)


def test_what_is_older_than_a_minute_is_forgotten() -> None:
    looks = [
        later(second, generation_tokens_total=1000 if second >= 50 else 0) for second in range(0, 121, 1)
    ]
    recent = seen(*looks).recent()
    assert recent is not None
    assert 55 <= recent.over_s <= 60
    assert recent.output_tokens_per_s == 0


def test_where_nothing_was_asked_ratios_are_unknown_and_not_zero() -> None:
    recent = seen(FIRST, later(10)).recent()
    assert recent is not None
    assert (recent.prefix_hit_ratio, recent.acceptance_length, recent.acceptance_ratio) == (None, None, None)


def test_a_counter_that_went_back_is_another_process() -> None:
    young = later(20, prompt_tokens_total=-999_990, generation_tokens_total=-499_000)
    history = seen(FIRST, young)
    assert history.recent() is None
    history.saw(replace(young, scraped_at_s=130.0, generation_tokens_total=1500))
    recent = history.recent()
    assert recent is not None
    assert recent.output_tokens_per_s == 50
