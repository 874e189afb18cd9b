"""Is the same thing answered twice for money? Whole answers and streams, in the process and in Redis."""

import json
from typing import Any

import httpx
import pytest

from gateway.identity.store import update_tenant
from tests.integration.gateway.rig import TEXT, Gateway, bearer
from tests.support.factories import make_act
from tests.support.mock_process import MockVllm

COLD: dict[str, Any] = {"temperature": 0}
STORY = "Tell me a story about a fox"


async def settled(gateway: Gateway, count: int) -> None:
    """Everything that was answered is kept and booked."""
    await gateway.rows(count)
    await gateway.services.pipeline.cache.flush(timeout_s=20)


async def ask(gateway: Gateway, content: str = STORY, **fields: Any) -> httpx.Response:
    answer = await gateway.chat(content, **{**COLD, **fields})
    assert answer.status_code == 200, answer.text
    return answer


def told(answer: httpx.Response) -> str:
    return answer.headers["x-tollgate-cache"]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_second_of_two_same_requests_costs_nothing_and_reaches_no_engine(
    gateway: Gateway, plain: MockVllm, *, stream: bool
) -> None:
    first = await ask(gateway, stream=stream)
    await settled(gateway, 1)
    before = plain.stats()["requests"]
    second = await ask(gateway, stream=stream)
    assert (told(first), told(second)) == ("miss", "hit")
    assert second.content == first.content
    assert second.headers["content-type"] == first.headers["content-type"]
    assert second.headers["x-tollgate-pool"] == first.headers["x-tollgate-pool"] == "plain"
    assert second.headers["x-tollgate-replica"] == "cache"
    assert second.headers["x-request-id"] != first.headers["x-request-id"]
    assert plain.stats()["requests"] == before
    paid, free = await gateway.rows(2)
    assert (paid.cache, free.cache) == ("miss", "hit")
    assert (paid.charge_usd_nanos or 0) > 0
    assert (free.charge_usd_nanos, free.hold_usd_nanos, free.input_tokens, free.output_tokens) == (0, 0, 0, 0)
    assert (free.state, free.payer, free.usage_source) == ("answered", "tenant", "none")
    if not stream:
        assert second.headers["x-tollgate-cost-usd"] == "0.000000000"


async def test_a_replayed_stream_says_that_it_was_free(gateway: Gateway) -> None:
    wish: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    first = await ask(gateway, **wish)
    await settled(gateway, 1)
    second = await ask(gateway, **wish)

    def usage(answer: httpx.Response) -> dict[str, Any]:
        events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
        assert events[-1] == "[DONE]"
        found: dict[str, Any] = json.loads(events[-2])["usage"]
        return found

    paid, free = usage(first), usage(second)
    assert float(paid.pop("cost_usd")) > 0
    assert free.pop("cost_usd") == "0.000000000"
    assert paid == free


async def test_text_in_an_answer_that_looks_like_a_cost_is_left_alone(gateway: Gateway) -> None:
    trap = 'Say "cost_usd":"7.5" please'
    body = {"model": "auto", "prompt": trap, "echo": True, **COLD}
    first = await gateway.client.post(TEXT, json=body)
    await settled(gateway, 1)
    second = await gateway.client.post(TEXT, json=body)
    assert told(second) == "hit"
    assert second.content == first.content


@pytest.mark.parametrize(
    "other",
    [
        {"content": "Tell me a story about a bear"},
        {"stream": True},
        {"max_tokens": 7},
        {"seed": 7},
        {"model": "tollgate-reference"},
        {"temperature": 0.0, "top_p": 0.5},
    ],
)
async def test_what_may_change_the_answer_is_another_request(gateway: Gateway, other: dict[str, Any]) -> None:
    await ask(gateway)
    await settled(gateway, 1)
    assert told(await ask(gateway, **{"content": STORY, **other})) == "miss"


async def test_what_cannot_change_the_answer_is_the_same_request(gateway: Gateway) -> None:
    await ask(gateway, max_tokens=9, user="ann", metadata={"team": "search"})
    await settled(gateway, 1)
    content = (
        '{"max_tokens": 9,  "temperature":0, "user": "bob", "service_tier": "flex",'
        ' "messages": [{"content": "Tell me a story about a fox", "role": "user"}], "model": "auto"}'
    )
    again = await gateway.client.post(
        "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    assert told(again) == "hit"


@pytest.mark.parametrize("fields", [{"temperature": 0.1}, {"temperature": None}, {"temperature": 1}])
async def test_what_the_policy_does_not_allow_is_never_kept(gateway: Gateway, fields: dict[str, Any]) -> None:
    for _ in range(2):
        assert told(await ask(gateway, **fields)) == "bypass"
    assert [row.cache for row in await gateway.rows(2)] == ["bypass", "bypass"]


async def test_an_answer_is_never_given_to_another_tenant(gateway: Gateway) -> None:
    await ask(gateway)
    await settled(gateway, 1)
    other = await gateway.issue_key("globex")
    assert told(await ask(gateway, headers=bearer(other))) == "miss"
    same_tenant = await gateway.issue_key("acme", "another project")
    assert told(await ask(gateway, headers=bearer(same_tenant))) == "hit"


async def test_a_tenant_that_keeps_nothing_is_never_cached(gateway: Gateway) -> None:
    async with gateway.services.sessions() as session:
        await update_tenant(session, gateway.tenant_id, act=make_act(), caches_answers=False)
        await session.commit()
    other = await gateway.issue_key("acme")  # whoever knows the new key knows the new setting
    for _ in range(2):
        assert told(await ask(gateway, headers=bearer(other))) == "bypass"


async def test_no_cache_asks_again_and_keeps_what_is_new(gateway: Gateway, plain: MockVllm) -> None:
    first = await ask(gateway)
    await settled(gateway, 1)
    plain.control(answer_tokens=5)
    fresh = await ask(gateway, headers={"cache-control": "no-cache"})
    assert told(fresh) == "miss"
    assert fresh.json()["choices"] != first.json()["choices"]
    await settled(gateway, 2)
    again = await ask(gateway)
    assert told(again) == "hit"
    assert again.json()["choices"] == fresh.json()["choices"]


@pytest.mark.parametrize("headers", [{"cache-control": "no-store"}, {"x-tollgate-cache-ttl": "0"}])
async def test_what_shall_not_be_kept_is_not(gateway: Gateway, headers: dict[str, str]) -> None:
    await ask(gateway, headers=headers)
    await settled(gateway, 1)
    assert told(await ask(gateway)) == "miss"


@pytest.mark.parametrize("ttl", ["-1", "1.5", "soon", "", "9" * 12])
async def test_a_time_to_live_that_is_no_number_of_seconds_is_refused(gateway: Gateway, ttl: str) -> None:
    answer = await gateway.chat(STORY, headers={"x-tollgate-cache-ttl": ttl})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "x-tollgate-cache-ttl"
    assert "whole number of seconds" in answer.json()["error"]["message"]


async def test_an_answer_that_broke_off_is_not_kept(gateway: Gateway, plain: MockVllm) -> None:
    plain.fault("die_mid_stream", 3, times=1)
    broken = await gateway.chat(STORY, stream=True, **COLD)
    assert "error" in broken.text
    await settled(gateway, 1)
    assert told(await ask(gateway, stream=True)) == "miss"
