"""A stream that is slow to begin is asked for twice: who answers, who pays, and what is left behind?"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from gateway.ledger.tables import Attempt
from gateway.settings import HedgeSettings, TimeoutSettings
from gateway.upstream.hedging import SAMPLES_MIN
from tests.integration.gateway.rig import Events, Gateway, eventually, running, settings_for
from tests.support.mock_process import MockVllm

# Nothing here depends on where keys and rows are kept.
pytestmark = pytest.mark.parametrize("home", ["embedded"], indirect=True)

EAGER: Final = HedgeSettings(ratio=0.5, quantile=0.5, delay_s_min=0.3)
STORY: Final = "Tell me a story"
LONG_MS: Final = 60_000


@pytest.fixture
def sister() -> Iterator[MockVllm]:
    with MockVllm() as mock:
        yield mock


@dataclass(frozen=True, slots=True)
class Pair:
    """A gateway that knows how long its two replicas usually take, one of which is next."""

    gateway: Gateway
    first: MockVllm
    """Takes the next request."""
    second: MockVllm
    names: tuple[str, str]
    rows_before: int

    async def rows(self, count: int) -> list[Attempt]:
        """Of what was asked since."""
        return (await self.gateway.rows(self.rows_before + count))[self.rows_before :]

    async def metric(self, name: str) -> float:
        page = (await self.gateway.client.get("/metrics", headers=self.gateway.admin)).text
        return float(next(line for line in page.splitlines() if line.startswith(f"{name} ")).split()[1])


@asynccontextmanager
async def pair(
    home: Path, urls: dict[str, list[str]], plain: MockVllm, sister: MockVllm, **more: Any
) -> AsyncIterator[Pair]:
    urls = {**urls, "plain": [plain.url, sister.url]}
    settings = settings_for(home, urls, **{"hedging": EAGER, **more})
    with (settings.pools / "plain.yaml").open("a") as file:
        file.write("replica_choice:\n  rule: round_robin\n")
    async with running(settings) as gateway:
        registry = gateway.services.registry
        await eventually(lambda: registry.snapshot("plain").ready_count == 2)
        for _ in range(SAMPLES_MIN):
            assert (await gateway.chat(STORY, stream=True)).status_code == 200
        # They take turns: the one before the last is next.
        asked = [await gateway.chat(STORY, stream=True) for _ in range(2)]
        upcoming = asked[0].headers["x-tollgate-replica"]
        mocks = {"plain-0": plain, "plain-1": sister}
        order = ("plain-0", "plain-1") if upcoming == "plain-0" else ("plain-1", "plain-0")
        yield Pair(gateway, mocks[order[0]], mocks[order[1]], order, SAMPLES_MIN + len(asked))


def _told(row: Attempt) -> tuple[str, str, str, str | None]:
    return row.replica, row.state, row.payer, row.error_code


def _is_whole(answer: httpx.Response) -> bool:
    data = Events(answer.content).data
    return answer.status_code == 200 and data[-1] == "[DONE]" and '"error"' not in answer.text


async def test_a_slow_replicas_stream_is_given_by_the_fast_one_and_the_platform_pays_the_loser(
    home: Path, urls: dict[str, list[str]], plain: MockVllm, sister: MockVllm
) -> None:
    async with pair(home, urls, plain, sister) as two:
        two.first.control(ttft_ms=LONG_MS)
        answer = await two.gateway.chat(STORY, stream=True, stream_options={"include_usage": True})
        assert _is_whole(answer)
        assert answer.headers["x-tollgate-replica"] == two.names[1]
        await asyncio.to_thread(two.first.wait_for, aborted=1, in_flight=0)
        loser, winner = await two.rows(2)
        assert loser.request_id == winner.request_id
        assert _told(loser) == (two.names[0], "failed", "platform", "hedge_lost")
        assert _told(winner) == (two.names[1], "answered", "tenant", None)
        assert (loser.attempt_number, winner.attempt_number) == (1, 2)
        assert loser.usage_source == "estimated"
        assert (winner.usage_source, winner.output_tokens) == ("measured", 16)
        assert 0 < (loser.charge_usd_nanos or 0) <= loser.hold_usd_nanos
        assert loser.hold_usd_nanos == winner.hold_usd_nanos
        assert [await two.metric(f"tollgate_hedges{name}_total") for name in ("", "_won")] == [1, 1]
        assert two.gateway.services.registry.snapshot("plain").ready_count == 2, "to lose is no fault"
        assert all(one.in_flight == 0 for one in two.gateway.services.registry.snapshot("plain").replicas)


async def test_the_slow_one_answers_if_the_hedge_is_slower(
    home: Path, urls: dict[str, list[str]], plain: MockVllm, sister: MockVllm
) -> None:
    async with pair(home, urls, plain, sister) as two:
        two.first.control(ttft_ms=2_000)
        two.second.control(ttft_ms=LONG_MS)
        answer = await two.gateway.chat(STORY, stream=True)
        assert _is_whole(answer)
        assert answer.headers["x-tollgate-replica"] == two.names[0]
        await asyncio.to_thread(two.second.wait_for, aborted=1, in_flight=0)
        winner, loser = await two.rows(2)
        assert _told(winner) == (two.names[0], "answered", "tenant", None)
        assert _told(loser) == (two.names[1], "failed", "platform", "hedge_lost")


@pytest.mark.parametrize("fails_first", [True, False])
async def test_one_of_the_two_may_fail(
    home: Path, urls: dict[str, list[str]], plain: MockVllm, sister: MockVllm, *, fails_first: bool
) -> None:
    async with pair(home, urls, plain, sister) as two:
        failing, good = (two.first, two.second) if fails_first else (two.second, two.first)
        good.control(ttft_ms=2_500)
        if fails_first:
            failing.fault("stall_before_first", "1")
            failing.fault("error_before_first_content")
        else:
            failing.fault("status", 500)
        answer = await two.gateway.chat(STORY, stream=True)
        assert _is_whole(answer)
        states = {row.replica: _told(row)[1:] for row in await two.rows(2)}
        names = two.names if fails_first else two.names[::-1]
        assert states[names[0]] == ("failed", "platform", "upstream_unavailable")
        assert states[names[1]] == ("answered", "tenant", None)


async def test_if_both_fail_another_pool_answers(
    home: Path, urls: dict[str, list[str]], plain: MockVllm, sister: MockVllm
) -> None:
    async with pair(home, urls, plain, sister) as two:
        for each in (two.first, two.second):
            each.fault("stall_before_first", "1")
            each.fault("error_before_first_content")
        answer = await two.gateway.chat(STORY, stream=True)
        assert _is_whole(answer)
        assert answer.headers["x-tollgate-pool"] == "speculative"
        rows = await two.rows(3)
        assert [row.attempt_number for row in rows] == [1, 2, 3]
        assert [_told(row)[1:3] for row in rows] == [("failed", "platform")] * 2 + [("answered", "tenant")]


async def test_a_client_that_leaves_stops_both_and_pays_for_one(
    home: Path, urls: dict[str, list[str]], plain: MockVllm, sister: MockVllm
) -> None:
    async with pair(home, urls, plain, sister) as two, asyncio.TaskGroup() as group:
        for each in (two.first, two.second):
            each.control(ttft_ms=LONG_MS)
        asked = group.create_task(two.gateway.chat(STORY, stream=True))
        await eventually(lambda: two.gateway.services.spool.open_count == 2)
        await asyncio.to_thread(two.second.wait_for, in_flight=1)
        asked.cancel()
        for each in (two.first, two.second):
            await asyncio.to_thread(each.wait_for, aborted=1, in_flight=0)
        first, second = await two.rows(2)
        assert _told(first)[:3] == (two.names[0], "cancelled", "tenant")
        assert _told(second) == (two.names[1], "failed", "platform", "hedge_lost")
        assert all(one.in_flight == 0 for one in two.gateway.services.registry.snapshot("plain").replicas)


async def test_the_allowance_is_kept(
    home: Path, urls: dict[str, list[str]], plain: MockVllm, sister: MockVllm
) -> None:
    few = HedgeSettings(ratio=0.05, quantile=0.5, delay_s_min=0.2)
    async with pair(home, urls, plain, sister, hedging=few) as two:
        for each in (two.first, two.second):
            each.control(ttft_ms=700)
        for _ in range(5):  # 5 % of 27
            assert _is_whole(await two.gateway.chat(STORY, stream=True))
        assert await two.metric("tollgate_hedges_total") == 1
        assert await two.metric("tollgate_hedges_refused_total") == 4
        rows = await two.rows(6)
        assert [row.error_code for row in rows].count("hedge_lost") == 1


async def test_whole_answers_are_never_asked_for_twice(
    home: Path, urls: dict[str, list[str]], plain: MockVllm, sister: MockVllm
) -> None:
    async with pair(home, urls, plain, sister) as two:
        for each in (two.first, two.second):
            each.control(ttft_ms=1_000)
        assert (await two.gateway.chat(STORY)).status_code == 200
        await two.rows(1)


async def test_a_hedge_that_won_is_watched_like_any_stream(
    home: Path, urls: dict[str, list[str]], plain: MockVllm, sister: MockVllm
) -> None:
    timeouts = TimeoutSettings(first_token_s=20, between_tokens_s=2)
    async with pair(home, urls, plain, sister, timeouts=timeouts) as two:
        two.first.control(ttft_ms=LONG_MS)
        two.second.control(tpot_ms=20)
        two.second.fault("stall_mid_stream", "3,60")
        answer = await two.gateway.chat(STORY, stream=True)
        assert '"code":"upstream_timeout"' in Events(answer.content).data[-2]
        rows = await two.rows(2)
        assert [_told(row)[1:] for row in rows] == [
            ("failed", "platform", "hedge_lost"),
            ("interrupted", "platform", "upstream_timeout"),
        ]
