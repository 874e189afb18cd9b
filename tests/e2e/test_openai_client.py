"""Does the official OpenAI client work unchanged, and does it understand what goes wrong?"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.e2e.site import Site, eventually, mark

STORY: Final[list[Any]] = [{"role": "user", "content": "Tell me a story"}]
NAMES: Final[list[Any]] = [{"role": "user", "content": "Extract all names: Bob"}]


@pytest.fixture
def client(site: Site) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=site.gateway.key, timeout=30) as made:
        yield made


@pytest.fixture
async def async_client(site: Site) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key=site.gateway.key, timeout=30) as made:
        yield made


def test_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="auto", messages=NAMES)
    assert answer.model == "auto"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (8, 16)


def test_the_headers_of_a_raw_response(client: openai.OpenAI, site: Site) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="auto", messages=STORY, extra_headers={"x-tollgate-task": "extraction"}
    )
    assert raw.headers["x-tollgate-pool"] == "speculative"
    assert raw.headers["x-tollgate-task"] == "extraction; source=declared; confidence=1.00"
    answer = raw.parse()
    assert answer.usage is not None
    assert raw.request_id == raw.headers["x-request-id"]
    (row,) = site.rows(1, request_id=str(raw.request_id))
    assert f"0.{row['charge_usd_nanos']:09d}" == raw.headers["x-tollgate-cost-usd"]


def test_a_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="auto", prompt="Once upon a time", max_tokens=5)
    assert answer.choices[0].text
    assert answer.choices[0].finish_reason == "length"


def test_a_completion_as_a_stream(client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(model="auto", prompt="Once upon a time", stream=True))
    assert {chunk.model for chunk in chunks} == {"auto"}
    assert len("".join(chunk.choices[0].text for chunk in chunks)) > 10


def test_the_models(client: openai.OpenAI) -> None:
    assert "auto" in [model.id for model in client.models.list()]


def test_a_stream(client: openai.OpenAI, site: Site) -> None:
    name = mark()
    with client.chat.completions.create(
        model="auto", messages=STORY, stream=True, extra_headers={"x-request-id": name}
    ) as stream:
        chunks = list(stream)
    assert all(chunk.model == "auto" for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"
    whole = client.chat.completions.create(model="auto", messages=STORY)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == (
        whole.choices[0].message.content
    )
    (row,) = site.rows(1, client_request_id=name)
    assert (row["state"], row["usage_source"], row["output_tokens"]) == ("answered", "measured", 16)


def test_an_empty_budget_is_told_once_and_not_retried(client: openai.OpenAI, site: Site) -> None:
    budgets = f"{site.url}/admin/v1/budgets"
    steer: dict[str, Any] = {
        "headers": {"authorization": f"Bearer {site.gateway.admin_key}"},
        "trust_env": False,
        "timeout": 10,
    }
    (tenant,) = httpx.get(f"{site.url}/admin/v1/tenants", **steer).json()["data"]
    body = {"name": mark(), "scope": "tenant", "of": tenant["id"], "window": "day", "limit_usd": "0"}
    made = httpx.post(budgets, json=body, **steer).json()
    sample = 'tollgate_requests_total{path="/v1/chat/completions",status="402"}'
    try:
        eventually(lambda: site.post({"model": "auto", "messages": STORY}).status_code == 402)
        before = site.metric(sample)
        with pytest.raises(openai.APIStatusError) as raised:
            client.chat.completions.create(model="auto", messages=STORY)
        assert site.metric(sample) == before + 1
    finally:
        httpx.post(f"{budgets}/{made['id']}/retire", **steer)
    assert (raised.value.status_code, raised.value.code) == (402, "budget_exceeded")
    assert isinstance(raised.value.body, dict)
    assert raised.value.body["resets_at"] == made["state"]["window_end"]
    eventually(lambda: site.post({"model": "auto", "messages": STORY}).status_code == 200)


def test_a_stream_with_usage_says_what_it_cost(client: openai.OpenAI, site: Site) -> None:
    name = mark()
    chunks = list(
        client.chat.completions.create(
            model="auto",
            messages=STORY,
            stream=True,
            stream_options={"include_usage": True},
            extra_headers={"x-request-id": name},
        )
    )
    usage = chunks[-1].usage
    assert usage is not None
    assert chunks[-1].choices == []
    assert usage.completion_tokens == 16
    (row,) = site.rows(1, client_request_id=name)
    assert usage.model_extra is not None
    assert usage.model_extra["cost_usd"] == f"0.{row['charge_usd_nanos']:09d}"


def test_tags_users_and_tiers_in_the_clients_own_fields(client: openai.OpenAI, site: Site) -> None:
    name = mark()
    client.chat.completions.create(
        model="auto",
        messages=STORY,
        metadata={"team": "search", "task": "code"},
        service_tier="flex",
        safety_identifier="ann",
        prompt_cache_key="k",
        extra_headers={"x-request-id": name},
    )
    (row,) = site.rows(1, client_request_id=name)
    assert (row["task"], row["pool"], row["service_tier"]) == ("code", "speculative", "flex")
    assert json.loads(row["tags"]) == {"team": "search", "task": "code"}


class City(BaseModel):
    name: str
    population: int


def test_a_structured_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model="auto", messages=STORY, response_format=City)
    city = answer.choices[0].message.parsed
    assert city == City(name="word", population=7)


def test_a_tool_call_as_a_stream(client: openai.OpenAI) -> None:
    function: Any = {
        "name": "look_up",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
    with client.chat.completions.stream(
        model="auto",
        messages=STORY,
        tools=[{"type": "function", "function": function}],
        tool_choice={"type": "function", "function": {"name": "look_up"}},
    ) as stream:
        answer = stream.get_final_completion()
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert (calls[0].function.name, calls[0].function.arguments) == ("look_up", '{"city": "word"}')


async def test_many_at_once(async_client: openai.AsyncOpenAI) -> None:
    answers = await asyncio.gather(
        *(async_client.chat.completions.create(model="auto", messages=STORY, max_tokens=3) for _ in range(20))
    )
    assert {answer.usage.completion_tokens for answer in answers if answer.usage} == {3}
    assert len({answer.id for answer in answers}) == 20


async def test_many_streams_at_once(async_client: openai.AsyncOpenAI, site: Site) -> None:
    site.plain.control(tpot_ms=5)

    async def tell() -> str:
        stream = await async_client.chat.completions.create(model="auto", messages=STORY, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    told = await asyncio.gather(*(tell() for _ in range(10)))
    assert len(set(told)) == 1
    assert told[0]


async def test_leaving_a_stream_early_cancels_it(async_client: openai.AsyncOpenAI, site: Site) -> None:
    site.plain.control(tpot_ms=100, answer_tokens=500)
    name = mark()
    stream = await async_client.chat.completions.create(
        model="auto", messages=STORY, stream=True, max_tokens=500, extra_headers={"x-request-id": name}
    )
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()
    await asyncio.to_thread(site.plain.wait_for, aborted=1, in_flight=0)
    (row,) = await asyncio.to_thread(site.rows, 1, client_request_id=name)
    assert (row["state"], row["payer"]) == ("cancelled", "tenant")


# ------------------------------------------------------------------------------------------------- errors
def _refusals(site: Site, status: int) -> float:
    return site.metric(f'tollgate_requests_total{{path="/v1/chat/completions",status="{status}"}}')


@pytest.mark.parametrize(
    ("fields", "kind", "status", "code"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, 404, "model_not_found"),
        ({"messages": []}, openai.BadRequestError, 400, "invalid_request"),
        ({"temperature": "hot"}, openai.BadRequestError, 400, "invalid_request"),
        ({"extra_headers": {"x-tollgate-task": "poetry"}}, openai.BadRequestError, 400, "invalid_request"),
        ({"temperature": 9.0}, openai.BadRequestError, 400, "BadRequestError"),
        (
            {"model": "tollgate-reference-speculative", "extra_body": {"min_p": 0.1}},
            openai.PermissionDeniedError,
            403,
            "no_target",
        ),
    ],
)
def test_an_error_becomes_the_clients_own_exception_and_is_not_tried_again(
    client: openai.OpenAI,
    site: Site,
    fields: dict[str, Any],
    *,
    kind: type[openai.APIStatusError],
    status: int,
    code: str,
) -> None:
    before = _refusals(site, status)
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": "auto", "messages": STORY, **fields})
    assert caught.value.status_code == status
    assert caught.value.code == code
    assert caught.value.type == "invalid_request_error"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert caught.value.request_id
    assert _refusals(site, status) == before + 1


@pytest.mark.parametrize("key", ["tg-wrong-key", "sk-proj-1234", "tg-" + "x" * 600])
def test_a_wrong_key(site: Site, key: str) -> None:
    before = _refusals(site, 401)
    with (
        openai.OpenAI(base_url=f"{site.url}/v1", api_key=key) as stranger,
        pytest.raises(openai.AuthenticationError, match="API key") as caught,
    ):
        stranger.chat.completions.create(model="auto", messages=STORY)
    assert caught.value.code == "invalid_api_key"
    assert _refusals(site, 401) == before + 1


def test_a_stream_that_cannot_begin_raises_at_once(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="Known models: auto, tollgate-reference"):
        client.chat.completions.create(model="gpt-9", messages=STORY, stream=True)


def test_a_stream_that_dies_in_the_middle_raises_there(client: openai.OpenAI, site: Site) -> None:
    site.plain.control(tpot_ms=10)
    site.plain.fault("die_mid_stream", 3, times=1)
    name = mark()
    stream = client.chat.completions.create(
        model="auto", messages=STORY, stream=True, extra_headers={"x-request-id": name}
    )
    seen: list[str | None] = []
    with pytest.raises(openai.APIError) as caught:
        seen.extend(chunk.choices[0].delta.content for chunk in stream)
    assert caught.value.code == "upstream_unavailable"
    assert "broke" in caught.value.message
    (row,) = site.rows(1, client_request_id=name)
    assert (row["state"], row["payer"]) == ("interrupted", "platform")


def test_what_may_be_tried_again_is_and_then_works(client: openai.OpenAI, site: Site) -> None:
    site.plain.fault("status", 503, times=1)
    site.speculative.fault("status", 503, times=1)
    before = _refusals(site, 503)
    answer = client.chat.completions.create(model="auto", messages=STORY)
    assert answer.choices[0].message.content
    assert _refusals(site, 503) == before + 1


def test_a_client_without_tries_left_gets_the_upstreams_failure(site: Site) -> None:
    site.plain.fault("status", 500, times=1)
    site.speculative.fault("status", 500, times=1)
    with (
        openai.OpenAI(base_url=f"{site.url}/v1", api_key=site.gateway.key, max_retries=0) as client,
        pytest.raises(openai.InternalServerError) as caught,
    ):
        client.chat.completions.create(model="auto", messages=STORY)
    assert caught.value.status_code == 502
    assert caught.value.type == "server_error"


def test_a_client_that_gives_up_waiting_ends_the_engines_work(site: Site) -> None:
    site.plain.control(ttft_ms=60_000)
    name = mark()
    with (
        openai.OpenAI(
            base_url=f"{site.url}/v1",
            api_key=site.gateway.key,
            max_retries=0,
            timeout=0.5,
        ) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        client.chat.completions.create(model="auto", messages=STORY, extra_headers={"x-request-id": name})
    site.plain.wait_for(aborted=1, in_flight=0)
    (row,) = site.rows(1, client_request_id=name)
    assert (row["state"], row["payer"], row["output_tokens"]) == ("cancelled", "tenant", 0)
