"""Recorded /metrics of real servers, and texts that are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.pool import ReplicaLoad
from backends.scrape import NotVllmMetrics, parse_metrics

DATA = Path(__file__).parent / "data"


def recorded(name: str) -> str:
    return (DATA / name).read_text(encoding="utf-8")


def test_a_speculating_server_has_its_acceptance() -> None:
    load = parse_metrics(recorded("vllm-0.32.0-speculative.metrics.txt"), scraped_at_s=12.5)
    assert load == ReplicaLoad(
        requests_running=0,
        requests_waiting=0,
        kv_cache_usage_ratio=0.0,
        prompt_tokens_total=100,
        generation_tokens_total=61,
        prefix_cache_query_tokens_total=100,
        prefix_cache_hit_tokens_total=0,
        draft_steps_total=12,
        draft_tokens_total=48,
        accepted_tokens_total=48,
        scraped_at_s=12.5,
        engine_steps_total=16,
    )
    assert load.mean_acceptance_length == 5.0


def test_without_speculation_acceptance_is_unknown_and_not_zero() -> None:
    load = parse_metrics(recorded("vllm-0.32.0-plain.metrics.txt"), scraped_at_s=0.0)
    assert (load.draft_steps_total, load.draft_tokens_total, load.accepted_tokens_total) == (None, None, None)
    assert load.mean_acceptance_length is None
    assert load.generation_tokens_total == 61


def test_before_the_first_draft_there_is_no_acceptance_yet() -> None:
    text = recorded("vllm-0.32.0-speculative.metrics.txt")
    text = text.replace(
        'num_drafts_total{engine="0",model_name="tollgate-reference"} 12.0', "num_drafts_total 0"
    )
    load = parse_metrics(text, scraped_at_s=0.0)
    assert load.draft_steps_total == 0
    assert load.mean_acceptance_length is None


REQUIRED = """
vllm:num_requests_running{engine="0"} 3.0
vllm:num_requests_waiting{engine="0"} 1.0
vllm:prompt_tokens_total{engine="0"} 10.0
vllm:generation_tokens_total{engine="0"} 20.0
"""


def test_names_of_older_versions_are_understood() -> None:
    text = REQUIRED + "vllm:gpu_cache_usage_perc 0.25\nvllm:gpu_prefix_cache_hits_total 7\n"
    load = parse_metrics(text, scraped_at_s=0.0)
    assert load.kv_cache_usage_ratio == 0.25
    assert load.prefix_cache_hit_tokens_total == 7
    assert load.prefix_cache_query_tokens_total == 0


def test_engines_of_one_server_are_summed_and_the_fullest_cache_counts() -> None:
    second = REQUIRED.replace('engine="0"', 'engine="1"')
    text = (
        REQUIRED
        + second
        + 'vllm:kv_cache_usage_perc{engine="0"} 0.2\nvllm:kv_cache_usage_perc{engine="1"} 0.9\n'
    )
    load = parse_metrics(text, scraped_at_s=0.0)
    assert (load.requests_running, load.requests_waiting) == (6, 2)
    assert load.kv_cache_usage_ratio == 0.9


def test_not_a_number_is_no_number() -> None:
    load = parse_metrics(REQUIRED + "vllm:kv_cache_usage_perc NaN\n", scraped_at_s=0.0)
    assert load.kv_cache_usage_ratio == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "lacks vllm:num_requests_running"),
        ("<html>hello</html>", "is this a vLLM server"),
        (REQUIRED.replace("3.0", "three"), "not Prometheus text"),
        ('vllm:num_requests_running{engine="0', "not Prometheus text|lacks"),
    ],
)
def test_what_is_not_vllm_is_refused(text: str, expected: str) -> None:
    with pytest.raises(NotVllmMetrics, match=expected):
        parse_metrics(text, scraped_at_s=0.0)
