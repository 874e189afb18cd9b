"""When no pool can take a call, does it reach the world outside, and only what may, for those who allowed it?"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import select
from sqlmodel import col

from gateway.db import note_change
from gateway.identity.store import TOPIC
from gateway.identity.tables import Tenant
from gateway.ledger.tables import Attempt
from gateway.pricing.tables import PriceVersion
from gateway.settings import LimitSettings, Settings, TimeoutSettings
from tests.integration.gateway.rig import (
    TEXT,
    Events,
    Gateway,
    bearer,
    eventually,
    running,
    settings_for,
)
from tests.support.mock_process import MockVllm, OpenAiServer
from tests.support.pool_files import usd

KEY: Final = "sk-outside-7f3a9c1e5b"
EXTRACT: Final = "Extract all names: Bob met Ann."
"""Goes to the speculative pool first."""
CHARGE_NANOS: Final = 82_001
"""12 fresh, 8 cached, 5 output and 4 reasoning tokens: 18,000 + 6,000.8 + 30,000 + 28,000, half up."""
NOWHERE: Final = "http://127.0.0.1:9"

POLICY: Final = """\
name: overflowing
models:
  auto: {pools: [speculative, plain], overflow: [outside]}
  fast: {pools: [speculative], overflow: [outside]}
  home: {pools: [speculative, plain]}
  twice: {pools: [speculative, plain], overflow: [broken, outside]}
external:
  outside:
    model: gpt-4o-mini
    api_base: OUTSIDE
    api_key: Elsewhere
    max_model_len: 128000
    rates: {input: "1.50", cached_input: "0.7501", output: "6", reasoning: "7"}
  broken:
    model: some-model
    api_base: BROKEN
    max_model_len: 128000
    rates: {input: "1", cached_input: "1", output: "1"}
routes:
  predictable: [speculative, plain]
  creative: [plain, speculative]
max_tokens_default: 256
"""


@pytest.fixture(scope="module")
def _outside() -> Iterator[OpenAiServer]:
    with OpenAiServer("--api-key", KEY) as server:
        yield server


@pytest.fixture
def outside(_outside: OpenAiServer) -> OpenAiServer:
    """The world outside, behaving and with empty books."""
    _outside.reset()
    return _outside


def overflowing(
    home: Path, outside: OpenAiServer, urls: dict[str, list[str]] | None = None, **more: Any
) -> Settings:
    """Settings with the policy above; without `urls` no pool has a replica that is up."""
    path = home / "policy.yaml"
    path.write_text(POLICY.replace("OUTSIDE", outside.api_base).replace("BROKEN", f"{NOWHERE}/v1"))
    nowhere = {"speculative": [NOWHERE], "plain": [NOWHERE]}
    return settings_for(home, urls or nowhere, policy=path, external_keys={"elsewhere": KEY}, **more)


async def opt_in(gateway: Gateway) -> None:
    """The tenant's owner allows that its requests leave the company."""
    services = gateway.services
    async with services.sessions() as session:
        tenant = (
            await session.execute(select(Tenant).where(col(Tenant.id) == gateway.tenant_id))
        ).scalar_one()
        tenant.is_internal_only = False
        session.add(tenant)
        await note_change(session, TOPIC)
        await session.commit()
    headers = bearer(gateway.key)
    await eventually(lambda: not services.keys.authenticate(headers).is_internal_only)


@pytest.fixture
async def alone(home: Path, outside: OpenAiServer) -> AsyncIterator[Gateway]:
    """A gateway whose pools are all down, with a tenant that opted in."""
    async with running(overflowing(home, outside), is_up=False) as started:
        await opt_in(started)
        yield started


@pytest.fixture
async def busy(home: Path, outside: OpenAiServer, urls: dict[str, list[str]]) -> AsyncIterator[Gateway]:
    """A gateway whose pools are up, with a tenant that opted in."""
    async with running(overflowing(home, outside, urls)) as started:
        await opt_in(started)
        yield started


# ------------------------------------------------------------------------------------------------ whole answers
async def test_with_all_pools_down_a_call_is_answered_outside(alone: Gateway, outside: OpenAiServer) -> None:
    answer = await alone.chat(EXTRACT, max_tokens=50, temperature=0.5)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-tollgate-pool"] == "outside"
    assert answer.headers["x-tollgate-replica"] == "external"
    assert answer.headers["x-tollgate-cost-usd"] == usd(CHARGE_NANOS)
    assert answer.json() == {
        "id": "chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": "auto",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Over the hills", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 20,
            "completion_tokens": 9,
            "total_tokens": 29,
            "prompt_tokens_details": {"cached_tokens": 8, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 4,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
    }
    (asked,) = outside.received()
    assert asked["path"] == "/v1/chat/completions"
    assert asked["body"] == {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": EXTRACT}],
        "max_tokens": 50,
        "temperature": 0.5,
    }
    (row,) = await alone.rows(1)
    _is_charged(row)
    assert row.endpoint == "chat/completions"


def _is_charged(row: Attempt) -> None:
    assert (row.pool, row.replica, row.state, row.payer) == ("outside", "external", "answered", "tenant")
    assert (row.usage_source, row.charge_usd_nanos) == ("measured", CHARGE_NANOS)
    tokens = (row.input_tokens, row.cached_input_tokens, row.cache_write_tokens)
    assert (*tokens, row.output_tokens, row.reasoning_tokens) == (12, 8, 0, 5, 4)
    assert row.hold_usd_nanos >= row.charge_usd_nanos
    assert row.price_version.startswith("outside@")


async def test_a_stream_is_given_as_a_pool_would_give_it(alone: Gateway, outside: OpenAiServer) -> None:
    answer = await alone.chat("Hm", stream=True, stream_options={"include_usage": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["x-tollgate-pool"] == "outside"
    assert answer.headers["x-tollgate-max-tokens"] == "256"
    *events, usage, done = Events(answer.content).data
    assert done == "[DONE]"
    told = [json.loads(event) for event in events]
    assert {tuple(one) for one in told} == {("id", "object", "created", "choices", "model")}
    assert {(one["model"], one["object"]) for one in told} == {("auto", "chat.completion.chunk")}
    deltas = [one["choices"][0]["delta"].get("content") for one in told]
    assert deltas == ["", "Over", " the", " hills", None]
    assert told[-1]["choices"][0]["finish_reason"] == "stop"
    last = json.loads(usage)
    assert last["choices"] == []
    assert last["usage"]["cost_usd"] == usd(CHARGE_NANOS)
    assert last["usage"]["prompt_tokens_details"]["cached_tokens"] == 8
    (asked,) = outside.received()
    assert asked["body"]["stream_options"] == {"include_usage": True}
    (row,) = await alone.rows(1)
    _is_charged(row)
    assert row.ttft_ms is not None


async def test_a_client_that_did_not_ask_for_usage_gets_none_and_is_charged_by_it(alone: Gateway) -> None:
    answer = await alone.chat("Hm", stream=True)
    events = Events(answer.content).data
    assert events[-1] == "[DONE]"
    assert "usage" not in answer.text
    (row,) = await alone.rows(1)
    _is_charged(row)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["Once upon", ["Once", "upon"]])
async def test_text_completions_overflow_too(
    alone: Gateway, outside: OpenAiServer, prompt: Any, *, stream: bool
) -> None:
    body = {"model": "auto", "prompt": prompt, "suffix": "end", "echo": True, "stream": stream, "seed": 3}
    answer = await alone.client.post(TEXT, json=body)
    assert answer.status_code == 200, answer.text
    (asked,) = outside.received()
    assert asked["path"] == "/v1/completions"
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    sent = {"prompt": prompt, "suffix": "end", "echo": True, "seed": 3, "max_tokens": 256, **more}
    assert asked["body"] == {"model": "gpt-4o-mini", **sent}
    if stream:
        told = [json.loads(event) for event in Events(answer.content).data[:-1]]
        assert {one["object"] for one in told} == {"text_completion"}
        assert [one["choices"][0]["text"] for one in told[:3]] == ["Over", " the", " hills"]
    else:
        assert answer.json()["model"] == "auto"
        texts = [choice["text"] for choice in answer.json()["choices"]]
        assert texts == ["Over the hills"] * (2 if isinstance(prompt, list) else 1)
    (row,) = await alone.rows(1)
    assert (row.endpoint, row.pool, row.charge_usd_nanos) == ("completions", "outside", CHARGE_NANOS)


# -------------------------------------------------------------------------------------------------- pools first
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
