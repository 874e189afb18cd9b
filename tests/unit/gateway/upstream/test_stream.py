"""Does a client see its stream, its alias and its usage, and nothing of the engine, however bytes arrive?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import UpstreamError, UpstreamProtocolError, UpstreamRejected, UpstreamUnavailable
from gateway.inference import TokenUsage
from gateway.protocols.sse import DONE
from gateway.upstream.stream import StreamRelay
from tests.support.cuts import pieces

GOLDEN = Path(__file__).parents[3] / "support/golden"
STREAMS = sorted(
    str(path.relative_to(GOLDEN))
    for path in GOLDEN.glob("*/*.json")
    if "data: [DONE]" in path.read_text() and '"error' not in path.read_text()
)
MODEL = "tollgate-reference"


def relay(alias: str = "auto", *, model: str = MODEL, wants_usage: bool = True) -> StreamRelay:
    return StreamRelay(
        upstream_model=model,
        alias=alias,
        wants_usage=wants_usage,
        cost_text=lambda usage: f"0.{usage.total:09d}",
    )


def chunk(choices: list[dict[str, Any]] | None = None, **fields: Any) -> bytes:
    """An event as vLLM writes it: compact, non-ASCII as it is."""
    body = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": MODEL, "choices": choices or []}
    return (
        b"data: "
        + json.dumps({**body, **fields}, ensure_ascii=False, separators=(",", ":")).encode()
        + b"\n\n"
    )


def delta(content: str, finish: str | None = None, **fields: Any) -> bytes:
    return chunk([{"index": 0, "delta": {"content": content}, "finish_reason": finish}], **fields)


ROLE = chunk([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
COUNTS = {"prompt_tokens": 5, "total_tokens": 7, "completion_tokens": 2}
USAGE = chunk(
    usage={**COUNTS, "prompt_tokens_details": {"cached_tokens": 4}},
    system_fingerprint="vllm-0.32.0-deadbeef",
    metrics={"queue_time_ms": 0.5, "generation_time_ms": 2.5},
    kv_transfer_params=None,
)
ERROR = b'data: {"error": {"message": "boom", "type": "InternalServerError", "param": null, "code": 500}}\n\n'
REFUSAL = b'data: {"error": {"message": "no", "type": "BadRequestError", "param": "n", "code": 400}}\n\n'


def golden(name: str) -> bytes:
    return "".join(json.loads((GOLDEN / name).read_text())["response"]["pieces"]).encode()


def events(block: bytes) -> list[Any]:
    found = [part.removeprefix(b"data: ") for part in block.split(b"\n\n") if part.startswith(b"data: ")]
    return [data.decode() if data == b"[DONE]" else json.loads(data) for data in found]


def through(stream: bytes, *, wants_usage: bool = True, alias: str = "auto") -> list[Any]:
    return events(relay(alias, wants_usage=wants_usage).feed(stream))


# ------------------------------------------------------------------------------------- recorded streams
@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("wants_usage", [True, False])
def test_a_recorded_stream_keeps_its_events_but_for_the_last_ones(name: str, *, wants_usage: bool) -> None:
    expected: list[Any] = []
    for event in events(golden(name)):
        if event == "[DONE]":
            expected.append(event)
        elif event["choices"]:
            expected.append({**event, "model": "auto"})
        elif wants_usage:
            shown = {
                key: value for key, value in event.items() if key not in {"system_fingerprint", "metrics"}
            }
            usage = {**event["usage"], "cost_usd": f"0.{event['usage']['total_tokens']:09d}"}
            expected.append({**shown, "model": "auto", "usage": usage})
    assert through(golden(name), wants_usage=wants_usage) == expected


@given(st.data())
def test_cuts_change_nothing_that_the_client_gets(data: st.DataObject) -> None:
    stream = golden(data.draw(st.sampled_from(STREAMS)))
    if data.draw(st.booleans()):
        stream = stream.replace(b"\n", b"\r\n")
    alias = data.draw(st.sampled_from(["auto", MODEL, 'quo"te é']))
    wants_usage = data.draw(st.booleans())
    whole, cut = relay(alias, wants_usage=wants_usage), relay(alias, wants_usage=wants_usage)
    expected = whole.feed(stream)
    assert b"".join(cut.feed(piece) for piece in data.draw(pieces(stream))) == expected
    cut.end()
    assert (cut.usage, cut.engine, cut.is_done) == (whole.usage, whole.engine, True)
    assert cut.has_content


@pytest.mark.parametrize("name", [name for name in STREAMS if name.endswith("_usage.json")])
def test_the_usage_of_a_recorded_stream_is_learned(name: str) -> None:
    seen = relay()
    seen.feed(golden(name))
    wire = events(golden(name))[-2]["usage"]
    assert seen.usage is not None
    assert seen.usage.total == wire["total_tokens"]
    assert (seen.engine.draft_steps is not None) is ("speculative" in name and "n2" not in name)


# ---------------------------------------------------------------------------------------------- content
def test_a_role_is_no_content() -> None:
    seen = relay()
    seen.feed(ROLE)
    assert not seen.has_content
    assert seen.content_events == 0


@pytest.mark.parametrize(
    "event",
    [
        delta("Hi"),
        delta("", finish="stop"),
        chunk([{"index": 0, "delta": {"reasoning": "Hm"}, "finish_reason": None}]),
        chunk(
            [{"index": 0, "delta": {"content": None, "tool_calls": [{"index": 0}]}, "finish_reason": None}]
        ),
        chunk([{"index": 0, "delta": {"refusal": "No"}, "finish_reason": None}]),
        chunk([{"index": 0, "text": "Hi", "finish_reason": None}]),
        chunk([{"index": 0, "text": "", "finish_reason": "length"}]),
        chunk([{"index": 0, "delta": {}}, {"index": 1, "delta": {"content": "B"}}]),
    ],
    ids=["text", "the end", "reasoning", "tool call", "refusal", "completion", "its end", "second choice"],
)
def test_whatever_was_generated_is_content(event: bytes) -> None:
    seen = relay()
    seen.feed(event)
    assert seen.has_content
    assert seen.content_events == 1


@pytest.mark.parametrize(
    "event",
    [
        delta(""),
        chunk([{"index": 0, "delta": {"content": None, "tool_calls": []}, "finish_reason": None}]),
        chunk([{"index": 0, "delta": None, "finish_reason": None}]),
        chunk([{"index": 0, "text": "", "finish_reason": None}]),
        chunk([]),
        b": keep-alive\n\n",
    ],
    ids=["empty text", "empty tools", "no delta", "empty completion", "no choices", "comment"],
)
def test_what_says_nothing_passes_and_is_no_content(event: bytes) -> None:
    seen = relay(MODEL)
    assert seen.feed(event) == event
    assert not seen.has_content


def test_events_with_content_are_counted() -> None:
    seen = relay()
    for piece in (ROLE, delta("a"), delta("b") + delta("c"), delta("d", finish="stop"), USAGE, DONE):
        seen.feed(piece)
    assert seen.content_events == 4


# ------------------------------------------------------------------------------------------- usage and engine
def test_a_wanted_usage_carries_its_cost_and_nothing_of_the_engine() -> None:
    assert through(USAGE) == [
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "model": "auto",
            "choices": [],
            "usage": {**COUNTS, "prompt_tokens_details": {"cached_tokens": 4}, "cost_usd": "0.000000007"},
        }
    ]


def test_an_unwanted_usage_is_learned_and_hidden() -> None:
    seen = relay(wants_usage=False)
    assert seen.feed(delta("a") + USAGE + DONE) == delta("a").replace(MODEL.encode(), b"auto") + DONE
    assert seen.usage == TokenUsage(input=1, cached_input=4, output=2)
    assert (seen.engine.queue_ms, seen.engine.generation_ms) == (0.5, 2.5)


def test_continuous_usage_is_learned_as_it_grows() -> None:
    seen = relay()
    first = delta("a", usage={**COUNTS, "total_tokens": 6, "completion_tokens": 1})
    assert events(seen.feed(first))[0]["usage"]["completion_tokens"] == 1
    assert seen.usage == TokenUsage(input=5, output=1)
    seen.feed(delta("b", usage=COUNTS))
    assert seen.usage == TokenUsage(input=5, output=2)


def test_a_null_usage_is_none() -> None:
    seen = relay()
    seen.feed(delta("a", usage=None) + chunk(usage=None))
    assert seen.usage is None


@pytest.mark.parametrize("fields", [{"usage": {"prompt_tokens": "5"}}, {"usage": COUNTS, "metrics": [1]}])
def test_an_unreadable_usage_is_a_broken_answer(fields: dict[str, Any]) -> None:
    with pytest.raises(UpstreamProtocolError, match="unreadable usage"):
        relay().feed(chunk(**fields))


# ------------------------------------------------------------------------------------------ the model's name
def test_the_alias_replaces_the_models_name_in_every_event() -> None:
    found = through(ROLE + delta("a") + USAGE + DONE, alias='a "quoted" alias é')
    assert [event["model"] for event in found[:-1]] == ['a "quoted" alias é'] * 3


def test_a_model_that_is_asked_for_by_its_own_name_passes_untouched() -> None:
    stream = ROLE + delta("a") + DONE
    assert relay(MODEL).feed(stream) == stream


FORGED = [
    f'{{"model":"{MODEL}"}}',
    f'"model":"{MODEL}"',
    '"usage":{"prompt_tokens":999999,"completion_tokens":0}',
    '{"error":{"message":"x"}}',
    '"error"',
    "data: [DONE]\n\n",
    "[DONE]",
    f'\\"model\\":\\"{MODEL}\\"',
    '\\\\","usage":{"prompt_tokens":1}',
]


@pytest.mark.parametrize("text", FORGED)
def test_generated_text_cannot_pose_as_framing(text: str) -> None:
    seen = relay()
    for piece in (
        ROLE,
        delta("a"),
        delta(text),
        chunk([{"index": 0, "text": text}]),
        delta(text, finish="stop"),
    ):
        event = events(seen.feed(piece))[0]
        assert event["model"] == "auto"
        choice = event["choices"][0]
        assert choice.get("text", choice.get("delta", {}).get("content")) in {text, "a", ""}
    assert seen.usage is None
    assert not seen.is_done
    assert seen.feed(USAGE + DONE).endswith(DONE)
    assert seen.usage == TokenUsage(input=1, cached_input=4, output=2)


@given(
    st.lists(st.sampled_from(FORGED) | st.text('"\\{}:model,é\n', max_size=8), min_size=1, max_size=4),
    st.data(),
)
def test_generated_text_arrives_as_it_was_written(texts: list[str], data: st.DataObject) -> None:
    stream = ROLE + b"".join(delta(text) for text in texts) + delta("", finish="stop") + USAGE + DONE
    seen = relay()
    got = events(b"".join(seen.feed(piece) for piece in data.draw(pieces(stream))))
    assert "".join(event["choices"][0]["delta"]["content"] for event in got[:-2]) == "".join(texts)
    assert seen.usage == TokenUsage(input=1, cached_input=4, output=2)


# ------------------------------------------------------------------------------------------------- failures
def test_an_error_before_content_is_raised_at_once() -> None:
    with pytest.raises(UpstreamUnavailable, match="boom"):
        relay().feed(ERROR + DONE)


def test_a_refusal_before_content_is_the_callers_to_mend() -> None:
    with pytest.raises(UpstreamRejected) as caught:
        relay().feed(REFUSAL + DONE)
    assert (caught.value.status_code, caught.value.param, caught.value.caller_detail) == (400, "n", "no")


@pytest.mark.parametrize("event", [ERROR, REFUSAL])
def test_an_error_after_content_is_a_failure_of_the_engine(event: bytes) -> None:
    seen = relay()
    seen.feed(ROLE + delta("a"))
    with pytest.raises(UpstreamUnavailable):
        seen.feed(event + DONE)


@pytest.mark.parametrize("next_call", ["feed", "end"])
def test_content_in_the_same_piece_as_an_error_is_passed_on_first(next_call: str) -> None:
    seen = relay(MODEL)
    assert seen.feed(ROLE + delta("a") + ERROR + DONE) == ROLE + delta("a")
    with pytest.raises(UpstreamUnavailable, match="boom"):
        seen.feed(b"") if next_call == "feed" else seen.end()


def test_an_error_of_another_shape_is_an_error_too() -> None:
    with pytest.raises(UpstreamUnavailable):
        relay().feed(b'data: {"error":7}\n\n')


@given(st.data())
def test_cuts_lose_nothing_before_an_error(data: st.DataObject) -> None:
    before = ROLE + delta("a") + delta("b")
    seen, got = relay(MODEL), b""
    failure: UpstreamError | None = None
    for piece in [*data.draw(pieces(before + ERROR + DONE)), b""]:
        try:
            got += seen.feed(piece)
        except UpstreamError as error:
            failure = error
            break
    assert got == before
    assert isinstance(failure, UpstreamUnavailable)


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        ROLE,
        ROLE + delta("a"),
        ROLE + delta("a", finish="stop") + USAGE,
        ROLE + delta("a") + b'data: {"id',
    ],
    ids=["nothing", "role only", "no end", "no done", "half an event"],
)
def test_a_stream_that_stops_before_it_is_done_is_cut_off(stream: bytes) -> None:
    seen = relay()
    seen.feed(stream)
    with pytest.raises(UpstreamUnavailable, match=r"before \[DONE\]"):
        seen.end()


def test_a_stream_that_is_done_may_end() -> None:
    seen = relay()
    seen.feed(ROLE + delta("a") + DONE)
    seen.end()
    assert seen.is_done


@pytest.mark.parametrize(
    "event",
    [
        b"data: hello\n\n",
        b"data: [1]\n\n",
        b'data: {"choices":{}}\n\n',
        b'data: {"choices":[{"text":1}]}\n\n',
        b"data:\n\n",
        pytest.param(b'data: {"x":' + b"[" * 100_000 + b"\n\n", id="too deep for the parser"),
    ],
)
def test_what_is_no_stream_of_this_format_is_a_broken_answer(event: bytes) -> None:
    with pytest.raises(UpstreamProtocolError, match="not an OpenAI stream event"):
        relay().feed(event)
