"""Pools for tests that need one but not a particular one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from backends.pool import PoolSpec

PoolMaker = Callable[..., PoolSpec]


@pytest.fixture
def make_pool() -> PoolMaker:
    def make(name: str = "plain", **changes: Any) -> PoolSpec:
        document: dict[str, Any] = {
            "name": name,
            "driver": "process",
            "model": {"path": "/weights/target", "served_name": "reference", "max_model_len": 1024},
            "batching": {"max_num_seqs": 32, "max_num_batched_tokens": 2048},
            "hardware": {"gpu": "cpu", "usd_per_hour": "0.12"},
            "rates": {"input": "0.10", "cached_input": "0.01", "output": "0.60"},
        }
        return PoolSpec.model_validate(document | changes)

    return make
