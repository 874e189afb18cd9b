"""What a pool file may not say."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from backends.choice import Rule
from backends.pool import PoolSnapshot, ReplicaLoad, ReplicaSnapshot, ReplicaState
from tests.unit.backends.conftest import PoolMaker

UNCACHED = {"max_num_seqs": 32, "max_num_batched_tokens": 2048, "enable_prefix_caching": False}
BATCHING = {"max_num_seqs": 32, "max_num_batched_tokens": 2048}
EXTERNAL_MODEL = {"served_name": "reference", "max_model_len": 1024}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a b"}, "letters, digits"),
        ({"driver": "external"}, "needs 'urls'"),
        ({"urls": ["http://10.0.0.1:8000"]}, "'urls' is for driver 'external'"),
        ({"model": EXTERNAL_MODEL}, r"needs model\.path"),
        ({"rates": {"input": 0, "cached_input": 0, "output": 1}}, "above 0"),
        ({"rates": None}, "either 'rates' .* or 'derived_rates'"),
        (
            {"derived_rates": {"utilisation": 1, "input_tokens_per_s": 9, "output_tokens_per_s": 9}},
            "either 'rates' .* or 'derived_rates'",
        ),
        (
            {"derived_rates": {"utilisation": 1.1, "input_tokens_per_s": 9, "output_tokens_per_s": 0}},
            r"less than or equal to 1(.|\n)*greater than 0",
        ),
        ({"batching": {"max_num_seqs": 64, "max_num_batched_tokens": 32}}, "at least max_num_seqs"),
        ({"speculation": {"method": "eagle3", "num_speculative_tokens": 3}}, "'eagle3' needs 'model'"),
        (
            {"speculation": {"method": "ngram", "model": "x", "num_speculative_tokens": 3}},
            "'ngram' takes no 'model'",
        ),
        ({"engine_args": {"--seed": 1}}, "without leading dashes: 'seed'"),
        ({"engine_args": {"max_model_len": 1}}, "cannot be set twice"),
        ({"engine_args": {"port": 1}}, "cannot be set twice"),
        ({"engine_args": {"tensor_parallel_size": 2}}, "cannot be set twice"),
        (
            {"speculation": {"method": "ngram", "num_speculative_tokens": 3, "quantization": "awq"}},
            "there are none",
        ),
        ({"replicas": 0}, "greater than or equal to 1"),
        ({"replica_choice": {"load_factor": 0.9}}, "greater than or equal to 1"),
        (
            {"replica_choice": {"rule": "random"}},
            "'affinity', 'least_loaded', 'two_choices' or 'round_robin'",
        ),
        ({"replica_choice": {"rule": "two_choices", "load_factor": 2}}, "load_factor is for rule 'affinity'"),
        (
            {"replica_choice": {"rule": "affinity"}, "batching": UNCACHED},
            r"batching\.enable_prefix_caching is off",
        ),
        (
            {"replica_choice": {"load_factor": 2}, "batching": UNCACHED},
            r"batching\.enable_prefix_caching is off",
        ),
        ({"hardware": {"gpu": "cpu", "usd_per_hour": 0}}, "greater than 0"),
        ({"kv_cache": {"memory_bytes": 9, "gpu_memory_utilization": 0.5}}, "say one of them"),
        ({"kv_cache": {"gpu_memory_utilization": 1.5}}, "less than or equal to 1"),
        (
            {"kv_cache": {"block_size": 32}, "engine_args": {"block_size": 16}},
            r"engine_args\.block_size and kv_cache\.block_size are one flag",
        ),
        ({"scheduling": "fcfs", "engine_args": {"scheduling-policy": "priority"}}, "are one flag"),
        ({"scheduling": "lifo"}, "'fcfs' or 'priority'"),
        ({"latency_targets": {}}, "needs ttft_p95_ms, tpot_p95_ms or both"),
        ({"expected_lengths": {"input_tokens": 0, "output_tokens": 1}}, "greater than 0"),
        ({"batching": {**BATCHING, "max_num_queued_reqs": 31}}, "counts running requests too"),
        ({"engine_args": {"speculative_config.method": "ngram"}}, "cannot be set twice"),
    ],
)
def test_contradictions_are_refused(make_pool: PoolMaker, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_pool(**changes)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ([], "at least 1 item"),
        ([[2, 8, 3]], r"\[2, 8, 3\] does not fit"),
        ([[1, 8, 3], [8, 16, 1]], r"\[8, 16, 1\] does not fit"),
        ([[1, 8, 3], [32, 16, 1]], r"\[32, 16, 1\] does not fit"),
        ([[1, 8, 5]], "5 tokens for a batch of 1"),
        ([[1, 8, -1]], "-1 tokens for a batch of 1"),
        ([[1, 8]], "Field required"),
    ],
)
def test_a_schedule_of_draft_tokens_covers_every_batch_once(
    make_pool: PoolMaker, schedule: list[list[int]], message: str
) -> None:
    speculation = {"method": "ngram", "num_speculative_tokens": 4}
    with pytest.raises(ValidationError, match=message):
        make_pool(speculation={**speculation, "num_speculative_tokens_per_batch_size": schedule})


@pytest.mark.parametrize(
    ("passed_on", "message"),
    [
        ({"method": "ngram"}, "is a key of speculation itself"),
        ({"rejection_sample_method": "synthetic"}, "answers would be wrong"),
        ({"synthetic_acceptance_length": 3}, "answers would be wrong"),
    ],
)
def test_what_speculation_passes_on_to_vllm(
    make_pool: PoolMaker, passed_on: dict[str, Any], message: str
) -> None:
    ngram = {"method": "ngram", "num_speculative_tokens": 4}
    make_pool(speculation=ngram | {"engine_args": {"disable_padded_drafter_batch": True}})
    with pytest.raises(ValidationError, match=message):
        make_pool(speculation=ngram | {"engine_args": passed_on})


def test_suffix_decoding_takes_no_schedule(make_pool: PoolMaker) -> None:
    speculation = {
        "method": "suffix",
        "num_speculative_tokens": 4,
        "num_speculative_tokens_per_batch_size": [[1, 8, 3]],
    }
    with pytest.raises(ValidationError, match="varies its tokens itself"):
        make_pool(speculation=speculation)


GPUS = {"gpu": "A100-80GB", "gpus_per_replica": 2, "tensor_parallel_size": 2, "usd_per_hour": "5"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hardware": GPUS | {"gpus_per_replica": 0}}, "gpus_per_replica is 0, but .* starts on 2"),
        ({"engine_args": {"pipeline_parallel_size": 2}}, "gpus_per_replica is 2, but .* starts on 4"),
        ({"hardware": GPUS | {"data_parallel_size": 3}}, "gpus_per_replica is 2, but .* starts on 6"),
        ({"engine_args": {"data_parallel_size": "all"}}, "whole number for data-parallel-size"),
        ({"engine_args": {"device_ids": "0"}}, "expected replicas 1 and 2 of them"),
        ({"engine_args": {"device_ids": "0,1"}, "replicas": 2}, "expected replicas 1 and 2 of them"),
    ],
)
def test_the_gpus_of_a_replica_are_the_ones_it_starts_on(
    make_pool: PoolMaker, changes: dict[str, Any], message: str
) -> None:
    assert make_pool(hardware=GPUS, engine_args={"device_ids": "0,1"}).hardware.gpus_per_replica == 2
    with pytest.raises(ValidationError, match=message):
        make_pool(**{"hardware": GPUS, **changes})


@pytest.mark.parametrize(
    ("method", "size", "message"),
    [("draft_model", 1, "only on as many GPUs as the target"), ("eagle3", 4, "must be 1 or 2")],
)
def test_a_draft_runs_on_gpus_that_vllm_can_give_it(
    make_pool: PoolMaker, method: str, size: int, message: str
) -> None:
    def speculation(wanted: int) -> dict[str, object]:
        draft = {"method": method, "model": "/weights/draft", "num_speculative_tokens": 3}
        return {**draft, "draft_tensor_parallel_size": wanted}

    make_pool(hardware=GPUS, speculation=speculation(2))
    with pytest.raises(ValidationError, match=message):
        make_pool(hardware=GPUS, speculation=speculation(size))


@pytest.mark.parametrize(
    "url", ["10.0.0.1:8000", "ftp://x", "http://x/v1", "http://x/v1/", "http://x?a=1", "http://"]
)
def test_a_base_url_is_a_base_url(make_pool: PoolMaker, url: str) -> None:
    with pytest.raises(ValidationError, match="expected a base URL"):
        make_pool(driver="external", urls=[url], model=EXTERNAL_MODEL)


def test_a_base_url_loses_its_trailing_slash(make_pool: PoolMaker) -> None:
    spec = make_pool(driver="external", urls=["https://gpu.example/pool/"], model=EXTERNAL_MODEL)
    assert spec.urls == ("https://gpu.example/pool",)


def test_ready_replicas_are_counted(make_pool: PoolMaker) -> None:
    replicas = tuple(
        ReplicaSnapshot("plain", f"plain-{index}", "http://x", state, 0, None, 0)
        for index, state in enumerate(ReplicaState)
    )
    assert PoolSnapshot(make_pool(), replicas).ready_count == 1


@pytest.mark.parametrize(
    ("drafts", "accepted", "length"), [(None, None, None), (0, 0, None), (10, 25, 3.5), (10, 0, 1.0)]
)
def test_the_acceptance_length_counts_the_bonus_token(
    drafts: int | None, accepted: int | None, length: float | None
) -> None:
    load = ReplicaLoad(0, 0, 0.0, 0, 0, 0, 0, drafts, drafts, accepted, 0.0)
    assert load.mean_acceptance_length == length


def test_affinity_is_the_rule_where_prefixes_are_cached(make_pool: PoolMaker) -> None:
    assert make_pool().choice_rule is Rule.AFFINITY
    assert make_pool(batching=UNCACHED).choice_rule is Rule.LEAST_LOADED
    assert make_pool(replica_choice={"rule": "round_robin"}).choice_rule is Rule.ROUND_ROBIN


@pytest.mark.parametrize(("batch", "at_ease"), [(1, 1), (4, 1), (16, 4), (32, 8), (1024, 8)])
def test_a_few_requests_are_never_too_many(make_pool: PoolMaker, batch: int, at_ease: int) -> None:
    pool = make_pool(batching={"max_num_seqs": batch, "max_num_batched_tokens": 2048})
    assert pool.requests_at_ease == at_ease
