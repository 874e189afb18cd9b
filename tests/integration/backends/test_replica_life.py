"""What does the driver do for a replica that is cold, hangs, lies, crashes again and again, or is not needed?

Real processes, mock engines: what vLLM itself does under this driver is in tests/vllm.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from backends.launch.guard import session_members
from backends.liveness import HealthRule
from backends.pool import PoolSpec, ReplicaState
from backends.upkeep import UpkeepKind
from tests.support.mock_fleet import HASTY, PATIENCE_S, MockFleet, mock_fleet, mock_pool, until

READY, DRAINING, SLEEPING = ReplicaState.READY, ReplicaState.DRAINING, ReplicaState.SLEEPING
UNHEALTHY, WAKING = ReplicaState.UNHEALTHY, ReplicaState.WAKING
CHAT = {"model": "tollgate-reference", "messages": [{"role": "user", "content": "Tell me a story"}]}
HUNG = {"fault": "hang"}


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:  # noqa: TID251 - a test
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as client:  # noqa: TID251 - a test
        yield client


async def chat(
    client: httpx.AsyncClient,  # noqa: TID251 - a test
    fleet: MockFleet,
    name: str = "plain-0",
    **fields: object,
) -> httpx.Response:
    url = fleet.replica(name).url
    return await client.post(f"{url}/v1/chat/completions", json={**CHAT, **fields})


async def until_in_flight(fleet: MockFleet) -> None:
    await until(lambda: fleet.stats()["in_flight"])


def states_in(fleet: MockFleet) -> set[ReplicaState]:
    return {one.state for one in fleet.published.replicas}


# ------------------------------------------------------------------------------------------------ warm-up
async def test_a_replica_is_ready_once_it_has_answered_what_matters(state_dir: Path) -> None:
    async with mock_fleet(state_dir, mock_pool()) as fleet:
        seen = fleet.stats()
        assert seen["paths"]["/v1/chat/completions"] == 1
        # One token, one that is drawn, eight at once, one under a schema, one near the batching limit.
        assert seen["paths"]["/v1/completions"] == 12
        assert seen["completed"] == 13
        (warm,) = fleet.published.upkeep
        assert (warm.kind, warm.pool, warm.replica) == (UpkeepKind.WARM_UP, "plain", "plain-0")
        assert warm.tokens.input + warm.tokens.cached_input == seen["prompt_tokens"] > 512
        assert warm.tokens.output == seen["completion_tokens"]
        assert "5 kinds of requests" in fleet.replica().detail


async def test_warming_up_can_be_left_out(state_dir: Path) -> None:
    async with mock_fleet(state_dir, mock_pool(keep_warm={"warm_up": False})) as fleet:
        assert fleet.stats()["completed"] == 1
        assert [each.kind for each in fleet.published.upkeep] == [UpkeepKind.HEARTBEAT]


async def test_a_warm_up_that_takes_too_long_is_cut_and_the_replica_serves(state_dir: Path) -> None:
    pool = mock_pool(keep_warm={"warm_up_s": 0.3})
    async with mock_fleet(state_dir, pool, flags=("--ttft-ms", "250")) as fleet:
        assert fleet.replica().state is READY
        assert fleet.replica().detail.endswith("cut short")


# -------------------------------------------------------------------------------------- hung, lying, slow
async def test_a_hung_replica_is_found_and_replaced(
    state_dir: Path,
    client: httpx.AsyncClient,  # noqa: TID251 - a test
) -> None:
    async with mock_fleet(state_dir, mock_pool(), health=HASTY) as fleet:
        old = fleet.replica()
        fleet.control(**HUNG, gauges={"num_requests_running": 1})
        assert (await client.get(f"{old.url}/health")).status_code == 200
        await fleet.until(READY, count=2)
        new = fleet.replica()
        assert (new.url != old.url, session_members(old.pid)) == (True, [])
        assert (await chat(client, fleet)).status_code == 200
        assert fleet.details(UNHEALTHY)[0].startswith("hangs, nothing moved for")
        assert (new.restarts, len(new.errors)) == (1, 1)
        # Nothing moved, so nothing was waited for.
        assert DRAINING not in fleet.states()


async def test_a_gateways_finding_saves_the_driver_its_own_probe_of_an_engine_with_work(
    state_dir: Path,
) -> None:
    async with mock_fleet(state_dir, mock_pool(), health=HASTY) as fleet:
        fleet.control(**HUNG, gauges={"num_requests_running": 1})
        await asyncio.sleep(HASTY.stall_s * 1.2)
        fleet.fleet.asks.examine("plain-0", "hangs, nothing moved for 1 s: no token")
        await fleet.until(READY, count=2)
        assert fleet.details(UNHEALTHY)[0].startswith("hangs, nothing moved for 1 s: no token")


async def test_an_idle_engine_is_examined_before_a_gateways_word_counts(state_dir: Path) -> None:
    """One that hung while it was idle counts nobody's request, and one that is well does not move either."""
    async with mock_fleet(state_dir, mock_pool(), health=HASTY) as fleet:
        fleet.control(**HUNG)
        await asyncio.sleep(HASTY.stall_s * 1.2)
        assert fleet.replica().state is READY
        fleet.fleet.asks.examine("plain-0", "hangs, nothing moved for 1 s: no token")
        await fleet.until(READY, count=2)
        assert "one-token completion: ReadTimeout" in fleet.details(UNHEALTHY)[0]


async def test_a_gateway_that_is_wrong_costs_a_token_and_nothing_else(state_dir: Path) -> None:
    async with mock_fleet(state_dir, mock_pool()) as fleet:
        fleet.fleet.asks.examine("plain-0", "hangs, nothing moved for 1 s: no token")
        await until(lambda: len(fleet.published.upkeep) > 1)
        assert fleet.published.upkeep[-1].kind is UpkeepKind.HEARTBEAT
        assert fleet.states().count(READY) == 1


async def test_a_liar_is_replaced_once_its_answers_under_way_have_ended(
    state_dir: Path,
    client: httpx.AsyncClient,  # noqa: TID251 - a test
) -> None:
    async with mock_fleet(state_dir, mock_pool(), health=HASTY) as fleet:
        fleet.control(tpot_ms=60, answer_tokens=30)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(chat(client, fleet, max_tokens=30))
            await until_in_flight(fleet)
            fleet.control(fault="garbage")
            fleet.fleet.asks.examine("plain-0", "one-token completion: nonsense")
            await fleet.until(DRAINING)
        assert running.result().json()["usage"]["completion_tokens"] == 30
        await fleet.until(READY, count=2)
        assert fleet.details(UNHEALTHY)[0].startswith("lies, /health says that it is well")
        assert "drained in" in fleet.details(UNHEALTHY)[0]


async def test_a_slow_replica_stays(
    state_dir: Path,
    client: httpx.AsyncClient,  # noqa: TID251 - a test
) -> None:
    async with mock_fleet(state_dir, mock_pool(), health=HASTY) as fleet:
        # A token every 200 ms is slow; all ten take longer than an engine may stand still.
        fleet.control(tpot_ms=200, answer_tokens=10)
        assert (await chat(client, fleet, max_tokens=10)).status_code == 200
        assert fleet.states().count(READY) == 1


async def test_what_fails_every_time_is_a_crash_loop_and_left_alone(state_dir: Path) -> None:
    async with mock_fleet(state_dir, mock_pool(), crash_loop_after=3, crash_loop_pause_s=600) as fleet:
        fleet.fleet._argv_for = lambda *_: ["/bin/false"]
        os.kill(engine_pid(fleet), signal.SIGKILL)
        await until(lambda: len(fleet.details(UNHEALTHY)) >= 3)
        assert len(fleet.details(UNHEALTHY)) == 3
        assert fleet.details(UNHEALTHY)[-1].endswith("starts again in 600 s")


def engine_pid(fleet: MockFleet) -> int:
    """The mock below the two keepers."""
    return max(session_members(fleet.replica().pid))


async def test_a_fleet_that_stops_lets_answers_end(
    state_dir: Path,
    client: httpx.AsyncClient,  # noqa: TID251 - a test
) -> None:
    async with mock_fleet(state_dir, mock_pool()) as fleet:
        fleet.control(tpot_ms=40, answer_tokens=30)
        answer = asyncio.get_running_loop().create_task(chat(client, fleet, max_tokens=30))
        await until_in_flight(fleet)
    assert (await answer).json()["usage"]["completion_tokens"] == 30
    assert fleet.states()[-2:] == [DRAINING, ReplicaState.STOPPED]


# ---------------------------------------------------------------------------------------------- sleeping
def sleeper(**sleep: object) -> PoolSpec:
    return mock_pool(sleep={"after_idle_s": 0.5, **sleep})


@pytest.mark.parametrize("level", [1, 2])
async def test_an_idle_replica_sleeps_and_wakes_whole(
    level: int,
    state_dir: Path,
    client: httpx.AsyncClient,  # noqa: TID251 - a test
) -> None:
    async with mock_fleet(state_dir, sleeper(level=level), flags=("--sleep-mode", "0.2")) as fleet:
        assert fleet.replica().wake_s == 5
        await fleet.until(SLEEPING)
        assert fleet.replica().detail.startswith(f"sleeps at level {level} after")
        fleet.fleet.asks.wake("plain")
        await fleet.until(READY, count=2)
        # Without the weights, which level 2 throws away, this would be garbage.
        assert (await chat(client, fleet)).json()["usage"]["completion_tokens"] > 0
        assert fleet.states()[:5] == [ReplicaState.STARTING, READY, DRAINING, SLEEPING, WAKING]
        found = fleet.stats()
        assert (found["sleeps"] >= 1, found["wakes"] >= 1, found["wakes_at_once"]) == (True, True, 1)
        wake_s = fleet.replica().wake_s
        assert wake_s is not None
        assert wake_s < 5, "it has learned that waking is faster than was said"


async def test_an_idle_replica_is_scaled_to_zero_and_comes_back(
    state_dir: Path,
    client: httpx.AsyncClient,  # noqa: TID251 - a test
) -> None:
    async with mock_fleet(state_dir, sleeper(scale_to_zero=True)) as fleet:
        first = fleet.replica()
        assert first.wake_s is not None, "the first start says what a wake will take"
        await fleet.until(SLEEPING)
        assert session_members(first.pid) == []
        fleet.fleet.asks.wake("plain")
        await fleet.until(READY, count=2)
        assert fleet.replica().url != first.url
        assert (await chat(client, fleet)).status_code == 200
        assert fleet.replica().restarts == 0


async def test_the_drivers_own_looks_keep_nobody_awake(state_dir: Path) -> None:
    often = HealthRule(stall_s=600, idle_probe_s=0.2, probe_timeout_s=20)
    async with mock_fleet(state_dir, sleeper(after_idle_s=2, scale_to_zero=True), health=often) as fleet:
        await fleet.until(SLEEPING)
        looks = [each for each in fleet.published.upkeep if each.kind is UpkeepKind.HEARTBEAT]
        assert len(looks) >= 2


async def test_who_is_asked_for_while_it_drains_stays_awake(state_dir: Path) -> None:
    async with mock_fleet(state_dir, sleeper(scale_to_zero=True), notice_s=20) as fleet:
        await fleet.until(DRAINING)
        fleet.fleet.asks.wake("plain")
        await fleet.until(READY, count=2)
        assert SLEEPING not in fleet.states()


async def test_one_ask_wakes_one_replica(state_dir: Path) -> None:
    pool = mock_pool(replicas=2, sleep={"after_idle_s": 3, "level": 1})
    async with mock_fleet(state_dir, pool, flags=("--sleep-mode", "0.2")) as fleet:
        await fleet.until(SLEEPING)
        await fleet.until(SLEEPING, "plain-1")
        for _ in range(5):
            fleet.fleet.asks.wake("plain")
        await until(lambda: READY in states_in(fleet))
        await asyncio.sleep(0.5)
        assert fleet.stats()["wakes"] + fleet.stats("plain-1")["wakes"] == 1


async def test_so_many_stay_awake(state_dir: Path) -> None:
    pool = mock_pool(replicas=2, sleep={"after_idle_s": 0.3, "scale_to_zero": True, "awake_min": 1})
    async with mock_fleet(state_dir, pool) as fleet:
        await until(lambda: SLEEPING in states_in(fleet))
        await asyncio.sleep(1)
        assert sorted(one.state for one in fleet.published.replicas) == [READY, SLEEPING]


async def test_a_queue_wakes_another(state_dir: Path) -> None:
    pool = mock_pool(replicas=2, sleep={"after_idle_s": 0.3, "scale_to_zero": True, "awake_min": 1})
    async with mock_fleet(state_dir, pool) as fleet:
        await until(lambda: SLEEPING in states_in(fleet))
        (asleep,) = [one.replica for one in fleet.published.replicas if one.state is SLEEPING]
        awake = "plain-1" if asleep == "plain-0" else "plain-0"
        fleet.control(awake, gauges={"num_requests_waiting": 3})
        await until(lambda: fleet.states(asleep).count(READY) > 1)
