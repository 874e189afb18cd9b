"""Is what finance enters charged, from its instant on and not before, and is what has no price refused?"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlmodel import col

from gateway.pricing.tables import PriceVersion
from gateway.settings import FreshnessSettings
from tests.integration.gateway.desk import Answer, Desk
from tests.integration.gateway.overflow_rig import opt_in, overflowing
from tests.integration.gateway.rig import Gateway, eventually, running, settings_for
from tests.support.clock import MovableClock
from tests.support.mock_process import MockVllm, OpenAiServer
from tests.support.pool_files import charge_nanos

FRESHNESS = FreshnessSettings(poll_interval_s=0.05, auth_stale_max_s=1e9)
"""A clock that jumps must not make the keys in memory look old."""
CARD: Answer = {
    "input": "0.150000000",
    "cached_input": "0.030000000",
    "cache_write": "0.000000000",
    "output": "0.600000000",
    "reasoning": "0.600000000",
    "per_request": "0.000000000",
}
RATES_OF_OUTSIDE = '    rates: {input: "1.50", cached_input: "0.7501", output: "6", reasoning: "7"}\n'
STORY = "Tell me a story"
"""Goes to the pool `plain`."""


@pytest.fixture
async def desk(home: Path, urls: dict[str, list[str]]) -> AsyncIterator[Desk]:
    clock = MovableClock()
    async with running(settings_for(home, urls, freshness=FRESHNESS), clock=clock) as gateway:
        yield Desk(gateway, clock)


async def in_force(desk: Desk, target: str, version: str | None) -> None:
    """Wait until the running gateway prices a target so."""
    services = desk.gateway.services

    def holds() -> bool:
        price = services.pipeline.routing.prices.at(services.clock.epoch_ms()).find(target)
        return (None if price is None else price.version) == version

    await eventually(holds)


async def set_price(desk: Desk, target: str, **body: str) -> str:
    version: str = (await desk.post(f"/prices/{target}", body))["version"]
    await in_force(desk, target, version)
    return version


async def test_a_price_is_charged_as_soon_as_it_is_set_but_not_to_what_is_under_way(
    desk: Desk, plain: MockVllm
) -> None:
    (listed,) = [one for one in (await desk.get("/prices"))["data"] if one["target"] == "plain"]
    assert (listed["rates"], listed["source"], listed["since"]) == (CARD, "pool", None)
    await desk.gateway.chat(STORY)

    first = await set_price(desk, "plain", input="1", cached_input="0.5", output="3", per_request="0.01")
    answer = await desk.gateway.chat(STORY)

    plain.fault("hold", times=1)
    held = asyncio.get_running_loop().create_task(desk.gateway.chat(STORY))
    await asyncio.to_thread(plain.wait_for, in_flight=1)
    desk.clock.move(1)
    second = await set_price(desk, "plain", input="1000", output="1000")
    assert not held.done()
    plain.clear()
    late = await held

    desk.clock.move(1)
    reset = await desk.post("/prices/plain/reset")
    assert (reset["rates"], reset["source"], reset["since"]) == (CARD, "pool", "2026-11-20T12:00:02Z")
    await in_force(desk, "plain", listed["version"])
    await desk.gateway.chat(STORY)

    rows = await desk.gateway.rows(4)
    versions = [row.price_version for row in rows]
    assert versions == [listed["version"], first, first, listed["version"]]
    for row in (rows[0], rows[3]):
        tokens = {"fresh": row.input_tokens, "cached": row.cached_input_tokens, "output": row.output_tokens}
        assert row.charge_usd_nanos == charge_nanos("plain", **tokens)
    for row, said in ((rows[1], answer), (rows[2], late)):
        tokens_nanos = row.input_tokens * 1_000 + row.cached_input_tokens * 500 + row.output_tokens * 3_000
        assert row.charge_usd_nanos == tokens_nanos + 10_000_000
        assert row.charge_usd_nanos <= row.hold_usd_nanos
        assert said.headers["x-tollgate-cost-usd"] == f"0.{row.charge_usd_nanos:09d}"

    async with desk.gateway.services.sessions() as session:
        kept = {one.version: one for one in (await session.execute(select(PriceVersion))).scalars()}
    assert (kept[first].input, kept[first].per_request) == (1_000_000_000, 10_000_000)
    assert kept[second].cache_write == kept[second].reasoning == 1_000_000_000_000
    history = (await desk.get("/prices/plain"))["history"]["data"]
    assert [one["version"] for one in history] == [None, second, first]


async def test_a_price_with_a_date_comes_into_force_by_itself_and_never_backwards(desk: Desk) -> None:
    body = {"input": "2", "output": "4", "effective_from": "2026-11-20T13:30:00+01:00", "note": "contract"}
    view = await desk.post("/prices/plain", body)
    assert (view["source"], view["since"], view["note"]) == ("finance", "2026-11-20T12:30:00Z", "contract")
    assert await desk.post("/prices/plain", body) == view
    shown = await desk.get("/prices/plain")
    assert (shown["price"]["rates"], shown["price"]["following"]["version"]) == (CARD, view["version"])
    assert len(shown["history"]["data"]) == 1, "the same again is no entry"
    assert (await desk.get("/prices/plain", at="2026-11-20T12:30:00Z"))["price"] == view
    assert (await desk.get("/prices/plain", at="2026-11-20T12:29:59"))["price"] == shown["price"]
    book = desk.gateway.services.pipeline
    await eventually(lambda: book.routing.prices.quote("plain", desk.clock.epoch_ms()).following)

    await desk.gateway.chat(STORY)
    desk.clock.move(1799.999)
    await desk.gateway.chat(STORY)
    desk.clock.move(0.001)
    await desk.gateway.chat(STORY)
    versions = [row.price_version for row in await desk.gateway.rows(3)]
    assert versions == [shown["price"]["version"]] * 2 + [view["version"]]

    status, param, said = await desk.refused(
        "POST", "/prices/plain", {"input": "1", "output": "1", "effective_from": "2026-11-20T12:29:59Z"}
    )
    assert (status, param) == (400, "effective_from")
    assert said.endswith("lies in the past: what was charged never changes. Leave it out to begin now.")
    late = {"effective_from": "2026-11-20T12:29:59Z"}
    assert (await desk.refused("POST", "/prices/plain/reset", late))[:2] == (400, "effective_from")
    # Two at the same instant: the last one counts.
    one, other = [await set_price(desk, "plain", input=rate, output="1") for rate in ("7", "8")]
    assert one != other


MISTAKES: list[tuple[str, Answer, int, str | None, str]] = [
    ("plian", {"input": "1", "output": "1"}, 404, None, "There is no target 'plian'"),
    ("plian", {"input": "1", "output": "1"}, 404, None, "Did you mean 'plain'?"),
    ("plain", {"input": 0.15, "output": "1"}, 400, "input", "valid string"),
    ("plain", {"input": "1"}, 400, "output", "is missing"),
    ("plain", {"input": "0", "output": "1"}, 400, "input", "must be above 0"),
    ("plain", {"input": "1", "output": "1", "reasoning": "-1"}, 400, "reasoning", "0 or more"),
    ("plain", {"input": "1", "output": "1", "ouput": "1"}, 400, "ouput", "no such field"),
    ("plain", {"input": "1", "output": "1", "note": "a\nb"}, 400, "note", "no line breaks"),
    ("plain", {"input": "1", "output": "1", "effective_from": "soon"}, 400, "effective_from", "datetime"),
]


@pytest.mark.parametrize("home", ["embedded"], indirect=True)
async def test_mistakes_about_prices_are_explained(desk: Desk) -> None:
    for target, body, status, param, said in MISTAKES:
        found = await desk.refused("POST", f"/prices/{target}", body)
        assert found[:2] == (status, param), body
        assert said in found[2], body
    for method, path in (("GET", "/prices/zzz"), ("POST", "/prices/zzz/reset")):
        status, _, said = await desk.refused(method, path, {} if method == "POST" else None)
        assert (status, "Known: plain, speculative." in said) == (404, True)
    assert (await desk.refused("GET", "/prices?at=soon"))[:2] == (400, "at")
    assert (await desk.get("/prices/plain"))["history"]["data"] == []


# --------------------------------------------------------------------------------------------------- unpriced
def without_rates(home: Path, outside: OpenAiServer, more: str = "") -> Path:
    """A policy whose external target has no rates of its own."""
    path = home / "policy.yaml"
    settings = overflowing(home, outside)
    assert settings.policy == path
    text = path.read_text()
    assert RATES_OF_OUTSIDE in text
    path.write_text(text.replace(RATES_OF_OUTSIDE, "") + more)
    return path


async def _asked(gateway: Gateway) -> tuple[int, str]:
    answer = await gateway.chat("Hm")
    return answer.status_code, answer.text


async def test_what_has_no_price_is_refused_until_it_has_one(home: Path, outside: OpenAiServer) -> None:
    settings = overflowing(home, outside, freshness=FRESHNESS)
    without_rates(home, outside)
    clock = MovableClock()
    async with running(settings, clock=clock, is_up=False) as gateway:
        await opt_in(gateway)
        desk = Desk(gateway, clock)
        status, said = await _asked(gateway)
        assert (status, "'outside' has no price" in said) == (402, True)
        assert "tollgate prices set outside --input USD --output USD" in said
        (listed,) = [one for one in (await desk.get("/prices"))["data"] if one["target"] == "outside"]
        assert (listed["version"], listed["rates"], listed["source"]) == (None, None, None)
        assert outside.received() == []

        version = await set_price(desk, "outside", input="1", output="2")
        assert (await _asked(gateway))[0] == 200
        clock.move(1)
        assert (await desk.post("/prices/outside/reset", {"note": "ended"}))["version"] is None
        await in_force(desk, "outside", None)
        assert (await _asked(gateway))[0] == 402
        (row,) = await gateway.rows(1)
        assert (row.pool, row.price_version) == ("outside", version)


@pytest.mark.parametrize("home", ["embedded"], indirect=True)
async def test_a_policy_may_allow_targets_without_a_price(home: Path, outside: OpenAiServer) -> None:
    settings = overflowing(home, outside)
    without_rates(home, outside, "allow_unpriced: true\n")
    async with running(settings, is_up=False) as gateway:
        await opt_in(gateway)
        assert (await _asked(gateway))[0] == 200
        (row,) = await gateway.rows(1)
        assert (row.pool, row.price_version, row.state) == ("outside", "unpriced", "answered")
        async with gateway.services.sessions() as session:
            found = await session.execute(select(col(PriceVersion.target)))
        assert "outside" not in found.scalars().all()
