"""What a pool file may not say."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from backends.pool import PoolSnapshot, ReplicaLoad, ReplicaSnapshot, ReplicaState
from tests.unit.backends.conftest import PoolMaker

EXTERNAL_MODEL = {"served_name": "reference", "max_model_len": 1024}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a b"}, "letters, digits"),
        ({"driver": "external"}, "needs 'urls'"),
        ({"urls": ["http://10.0.0.1:8000"]}, "'urls' is for driver 'external'"),
        ({"model": EXTERNAL_MODEL}, r"needs model\.path"),
        ({"rates": {"input": 0, "cached_input": 0, "output": 1}}, "above 0"),
        ({"batching": {"max_num_seqs": 64, "max_num_batched_tokens": 32}}, "at least max_num_seqs"),
        ({"speculation": {"method": "eagle3", "num_speculative_tokens": 3}}, "'eagle3' needs 'model'"),
        (
            {"speculation": {"method": "ngram", "model": "x", "num_speculative_tokens": 3}},
            "'ngram' takes no 'model'",
        ),
        ({"engine_args": {"--seed": 1}}, "without leading dashes: 'seed'"),
        ({"engine_args": {"max_model_len": 1}}, "cannot be set twice"),
        ({"engine_args": {"port": 1}}, "cannot be set twice"),
        ({"replicas": 0}, "greater than or equal to 1"),
        ({"hardware": {"gpu": "cpu", "usd_per_hour": 0}}, "greater than 0"),
    ],
)
def test_contradictions_are_refused(make_pool: PoolMaker, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_pool(**changes)


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
