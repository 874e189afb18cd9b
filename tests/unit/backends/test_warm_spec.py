"""What may a pool file say about warmth and sleep, and what is it told when it is wrong?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from backends.launch.command import vllm_argv, vllm_environment
from backends.pool import PoolSpec
from backends.warm_spec import SleepSpec
from tests.support.mock_fleet import mock_pool

CPU: dict[str, Any] = {"gpu": "cpu", "usd_per_hour": "0.12"}


def test_a_pool_that_says_nothing_warms_up_and_never_sleeps() -> None:
    spec = mock_pool()
    assert (spec.keep_warm.warm_up, spec.keep_warm.warm_up_s, spec.sleep) == (None, 120, None)


@pytest.mark.parametrize(
    ("sleep", "more", "complaint"),
    [
        ({"level": 1, "scale_to_zero": True}, {}, "either 'level' (1 or 2) or 'scale_to_zero: true'"),
        ({}, {}, "either 'level' (1 or 2) or 'scale_to_zero: true'"),
        ({"level": 3}, {}, "1 or 2"),
        ({"level": 1}, {"hardware": CPU}, "vLLM has no sleep mode on a CPU"),
        ({"level": 1, "awake_min": 2}, {"replicas": 2}, "so none would ever sleep"),
        ({"level": 1, "after_idel_s": 3}, {}, "after_idel_s"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(
    sleep: dict[str, Any], more: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        mock_pool(sleep={"after_idle_s": 60, **sleep}, **more)
    assert complaint in str(caught.value)


def test_servers_of_somebody_else_are_not_put_to_sleep() -> None:
    external = {
        **mock_pool().model_dump(exclude={"model", "sleep", "hardware"}),
        "driver": "external",
        "urls": ["http://10.0.0.7:8000"],
        "model": {"served_name": "m", "max_model_len": 1024},
        "hardware": CPU,
        "sleep": {"after_idle_s": 60, "scale_to_zero": True},
    }
    with pytest.raises(ValidationError, match="which someone else runs"):
        PoolSpec.model_validate(external)


def test_latency_classes_wait_each_for_its_own_time() -> None:
    wait = SleepSpec(after_idle_s=1, level=1).wait_s
    assert [wait.of(each) for each in ("priority", "default", "auto", "flex")] == [2, 15, 15, 120]


def test_sleep_mode_is_asked_for_where_only_the_machine_itself_can_reach_it() -> None:
    spec = mock_pool(sleep={"after_idle_s": 60, "level": 2})
    assert "--enable-sleep-mode" in vllm_argv(spec, python=Path("python"), port=1)
    assert vllm_environment(spec, is_cpu=False)["VLLM_SERVER_DEV_MODE"] == "1"
    assert "--enable-sleep-mode" in vllm_argv(spec, python=Path("python"), port=1, host="10.0.0.7")
    for host in ("0.0.0.0", "8.8.8.8", "engine.example.com"):  # noqa: S104 - refused
        with pytest.raises(ValueError, match="must not listen"):
            vllm_argv(spec, python=Path("python"), port=1, host=host)


@pytest.mark.parametrize("sleep", [None, {"after_idle_s": 60, "scale_to_zero": True}])
def test_nobody_else_opens_the_development_endpoints(sleep: dict[str, Any] | None) -> None:
    spec = mock_pool(sleep=sleep)
    assert "--enable-sleep-mode" not in vllm_argv(spec, python=Path("python"), port=1)
    assert "VLLM_SERVER_DEV_MODE" not in vllm_environment(spec, is_cpu=False)
