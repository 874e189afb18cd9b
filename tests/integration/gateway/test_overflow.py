"""When no pool can take a call, does it reach the world outside, for those who allowed it?"""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from gateway.pricing.tables import PriceVersion
from gateway.settings import LimitSettings
from tests.integration.gateway.overflow_rig import CHARGE_NANOS, EXTRACT, is_charged, opt_in, overflowing
from tests.integration.gateway.rig import Events, Gateway, running
from tests.support.mock_process import MockVllm, OpenAiServer

# Nothing here depends on where keys and rows are kept.
pytestmark = pytest.mark.parametrize("home", ["embedded"], indirect=True)


async def test_while_a_pool_answers_nothing_leaves(busy: Gateway, outside: OpenAiServer) -> None:
    answer = await busy.chat(EXTRACT)
    assert answer.headers["x-tollgate-pool"] == "speculative"
    assert outside.received() == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fault", "value"), [("status", 503), ("status", "429,2"), ("refuse", None)])
async def test_when_every_pool_is_busy_or_gone_the_outside_answers(
    busy: Gateway,
    outside: OpenAiServer,
    speculative: MockVllm,
    plain: MockVllm,
    *,
    fault: str,
    value: Any,
    stream: bool,
) -> None:
    for engine in (speculative, plain):
        engine.fault(fault, value)
    answer = await busy.chat(EXTRACT, stream=stream)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-tollgate-pool"] == "outside"
    assert len(outside.received()) == 1
    rows = await busy.rows(3)
    assert [row.pool for row in rows] == ["speculative", "plain", "outside"]
    assert [(row.payer, row.charge_usd_nanos) for row in rows] == [
        ("platform", 0),
        ("platform", 0),
        ("tenant", CHARGE_NANOS),
    ]


@pytest.mark.parametrize("attempts_max", [1, 2, 3])
async def test_however_few_attempts_are_allowed_one_is_left_for_the_outside(
    home: Path,
    urls: dict[str, list[str]],
    outside: OpenAiServer,
    speculative: MockVllm,
    plain: MockVllm,
    *,
    attempts_max: int,
) -> None:
    settings = overflowing(home, outside, urls, limits=LimitSettings(attempts_max=attempts_max))
    async with running(settings) as gateway:
        await opt_in(gateway)
        for engine in (speculative, plain):
            engine.fault("status", 503)
        answer = await gateway.chat(EXTRACT)
        assert answer.headers["x-tollgate-pool"] == "outside"
        rows = await gateway.rows(max(2, attempts_max))
        assert [row.pool for row in rows[:-1]] == ["speculative", "plain"][: max(1, attempts_max - 1)]


async def test_the_next_external_target_is_tried_when_one_cannot_be_reached(
    alone: Gateway, outside: OpenAiServer
) -> None:
    answer = await alone.chat("Hm", model="twice")
    assert (answer.status_code, answer.headers["x-tollgate-pool"]) == (200, "outside")
    assert answer.json()["model"] == "twice"
    first, second = await alone.rows(2)
    assert (first.pool, first.error_code, first.payer, first.charge_usd_nanos) == (
        "broken",
        "upstream_unavailable",
        "platform",
        0,
    )
    assert (first.usage_source, first.status_code) == ("none", None)
    is_charged(second)


async def test_an_engines_refusal_is_not_tried_outside(
    busy: Gateway, outside: OpenAiServer, speculative: MockVllm
) -> None:
    speculative.fault("status", 400)
    answer = await busy.chat(EXTRACT)
    assert answer.status_code == 400
    assert outside.received() == []


async def test_a_stream_that_broke_after_its_first_content_is_not_begun_again_outside(
    busy: Gateway, outside: OpenAiServer, plain: MockVllm
) -> None:
    plain.control(tpot_ms=20)
    plain.fault("die_mid_stream", 3)
    answer = await busy.chat("Tell me a story", stream=True)
    assert json.loads(Events(answer.content).data[-2])["error"]["code"] == "upstream_unavailable"
    assert outside.received() == []


@pytest.mark.parametrize("stream", [False, True])
async def test_without_the_owners_consent_nothing_leaves(
    home: Path, outside: OpenAiServer, *, stream: bool
) -> None:
    async with running(overflowing(home, outside), is_up=False) as gateway:
        answer = await gateway.chat("Hm", stream=stream)
        assert answer.status_code == 503
        assert (answer.headers["x-should-retry"], answer.headers["retry-after"]) == ("true", "5")
        error = answer.json()["error"]
        assert error["code"] == "no_target"
        assert error["message"] == (
            "No replica that could serve 'auto' is up at the moment. Try again in a few seconds."
            " Overflow was not used: outside: requests of this tenant stay inside the company."
        )
        await gateway.rows(0)
    assert outside.received() == []
    assert outside.stats()["connections_open"] == 0


async def test_without_the_owners_consent_busy_pools_are_the_last_word(
    home: Path, urls: dict[str, list[str]], outside: OpenAiServer, speculative: MockVllm, plain: MockVllm
) -> None:
    async with running(overflowing(home, outside, urls)) as gateway:
        for engine in (speculative, plain):
            engine.fault("status", 503)
        answer = await gateway.chat(EXTRACT)
        assert answer.status_code == 503
        assert [row.pool for row in await gateway.rows(2)] == ["speculative", "plain"]
    assert outside.received() == []


async def test_an_alias_that_names_no_overflow_stays_inside(alone: Gateway, outside: OpenAiServer) -> None:
    answer = await alone.chat("Hm", model="home")
    assert answer.status_code == 503
    assert "Overflow" not in answer.json()["error"]["message"]
    assert outside.received() == []


async def test_what_no_pool_of_the_alias_may_ever_serve_does_not_overflow(
    alone: Gateway, outside: OpenAiServer
) -> None:
    answer = await alone.chat("Hm", model="fast", min_p=0.2)
    assert answer.status_code == 403
    assert "a speculating engine refuses min_p" in answer.json()["error"]["message"]
    assert outside.received() == []


async def test_connections_are_kept_between_calls_and_closed_at_the_end(
    home: Path, outside: OpenAiServer
) -> None:
    async with running(overflowing(home, outside), is_up=False) as gateway:
        await opt_in(gateway)
        for stream in (False, True, False):
            assert (await gateway.chat("Hm", stream=stream)).status_code == 200
        assert outside.stats()["connections_open"] == 1
    await asyncio.to_thread(outside.wait_for, connections_open=0)


async def test_the_price_of_an_external_target_is_remembered(alone: Gateway) -> None:
    async with alone.services.sessions() as session:
        found = await session.execute(select(PriceVersion).where(col(PriceVersion.target) == "outside"))
        (price,) = found.scalars()
    assert (price.input, price.cached_input, price.cache_write) == (1_500_000_000, 750_100_000, 0)
    assert (price.output, price.reasoning) == (6_000_000_000, 7_000_000_000)


async def test_the_hold_covers_the_dearest_target(busy: Gateway) -> None:
    await busy.chat("Hm", max_tokens=100, n=2)
    (row,) = await busy.rows(1)
    assert row.pool == "plain"
    assert row.hold_usd_nanos >= 2 * 100 * 7_000, "reasoning outside is what an answer may cost at most"
