"""Does a replica that hangs or lies get found by the gateway and replaced by its driver, while others answer?

The real driver and the real gateway, mock engines: tests/vllm does it with vLLM itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from backends.pool import ReplicaState
from gateway.settings import HealthSettings, TimeoutSettings
from tests.integration.gateway.rig import Gateway, eventually, running, settings_for
from tests.support.mock_fleet import HASTY, MockFleet, mock_fleet, mock_pool, until, write_pool

# Nothing here depends on where keys and rows are kept.
pytestmark = pytest.mark.parametrize("home", ["embedded"], indirect=True)

READY: Final = ReplicaState.READY
WATCHFUL: Final = HealthSettings(
    poll_interval_s=0.1, stall_s=1, idle_probe_s=600, probe_timeout_s=2, backoff_s=0.1, backoff_s_max=0.2
)


@asynccontextmanager
async def twins(home: Path, urls: dict[str, list[str]]) -> AsyncIterator[tuple[Gateway, MockFleet]]:
    """A gateway whose plain pool has two replicas that a driver runs."""
    spec = mock_pool(replicas=2, replica_choice={"rule": "round_robin"})
    timeouts = TimeoutSettings(connect_s=20, first_token_s=5, between_tokens_s=5, total_s=60)
    settings = settings_for(home, {"speculative": urls["speculative"]}, health=WATCHFUL, timeouts=timeouts)
    write_pool(settings.pools, spec)
    async with mock_fleet(settings.state_dir, spec, health=HASTY) as fleet, running(settings) as gateway:
        await eventually(lambda: gateway.services.registry.snapshot("plain").ready_count == 2)
        yield gateway, fleet


async def asked_until(gateway: Gateway, holds: Any) -> list[httpx.Response]:
    """What callers get meanwhile, one after the other and two at once."""
    answers: list[httpx.Response] = []
    while not holds():
        pair = (gateway.chat(f"Tell me story {len(answers)} {number}") for number in range(2))
        answers += await asyncio.gather(*pair)
        await asyncio.sleep(0.05)
    return answers


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("hang", "hangs, nothing moved for"), ("garbage", "lies, /health says that it is well")],
)
async def test_it_is_replaced_and_every_caller_answered(
    home: Path, urls: dict[str, list[str]], fault: str, reason: str
) -> None:
    async with twins(home, urls) as (gateway, fleet):
        old = fleet.replica()
        fleet.control(fault=fault)
        answers = await asked_until(gateway, lambda: fleet.states().count(READY) > 1)
        assert {answer.status_code for answer in answers} == {200}
        assert fleet.details(ReplicaState.UNHEALTHY)[0].startswith(reason)
        assert fleet.replica().url != old.url
        await eventually(lambda: gateway.services.registry.snapshot("plain").ready_count == 2)
        story = gateway.services.registry.story("plain-0")
        assert story.restarts == 1
        assert any(trouble.text.startswith(reason) for trouble in story.troubles)
        await until(lambda: fleet.states("plain-1").count(READY) == 1)
