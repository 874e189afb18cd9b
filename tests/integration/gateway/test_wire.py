"""Is the client's body, byte for byte, what the engine said under the name that was asked for?

Whole bodies are compared. What the engine says is written in the test; test_recordings.py plays back what a
real vLLM said.
"""

import json
from pathlib import Path

import pytest

from tests.integration.gateway.rig import Events, Gateway
from tests.integration.gateway.scripted_engine import behind, stream, whole
from tests.support.mock_process import MockVllm
from tests.support.pool_files import charge_nanos, usd

# Nothing here depends on where keys and rows are kept: the other files try both kinds of store.
pytestmark = pytest.mark.parametrize("home", ["embedded"], indirect=True)


async def test_a_usage_that_was_asked_for_comes_with_its_cost_and_without_the_engines_figures(
    gateway: Gateway, plain: MockVllm
) -> None:
    answer = await gateway.chat("Tell me a story", stream=True, stream_options={"include_usage": True})
    *_, last, done = Events(answer.content).data
    assert done == "[DONE]"
    chunk = json.loads(last)
    (row,) = await gateway.rows(1)
    cost = charge_nanos("plain", fresh=8, cached=0, output=16)
    assert cost == 10_800  # 8 at 0.15 and 16 at 0.60 USD per million
    assert chunk == {
        "id": chunk["id"],
        "object": "chat.completion.chunk",
        "created": chunk["created"],
        "model": "auto",
        "choices": [],
        "usage": {
            "prompt_tokens": 8,
            "total_tokens": 24,
            "completion_tokens": 16,
            "prompt_tokens_details": {"cached_tokens": 0, "created_cache_tokens": 0},
            "cost_usd": "0.000010800",
        },
    }
    assert row.charge_usd_nanos == cost
    assert usd(cost) == chunk["usage"]["cost_usd"]


async def test_a_usage_that_was_not_asked_for_is_booked_and_not_shown(
    gateway: Gateway, plain: MockVllm
) -> None:
    for options in ({}, {"stream_options": {"include_usage": False}}, {"stream_options": None}):
        answer = await gateway.chat("Tell me a story", stream=True, **options)
        assert b"usage" not in answer.content
        assert plain.stats()["last_request"]["body"]["stream_options"] == {"include_usage": True}
    rows = await gateway.rows(3)
    assert {(row.usage_source, row.input_tokens + row.cached_input_tokens) for row in rows} == {
        ("measured", 8)
    }


async def test_continuous_usage_is_passed_on_with_every_event(gateway: Gateway) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    answer = await gateway.chat("Tell me a story", stream=True, stream_options=options)
    events = [json.loads(data) for data in Events(answer.content).data[:-1]]
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == [*range(17), 16]
    (row,) = await gateway.rows(1)
    assert (row.usage_source, row.output_tokens) == ("measured", 16)


async def test_a_stream_without_usage_is_charged_by_what_can_be_shown(
    gateway: Gateway, plain: MockVllm
) -> None:
    plain.fault("no_usage")
    answer = await gateway.chat("Tell me a story", stream=True, stream_options={"include_usage": True})
    assert b"usage" not in answer.content
    (row,) = await gateway.rows(1)
    assert (row.state, row.payer, row.usage_source) == ("answered", "tenant", "estimated")
    assert row.output_tokens == 16
    assert row.input_tokens == len("Tell me a story") // 4, "nobody pays for the braces around a text"
    assert row.charge_usd_nanos == charge_nanos("plain", fresh=row.input_tokens, cached=0, output=16)


async def test_a_connection_that_lingers_after_the_end_does_not_spoil_the_answer(home: Path) -> None:
    events = [
        b'data: {"id":"x","model":"tollgate-reference","choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n',
        b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":4,"completion_tokens":1}}\n\n',
        b"data: [DONE]\n\n",
    ]
    async with behind(home) as (gateway, engine):
        engine.replay = stream(events, ends=False)
        answer = await gateway.chat("Hi", stream=True)
        assert answer.content == events[0].replace(b"tollgate-reference", b"auto") + events[2]
        (row,) = await gateway.rows(1)
        assert (row.state, row.payer, row.input_tokens, row.output_tokens) == ("answered", "tenant", 4, 1)


async def test_text_that_looks_like_our_markers_passes_through_untouched(home: Path) -> None:
    text = 'data: [DONE]\n\n"usage":{"prompt_tokens":1} "error" "model":"tollgate-reference"\n\nend'
    chunk = {"id": "x", "model": "tollgate-reference", "choices": [{"index": 0, "delta": {"content": text}}]}
    event = b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"
    async with behind(home) as (gateway, engine):
        engine.replay = stream([event, event, event, b"data: [DONE]\n\n"])
        answer = await gateway.chat("Hi", stream=True)
        data = Events(answer.content).data
        assert len(data) == 4
        for one in data[:3]:
            assert json.loads(one) == {**chunk, "model": "auto"}
        assert answer.content.endswith(b"data: [DONE]\n\n")


async def test_the_engines_own_bytes_stay_in_numbers_and_text(home: Path) -> None:
    said = (
        b'{"id":"x","model":"tollgate-reference","choices":[{"index":0,"message":{"role":"assistant",'
        b'"content":"caf\\u00e9 \xf0\x9f\x99\x82 1.0"},"logprobs":{"content":[{"logprob":-1.50e-05}]}}],'
        b'"usage":{"prompt_tokens":4,"completion_tokens":1},"x":12345678901234567890123}'
    )
    async with behind(home) as (gateway, engine):
        engine.replay = whole(said)
        answer = await gateway.chat("Hi")
        assert answer.content == said.replace(b'"tollgate-reference"', b'"auto"')
