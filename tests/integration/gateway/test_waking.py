"""What does a caller see of a pool that sleeps, and who pays for waking and warming it?

The real driver, mock engines in place of vLLM: sleep levels need a GPU, which vLLM's CPU build has not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from sqlalchemy import select
from sqlmodel import col

from backends.pool import PoolSpec, ReplicaState
from gateway.ledger.findings import Extent
from gateway.ledger.invariants import examine
from gateway.ledger.reports import PLATFORM_TENANT
from gateway.ledger.tables import Attempt
from tests.integration.gateway.rig import Gateway, eventually, running, settings_for
from tests.support.mock_fleet import MockFleet, mock_fleet, mock_pool, write_pool
from tests.support.mock_process import MockVllm

# Nothing here depends on where keys and rows are kept.
pytestmark = pytest.mark.parametrize("home", ["embedded"], indirect=True)

STORY: Final = "Tell me a story"
ONLY_PLAIN: Final = "tollgate-reference-plain"


@asynccontextmanager
async def asleep(
    home: Path, spec: PoolSpec, urls: dict[str, list[str]], *, wake_s: float
) -> AsyncIterator[tuple[Gateway, MockFleet]]:
    """A gateway whose plain pool has fallen asleep; the speculative one is awake."""
    settings = settings_for(home, {"speculative": urls["speculative"]})
    write_pool(settings.pools, spec)
    async with (
        mock_fleet(settings.state_dir, spec, flags=("--sleep-mode", str(wake_s))) as fleet,
        # It may be asleep before the gateway is up.
        running(settings, is_up=False) as gateway,
    ):
        registry = gateway.services.registry
        await eventually(lambda: registry.snapshot("speculative").ready_count)
        await fleet.until(ReplicaState.SLEEPING)
        await eventually(
            lambda: [one.state for one in registry.snapshot("plain").replicas] == [ReplicaState.SLEEPING]
        )
        yield gateway, fleet


def sleeper(**sleep: Any) -> PoolSpec:
    return mock_pool(sleep={"after_idle_s": 3, "level": 1, **sleep})


def pool_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.headers["x-tollgate-pool"]


async def test_callers_wait_for_one_wake_and_the_platform_pays_for_what_it_took(
    home: Path, urls: dict[str, list[str]]
) -> None:
    async with asleep(home, sleeper(), urls, wake_s=0.5) as (gateway, fleet):
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(gateway.chat(f"{STORY} {number}", stream=bool(number % 2)))
                for number in range(20)
            ]
        assert {pool_of(each.result()) for each in asked} == {"plain"}
        assert (fleet.stats()["wakes"], fleet.stats()["wakes_at_once"]) == (1, 1)
        assert gateway.services.waker.waited == {"plain": 20}
        assert (gateway.services.registry.awaited, gateway.services.waker.waiting["plain"]) == (0, 0)
        rows = await gateway.rows(20)
        assert {row.payer for row in rows} == {"tenant"}
        await _assert_every_token_is_booked(gateway, fleet)


async def _assert_every_token_is_booked(gateway: Gateway, fleet: MockFleet) -> None:
    """Tenants' tokens and the platform's are together what the engine counted."""
    upkeep = {each.id for each in fleet.published.upkeep}
    async with gateway.services.sessions() as session:
        rows = list((await session.execute(select(Attempt).where(col(Attempt.pool) == "plain"))).scalars())
        report = [
            finding
            async for finding in examine(
                session, Extent(since_ms=0, now_ms=gateway.services.clock.epoch_ms(), grace_ms=0)
            )
        ]
    ours = [row for row in rows if row.tenant_id == PLATFORM_TENANT]
    assert {f"att_{each}" for each in upkeep} <= {row.attempt_id for row in ours}
    assert {(row.payer, row.state, row.usage_source) for row in ours} == {
        ("platform", "answered", "measured")
    }
    assert {row.task for row in ours} == {"warm_up", "heartbeat"}
    read = sum(row.input_tokens + row.cached_input_tokens for row in rows)
    seen = fleet.stats()
    assert (read, sum(row.output_tokens for row in rows)) == (
        seen["prompt_tokens"],
        seen["completion_tokens"],
    )
    assert [finding for finding in report if finding.breaches] == []


async def test_who_may_not_wait_goes_on_and_the_pool_is_woken_for_the_next(
    home: Path, urls: dict[str, list[str]], speculative: MockVllm
) -> None:
    del speculative
    async with asleep(home, sleeper(wake_s=60), urls, wake_s=0.3) as (gateway, fleet):
        assert pool_of(await gateway.chat(STORY)) == "speculative"
        assert gateway.services.waker.went_on == {"plain": 1}
        await eventually(lambda: gateway.services.registry.snapshot("plain").ready_count)
        assert pool_of(await gateway.chat(STORY)) == "plain"
        wake_s = fleet.replica().wake_s
        assert wake_s is not None
        assert wake_s < 60, "what was measured counts for more than what was said"


async def test_where_nothing_else_serves_a_caller_is_told_when_to_come_back(
    home: Path, urls: dict[str, list[str]]
) -> None:
    async with asleep(home, sleeper(wake_s=60), urls, wake_s=0.3) as (gateway, _):
        refused = await gateway.chat(STORY, model=ONLY_PLAIN)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_target")
        assert 50 <= int(refused.headers["retry-after"]) <= 60
        await eventually(lambda: gateway.services.registry.snapshot("plain").ready_count)
        assert pool_of(await gateway.chat(STORY, model=ONLY_PLAIN)) == "plain"


async def test_only_so_many_wait(home: Path, urls: dict[str, list[str]]) -> None:
    async with asleep(home, sleeper(waiting_max=2), urls, wake_s=1) as (gateway, _):
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(gateway.chat(f"{STORY} {number}", model=ONLY_PLAIN)) for number in range(5)
            ]
        assert sorted(each.result().status_code for each in asked) == [200, 200, 503, 503, 503]


async def test_operators_see_who_sleeps(
    home: Path, urls: dict[str, list[str]], speculative: MockVllm
) -> None:
    async with asleep(home, sleeper(), urls, wake_s=0.3) as (gateway, _):
        found = (await gateway.client.get("/admin/v1/pools", headers=gateway.admin)).json()
        (plain,) = (each for each in found["data"] if each["name"] == "plain")
        (replica,) = plain["replicas"]
        assert (plain["ready"], plain["asleep"], replica["state"]) == (0, 1, "sleeping")
        assert replica["detail"].startswith("sleeps at level 1 after")
        assert (replica["wake_s"], replica["restarts"]) == (5, 0)
        speculative.fault("unhealthy")
        await eventually(lambda: not gateway.services.registry.snapshot("speculative").ready_count)
        # Else nothing would be sent here any more, and nothing would ever wake.
        assert (await gateway.client.get("/readyz")).status_code == 200
        page = (await gateway.client.get("/metrics", headers=gateway.admin)).text
        assert 'tollgate_pool_asleep_replicas{pool="plain"} 1.0' in page
        assert 'tollgate_upkeep_tokens_total{kind="warm_up",pool="plain"}' in page
