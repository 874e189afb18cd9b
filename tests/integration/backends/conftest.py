"""A fleet of stand-in servers, with all waits shortened."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backends.launch.process import LaunchTimes
from backends.pool import PoolSpec

REPOSITORY = Path(__file__).parents[3]
TINY_REPLICA = REPOSITORY / "tests" / "support" / "tiny_replica.py"

TIMES = LaunchTimes(
    start_up_budget_s=30,
    stop_grace_s=1.0,
    poll_interval_s=0.05,
    look_interval_s=0.05,
    notice_s=0.1,
    drain_s=1.0,
    still_s=0.2,
    wish_interval_s=0.02,
    # More than a guard takes to end the engine of a server that crashed, so that a crash is told as one.
    unresponsive_after_s=4.0,
    backoff_first_s=0.1,
    backoff_max_s=0.4,
    settled_after_s=60,
)


def tiny_argv(*flags: str) -> Callable[[PoolSpec, int], list[str]]:
    """A command line builder for ProcessFleet: the stand-in with these flags."""
    return lambda _, port: [sys.executable, str(TINY_REPLICA), "--port", str(port), *flags]


def pool_named(name: str, *, replicas: int = 1) -> PoolSpec:
    return PoolSpec.model_validate(
        {
            "name": name,
            "driver": "process",
            "replicas": replicas,
            "model": {"path": "weights", "served_name": "reference", "max_model_len": 1024},
            "batching": {"max_num_seqs": 32, "max_num_batched_tokens": 2048},
            "hardware": {"gpu": "cpu", "usd_per_hour": "0.12"},
            "rates": {"input": "0.10", "cached_input": "0.01", "output": "0.60"},
        }
    )


def eventually(holds: Callable[[], object], *, within_s: float = 60.0) -> None:
    """Wait until it holds; for things that happen in other processes."""
    deadline_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline_s, "did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"
