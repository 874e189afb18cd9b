"""What does the client get, and who pays, when the world outside misbehaves?"""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.settings import TimeoutSettings
from tests.integration.gateway.overflow_rig import KEY, opt_in, overflowing
from tests.integration.gateway.rig import TEXT, Events, Gateway, running
from tests.support.mock_process import OpenAiServer

# Nothing here depends on where keys and rows are kept: the other files try both kinds of store.
pytestmark = pytest.mark.parametrize("home", ["embedded"], indirect=True)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "error", "told"),
    [
        (429, {"message": "Rate limit reached", "code": "rate_limit_exceeded"}, (503, "upstream_overloaded")),
        (503, {"message": "The engine is overloaded"}, (503, "upstream_overloaded")),
        (500, {"message": "The server had an error"}, (502, "upstream_unavailable")),
        (401, {"message": f"Incorrect API key provided: {KEY}."}, (502, "upstream_unavailable")),
        (402, {"message": "Insufficient credits"}, (502, "upstream_unavailable")),
        (403, {"message": "Country not supported"}, (502, "upstream_unavailable")),
        (
            404,
            {"message": "The model `x` does not exist", "code": "model_not_found"},
            (502, "upstream_unavailable"),
        ),
        (307, {"message": "Moved"}, (502, "upstream_unavailable")),
    ],
)
async def test_a_failure_outside_is_an_attempt_that_failed(
    alone: Gateway,
    outside: OpenAiServer,
    caplog: pytest.LogCaptureFixture,
    *,
    status: int,
    error: dict[str, Any],
    told: tuple[int, str],
    stream: bool,
) -> None:
    outside.control(status=status, error=error)
    answer = await alone.chat("Hm", stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == told
    assert answer.headers["x-should-retry"] == "true"
    message = answer.json()["error"]["message"]
    assert message.startswith("The model could not answer (1 attempt")
    assert len(outside.received()) == 1, "it was tried again"
    (row,) = await alone.rows(1)
    assert (row.pool, row.state, row.payer, row.charge_usd_nanos) == ("outside", "failed", "platform", 0)
    assert (row.status_code, row.error_code) == (status, told[1])
    assert f"external target 'outside' answered {status}: {error['message'][:12]}" in caplog.text
    assert KEY not in caplog.text
    assert "127.0.0.1" not in answer.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (
            400,
            {
                "message": "Bad temperature",
                "type": "invalid_request_error",
                "param": "temperature",
                "code": "bad",
            },
        ),
        (
            400,
            {
                "message": "This model's maximum context length is 128 tokens. However, …",
                "type": "invalid_request_error",
                "param": "messages",
                "code": "context_length_exceeded",
            },
        ),
        (
            400,
            {
                "message": "The prompt was refused by the content filter.",
                "type": "invalid_request_error",
                "param": "prompt",
                "code": "content_filter",
            },
        ),
        (422, {"message": "Unprocessable", "type": "invalid", "param": None, "code": "odd"}),
    ],
)
async def test_a_refusal_outside_is_the_callers_to_mend(
    alone: Gateway, outside: OpenAiServer, *, status: int, error: dict[str, Any], stream: bool
) -> None:
    outside.control(status=status, error=error)
    answer = await alone.chat("Hm", model="auto", stream=stream)
    assert answer.status_code == status
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"] == {
        "message": error["message"],
        "type": "invalid_request_error",
        "param": error["param"],
        "code": error["code"],
    }
    (row,) = await alone.rows(1)
    assert (row.error_code, row.status_code, row.charge_usd_nanos) == ("upstream_rejected", status, 0)


async def test_a_providers_sentence_never_tells_our_key_or_its_address(
    alone: Gateway, outside: OpenAiServer
) -> None:
    outside.control(status=400, error={"message": f"{outside.api_base} does not like {KEY}", "type": "x"})
    answer = await alone.chat("Hm")
    assert answer.json()["error"]["message"] == "… does not like …"


async def test_an_answer_without_usage_is_estimated_and_said_to_be(
    alone: Gateway, outside: OpenAiServer
) -> None:
    outside.control(usage=None)
    plain = await alone.chat("Hm " * 100)
    assert plain.status_code == 200
    assert "usage" not in plain.json()
    streamed = await alone.chat("Hm " * 100, stream=True)
    assert Events(streamed.content).data[-1] == "[DONE]"
    rows = await alone.rows(2)
    assert [(row.state, row.payer, row.usage_source) for row in rows] == [
        ("answered", "tenant", "estimated")
    ] * 2
    assert all((row.charge_usd_nanos or 0) >= row.input_tokens * 1500 > 0 for row in rows)
    assert [row.output_tokens for row in rows] == [0, 4]  # three words and the reason for the end


async def test_a_whole_answer_that_is_cut_is_no_answer(alone: Gateway, outside: OpenAiServer) -> None:
    outside.control(cuts_after=1)
    answer = await alone.chat("Hm")
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_unavailable")


@pytest.mark.parametrize("manner", [{"cuts_after": 0}, {"ends_after": 0}])
async def test_a_stream_that_breaks_before_its_first_content_moves_on(
    alone: Gateway, outside: OpenAiServer, manner: dict[str, Any]
) -> None:
    outside.control(**manner)
    answer = await alone.chat("Hm", stream=True)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_unavailable")


@pytest.mark.parametrize(
    ("manner", "words"),
    [
        ({"cuts_after": 2}, 2),
        ({"ends_after": 2}, 2),
        ({"error": {"message": f"Oops {KEY}", "type": "server_error", "code": None, "param": None}}, 1),
    ],
)
async def test_a_stream_that_breaks_in_the_middle_is_the_platforms_loss(
    alone: Gateway, outside: OpenAiServer, manner: dict[str, Any], words: int
) -> None:
    outside.control(**manner)
    answer = await alone.chat("Hm", stream=True)
    assert answer.status_code == 200
    *events, error, done = Events(answer.content).data
    assert done == "[DONE]"
    assert json.loads(error)["error"]["code"] == "upstream_unavailable"
    assert KEY not in answer.text
    contents = [json.loads(event)["choices"][0]["delta"].get("content") for event in events]
    assert contents == ["", "Over", " the", " hills"][: words + 1]
    (row,) = await alone.rows(1)
    assert (row.state, row.payer, row.usage_source) == ("interrupted", "platform", "estimated")
    assert row.output_tokens == words


@pytest.mark.parametrize("stream", [False, True])
async def test_an_outside_that_hangs_is_given_up_and_let_go(
    home: Path, outside: OpenAiServer, *, stream: bool
) -> None:
    timeouts = TimeoutSettings(connect_s=2, first_token_s=0.5, between_tokens_s=0.5, total_s=0.5)
    async with running(overflowing(home, outside, timeouts=timeouts), is_up=False) as gateway:
        await opt_in(gateway)
        outside.control(hangs=True)
        answer = await gateway.chat("Hm", stream=stream)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_timeout")
        await asyncio.to_thread(outside.wait_for, aborted=1, in_flight=0, connections_open=0)


async def test_an_outside_that_falls_silent_is_given_up_and_let_go(home: Path, outside: OpenAiServer) -> None:
    timeouts = TimeoutSettings(connect_s=2, first_token_s=10, between_tokens_s=0.5, total_s=10)
    async with running(overflowing(home, outside, timeouts=timeouts), is_up=False) as gateway:
        await opt_in(gateway)
        outside.control(hangs_after=2)
        answer = await gateway.chat("Hm", stream=True)
        error = json.loads(Events(answer.content).data[-2])["error"]
        assert (answer.status_code, error["code"]) == (200, "upstream_timeout")
        await asyncio.to_thread(outside.wait_for, aborted=1, in_flight=0, connections_open=0)
        (row,) = await gateway.rows(1)
        assert (row.state, row.payer, row.output_tokens) == ("interrupted", "platform", 2)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "raw", ["<html>It works!</html>", "", "{}", '{"choices": []}', 'data: {"choices"\n\n']
)
async def test_what_is_no_answer_is_none(
    alone: Gateway, outside: OpenAiServer, *, raw: str, stream: bool
) -> None:
    outside.control(raw=raw)
    for answer in (
        await alone.chat("Hm", stream=stream),
        await alone.client.post(TEXT, json={"model": "auto", "prompt": "Hm", "stream": stream}),
    ):
        assert answer.status_code == 502, answer.text
        assert answer.json()["error"]["code"] in {"upstream_unavailable", "upstream_protocol"}
    rows = await alone.rows(2)
    assert {(row.state, row.payer) for row in rows} == {("failed", "platform")}
