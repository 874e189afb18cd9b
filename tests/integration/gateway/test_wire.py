"""Is the client's body, byte for byte, what the engine said under the name that was asked for?

Whole bodies are compared. What the engine says is taken from a script in the test, which plays back what
vLLM's own recordings hold, so that not one byte of it is made up by the code under test.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.integration.gateway.rig import CHAT, TEXT, Events, Gateway, running, settings_for
from tests.support.mock_process import MockVllm
from tests.support.mock_vllm_exchange import load
from tests.support.pool_files import charge_nanos, usd

# Nothing here depends on where keys and rows are kept: the other files try both kinds of store.
pytestmark = pytest.mark.parametrize("home", ["embedded"], indirect=True)

GOLDEN: Final = Path(__file__).parents[2] / "support" / "golden"
ENGINE_ONLY: Final = {
    "system_fingerprint",
    "metrics",
    "prompt_token_ids",
    "prompt_text",
    "kv_transfer_params",
    "ec_transfer_params",
}

Replay = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Engine:
    """A server that answers every generation with what it was given, after it was proved healthy."""

    def __init__(self) -> None:
        self.replay: Replay = _probe_answer
        self.asked: list[dict[str, Any]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.lower().split(b"\r\n")
                fields = dict(line.split(b": ", 1) for line in lines[1:] if b": " in line)
                body = await reader.readexactly(int(fields.get(b"content-length", b"0")))
                if not head.startswith(b"POST"):
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                else:
                    self.asked.append(json.loads(body))
                    await self.replay(writer)
                await writer.drain()
        writer.close()


async def _probe_answer(writer: asyncio.StreamWriter) -> None:
    body = b'{"choices":[{"index":0,"text":"1"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
    writer.write(b"content-length: %d\r\n\r\n%s" % (len(body), body))


def whole(body: bytes) -> Replay:
    async def replay(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
        writer.write(b"content-length: %d\r\n\r\n%s" % (len(body), body))

    return replay


def stream(pieces: list[bytes], *, ends: bool = True) -> Replay:
    async def replay(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n")
        writer.write(b"transfer-encoding: chunked\r\n\r\n")
        for piece in pieces:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
        if ends:
            writer.write(b"0\r\n\r\n")

    return replay


@contextlib.asynccontextmanager
async def behind(home: Path) -> AsyncIterator[tuple[Gateway, Engine]]:
    """A gateway whose pools are both this engine."""
    engine = Engine()
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    try:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        settings = settings_for(home, {"speculative": [url], "plain": [url]})
        async with running(settings) as gateway:
            yield gateway, engine
    finally:
        server.close()


STRICTER: Final = {"chat_ignored_bad_fields", "chat_numbers_as_text"}
"""vLLM guesses what a wrong type means; the gateway, which decides by these fields, says that it is wrong."""


def recordings(*, streamed: bool, refused: bool = False) -> list[Any]:
    """Answers of a real vLLM, by name; streams whose first event is an error, or all others."""
    found = []
    for path in sorted(GOLDEN.rglob("*.json")):
        ask, reply = load(path)
        is_generation = ask.path in {CHAT, TEXT} and ask.method == "POST" and reply.status == 200
        if (
            is_generation
            and reply.is_stream == streamed
            and reply.body.startswith(b'data: {"error"') == refused
            and path.stem not in STRICTER
        ):
            found.append(pytest.param(path, id=str(path.relative_to(GOLDEN).with_suffix(""))))
    return found


def _asked(path: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(load(path)[0].body)
    return {**body, "model": "tollgate-reference-plain"}


@pytest.mark.parametrize("path", recordings(streamed=False))
async def test_a_whole_answer_of_vllm_reaches_the_client_under_the_alias(home: Path, path: Path) -> None:
    ask, reply = load(path)
    async with behind(home) as (gateway, engine):
        engine.replay = whole(reply.body)
        answer = await gateway.client.post(ask.path, json=_asked(path))
        assert answer.status_code == 200, answer.text
        said = json.loads(reply.body)
        expected = {name: value for name, value in said.items() if name not in ENGINE_ONLY}
        expected["model"] = "tollgate-reference-plain"
        assert answer.json() == expected
        assert list(answer.json()) == [name for name in said if name not in ENGINE_ONLY]
        # Nothing is written anew: the values are the engine's own bytes.
        choices = reply.body[reply.body.index(b'"choices":') :].split(b',"service_tier"')[0]
        assert choices.split(b',"usage"')[0] in answer.content


@pytest.mark.parametrize("path", recordings(streamed=True))
async def test_a_stream_of_vllm_reaches_the_client_under_the_alias(home: Path, path: Path) -> None:
    ask, reply = load(path)
    asked = _asked(path)
    wants_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
    served = json.loads(ask.body)["model"]
    async with behind(home) as (gateway, engine):
        gateway_name = b'"model":"tollgate-reference-plain"'
        engine.replay = stream(
            [piece.replace(json.dumps(served).encode(), b'"tollgate-reference"') for piece in reply.pieces]
        )
        answer = await gateway.client.post(ask.path, json=asked)
        assert answer.status_code == 200, answer.text
        expected = []
        for event in reply.body.decode().split("\n\n")[:-1]:
            data = event.removeprefix("data: ")
            if data == "[DONE]" or json.loads(data)["choices"]:
                written = data.replace(f'"model":"{served}"', gateway_name.decode())
                expected.append(written)
            elif wants_usage:
                expected.append("usage")
        got = [
            "usage" if data != "[DONE]" and not json.loads(data)["choices"] else data
            for data in Events(answer.content).data
        ]
        assert got == expected
        assert engine.asked[-1]["stream_options"]["include_usage"] is True


@pytest.mark.parametrize("path", recordings(streamed=True, refused=True))
async def test_a_refusal_of_vllm_inside_its_stream_reaches_the_client_as_a_refusal(
    home: Path, path: Path
) -> None:
    ask, reply = load(path)
    async with behind(home) as (gateway, engine):
        engine.replay = stream(reply.pieces)
        answer = await gateway.client.post(ask.path, json=_asked(path))
        said = reply.events()[0]["error"]
        assert answer.status_code == said["code"] == 400
        assert answer.json()["error"]["message"] == said["message"]
        assert len(engine.asked) == 3, "two probes and one request: nothing was tried again"


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
    request = json.dumps(
        {
            "model": "auto",
            "messages": [{"role": "user", "content": "Tell me a story"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        separators=(",", ":"),
    )
    assert row.input_tokens == -(-len(request) // 4)
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
