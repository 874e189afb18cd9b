"""A stream that is slow to begin is asked for twice: who answers, who pays, and what is left behind?"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from sqlalchemy import func, select
from sqlmodel import col

from gateway.ledger.reports import PLATFORM_TENANT
from gateway.ledger.tables import Attempt
from gateway.settings import HedgeSettings, TimeoutSettings
from gateway.upstream.hedging import SAMPLES_MIN
from tests.integration.gateway.rig import PATIENCE_S, Events, Gateway, eventually, running, settings_for
from tests.support.mock_process import MockVllm

# Nothing here depends on where keys and rows are kept.
pytestmark = pytest.mark.parametrize("home", ["embedded"], indirect=True)

EAGER: Final = HedgeSettings(ratio=0.5, quantile=0.5, delay_s_min=0.3)
STORY: Final = "Tell me a story"


@pytest.fixture
def sister() -> Iterator[MockVllm]:
    with MockVllm() as mock:
        yield mock


@dataclass(frozen=True, slots=True)
class Pair:
    """A gateway that knows how long its two replicas usually take."""

    gateway: Gateway
    mocks: tuple[MockVllm, MockVllm]
    """Of `plain-0` and `plain-1`; which of them is asked first is the gateway's choice."""
    rows_before: int

    def hold(self, which: MockVllm | None = None) -> None:
        """Keep requests until `clear`."""
        for mock in self.mocks if which is None else (which,):
            mock.fault("hold")

    async def asked(self, group: asyncio.TaskGroup, **fields: Any) -> asyncio.Task[httpx.Response]:
        """A stream that both of them hold."""
        asked = group.create_task(self.gateway.chat(STORY, stream=True, **fields))
        for mock in self.mocks:
            await asyncio.to_thread(mock.wait_for, PATIENCE_S, in_flight=1)
        assert self.gateway.services.spool.open_count == 2
        return asked

    async def rows(self, count: int) -> list[Attempt]:
        """Of what was asked since."""
        rows = (await self.gateway.rows(self.rows_before + count))[self.rows_before :]
        assert [row.attempt_number for row in rows] == list(range(1, count + 1))
        assert len({row.request_id for row in rows}) == 1
        assert all(one.in_flight == 0 for one in self.gateway.services.registry.snapshot("plain").replicas)
        return rows

    async def metric(self, name: str) -> float:
        page = (await self.gateway.client.get("/metrics", headers=self.gateway.admin)).text
        return float(next(line for line in page.splitlines() if line.startswith(f"{name} ")).split()[1])


@asynccontextmanager
async def pair(
    home: Path, urls: dict[str, list[str]], plain: MockVllm, sister: MockVllm, **more: Any
) -> AsyncIterator[Pair]:
    urls = {**urls, "plain": [plain.url, sister.url]}
    settings = settings_for(home, urls, **{"hedging": EAGER, **more})
    async with running(settings) as gateway:
        registry = gateway.services.registry
        await eventually(lambda: registry.snapshot("plain").ready_count == 2)
        for _ in range(SAMPLES_MIN):
            assert (await gateway.chat(STORY, stream=True)).status_code == 200
        # Counted: on a busy machine some of these may have been slow.
        yield Pair(gateway, (plain, sister), await _booked(gateway))


async def _booked(gateway: Gateway) -> int:
    """How many attempts there are now, all of them ended."""
    spool = gateway.services.spool
    await eventually(lambda: not spool.open_count and not spool.unshipped_count)
    async with gateway.services.sessions() as session:
        found = await session.execute(
            select(func.count()).select_from(Attempt).where(col(Attempt.tenant_id) != PLATFORM_TENANT)
        )
    return int(found.scalar_one())


def _told(row: Attempt) -> tuple[str, str, str | None]:
    return row.state, row.payer, row.error_code


def _is_whole(answer: httpx.Response) -> bool:
    data = Events(answer.content).data
    return answer.status_code == 200 and data[-1] == "[DONE]" and '"error"' not in answer.text


@pytest.mark.parametrize("index", [0, 1])
async def test_who_is_first_answers_and_the_platform_pays_the_loser(
    home: Path, urls: dict[str, list[str]], plain: MockVllm, sister: MockVllm, *, index: int
) -> None:
    """Whether the one that answers is the one that was asked first or the hedge."""
    async with pair(home, urls, plain, sister) as two, asyncio.TaskGroup() as group:
        hedges, won = [await two.metric(f"tollgate_hedges{name}_total") for name in ("", "_won")]
        two.hold()
        asked = await two.asked(group, stream_options={"include_usage": True})
        await asyncio.to_thread(two.mocks[index].clear)
        answer = await asked
        assert _is_whole(answer)
        assert answer.headers["x-tollgate-replica"] == f"plain-{index}"
        await asyncio.to_thread(two.mocks[1 - index].wait_for, aborted=1, in_flight=0)
        rows = {row.replica: row for row in await two.rows(2)}
        winner, loser = rows[f"plain-{index}"], rows[f"plain-{1 - index}"]
        assert _told(winner) == ("answered", "tenant", None)
        assert _told(loser) == ("failed", "platform", "hedge_lost")
        assert loser.usage_source == "estimated"
        assert (winner.usage_source, winner.output_tokens) == ("measured", 16)
        assert 0 < (loser.charge_usd_nanos or 0) <= loser.hold_usd_nanos
        assert loser.hold_usd_nanos == winner.hold_usd_nanos
        assert await two.metric("tollgate_hedges_total") == hedges + 1
        assert await two.metric("tollgate_hedges_won_total") == won + (winner.attempt_number == 2)
        assert two.gateway.services.registry.snapshot("plain").ready_count == 2, "to lose is no fault"


@pytest.mark.parametrize("index", [0, 1])
async def test_one_of_the_two_may_fail(
    home: Path, urls: dict[str, list[str]], plain: MockVllm, sister: MockVllm, *, index: int
) -> None:
    async with pair(home, urls, plain, sister) as two, asyncio.TaskGroup() as group:
        failing, good = two.mocks[index], two.mocks[1 - index]
        two.hold()
        failing.fault("status", 500)  # once it is let go
        asked = await two.asked(group)
        await asyncio.to_thread(failing.clear)
        await asyncio.to_thread(failing.wait_for, in_flight=0)
        assert not asked.done()
        await asyncio.to_thread(good.clear)
        answer = await asked
        assert _is_whole(answer)
        rows = {row.replica: _told(row) for row in await two.rows(2)}
        assert rows[f"plain-{index}"] == ("failed", "platform", "upstream_unavailable")
        assert rows[f"plain-{1 - index}"] == ("answered", "tenant", None)


async def test_if_both_fail_another_pool_answers(
    home: Path, urls: dict[str, list[str]], plain: MockVllm, sister: MockVllm
) -> None:
    async with pair(home, urls, plain, sister) as two, asyncio.TaskGroup() as group:
        two.hold()
        for mock in two.mocks:
            mock.fault("status", 500)
        asked = await two.asked(group)
        for mock in two.mocks:
            await asyncio.to_thread(mock.clear)
        answer = await asked
        assert _is_whole(answer)
        assert answer.headers["x-tollgate-pool"] == "speculative"
        rows = await two.rows(3)
        assert [_told(row)[:2] for row in rows] == [("failed", "platform")] * 2 + [("answered", "tenant")]


async def test_a_refusal_of_the_request_ends_both(
    home: Path, urls: dict[str, list[str]], plain: MockVllm, sister: MockVllm
) -> None:
    async with pair(home, urls, plain, sister) as two, asyncio.TaskGroup() as group:
        two.hold()
        two.mocks[0].fault("status", 400)
        asked = await two.asked(group)
        await asyncio.to_thread(two.mocks[0].clear)
        assert (await asked).status_code == 400
        await asyncio.to_thread(two.mocks[1].wait_for, aborted=1, in_flight=0)
        rows = {row.replica: _told(row) for row in await two.rows(2)}
        assert rows["plain-0"] == ("failed", "platform", "upstream_rejected")
        assert rows["plain-1"] == ("failed", "platform", "hedge_lost")


async def test_a_client_that_leaves_stops_both_and_pays_for_one(
    home: Path, urls: dict[str, list[str]], plain: MockVllm, sister: MockVllm
) -> None:
    async with pair(home, urls, plain, sister) as two, asyncio.TaskGroup() as group:
        two.hold()
        asked = await two.asked(group)
        asked.cancel()
        for mock in two.mocks:
            await asyncio.to_thread(mock.wait_for, aborted=1, in_flight=0)
        first, second = await two.rows(2)
        assert _told(first)[:2] == ("cancelled", "tenant")
        assert _told(second) == ("failed", "platform", "hedge_lost")


async def test_a_client_that_leaves_after_the_first_failed_pays_for_the_one_that_was_at_work(
    home: Path, urls: dict[str, list[str]], plain: MockVllm, sister: MockVllm
) -> None:
    async with pair(home, urls, plain, sister) as two, asyncio.TaskGroup() as group:
        two.hold()
        for mock in two.mocks:
            mock.fault("die_before_first_chunk")
        asked = await two.asked(group)
        open_attempts = two.gateway.services.spool._open.values()
        (failing,) = (start.replica for start in open_attempts if start.attempt_number == 1)
        number = int(failing.removeprefix("plain-"))
        two.mocks[number].clear()  # lets it go on, to its death
        await asyncio.to_thread(two.mocks[number].wait_for, PATIENCE_S, in_flight=0)
        await asyncio.sleep(0.2)  # until the gateway has seen it
        asked.cancel()
        await asyncio.to_thread(two.mocks[1 - number].wait_for, PATIENCE_S, aborted=1, in_flight=0)
        first, second = await two.rows(2)
        assert _told(first) == ("failed", "platform", "upstream_unavailable")
        assert _told(second)[:2] == ("cancelled", "tenant")


async def test_the_allowance_is_kept(
    home: Path, urls: dict[str, list[str]], plain: MockVllm, sister: MockVllm
) -> None:
    few = HedgeSettings(ratio=0.05, quantile=0.5, delay_s_min=0.2)
    async with pair(home, urls, plain, sister, hedging=few) as two:
        for mock in two.mocks:
            mock.control(ttft_ms=700)
        made = refused = asked = 0.0
        # On a busy machine a content may come before anybody could ask again; such a stream shows nothing.
        while made + refused < 5 and asked < 20:
            assert _is_whole(await two.gateway.chat(STORY, stream=True))
            asked += 1
            made = await two.metric("tollgate_hedges_total")
            refused = await two.metric("tollgate_hedges_refused_total")
        assert made <= 0.05 * (SAMPLES_MIN + asked)
        assert refused >= 4


async def test_whole_answers_are_never_asked_for_twice(
    home: Path, urls: dict[str, list[str]], plain: MockVllm, sister: MockVllm
) -> None:
    async with pair(home, urls, plain, sister) as two:
        for mock in two.mocks:
            mock.control(ttft_ms=1_000)
        assert (await two.gateway.chat(STORY)).status_code == 200
        await two.rows(1)


@pytest.mark.parametrize("index", [0, 1])
async def test_a_hedge_that_won_is_watched_like_any_stream(
    home: Path, urls: dict[str, list[str]], plain: MockVllm, sister: MockVllm, *, index: int
) -> None:
    timeouts = TimeoutSettings(first_token_s=60, between_tokens_s=2)
    async with pair(home, urls, plain, sister, timeouts=timeouts) as two, asyncio.TaskGroup() as group:
        two.hold()
        for mock in two.mocks:
            mock.control(tpot_ms=20)
            mock.fault("stall_mid_stream", "3,60")
        asked = await two.asked(group)
        await asyncio.to_thread(two.mocks[index].clear)
        answer = await asked
        assert '"code":"upstream_timeout"' in Events(answer.content).data[-2]
        rows = {row.replica: _told(row) for row in await two.rows(2)}
        assert rows[f"plain-{1 - index}"] == ("failed", "platform", "hedge_lost")
        assert rows[f"plain-{index}"] == ("interrupted", "platform", "upstream_timeout")
