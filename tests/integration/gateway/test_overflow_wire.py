"""What leaves the company when a call overflows, and what comes back to the client and into the books?"""

import json
from typing import Any, Final

import pytest

from tests.integration.gateway.overflow_rig import CHARGE_NANOS, EXTRACT, KEY, is_charged
from tests.integration.gateway.rig import TEXT, Events, Gateway, bearer
from tests.support.mock_process import OpenAiServer
from tests.support.pool_files import usd

# Nothing here depends on where keys and rows are kept: the other files try both kinds of store.
pytestmark = pytest.mark.parametrize("home", ["embedded"], indirect=True)


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
    is_charged(row)
    assert row.endpoint == "chat/completions"


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
    is_charged(row)
    assert row.ttft_ms is not None


async def test_a_client_that_did_not_ask_for_usage_gets_none_andis_charged_by_it(alone: Gateway) -> None:
    answer = await alone.chat("Hm", stream=True)
    events = Events(answer.content).data
    assert events[-1] == "[DONE]"
    assert "usage" not in answer.text
    (row,) = await alone.rows(1)
    is_charged(row)


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


PRIVATE: Final = "ann.private@example.com"


@pytest.mark.parametrize("stream", [False, True])
async def test_nothing_private_reaches_the_outside(
    alone: Gateway, outside: OpenAiServer, *, stream: bool
) -> None:
    answer = await alone.chat(
        "Hm",
        stream=stream,
        metadata={"team": PRIVATE},
        user=PRIVATE,
        safety_identifier=PRIVATE,
        prompt_cache_key=PRIVATE,
        cache_salt=PRIVATE,
        service_tier="priority",
        store=True,
        top_k=5,
        chat_template_kwargs={"enable_thinking": False},
        headers={"x-request-id": PRIVATE, "cookie": PRIVATE, "x-tollgate-task": "chat", "x-mine": PRIVATE},
    )
    assert answer.status_code == 200, answer.text
    (asked,) = outside.received()
    streamed = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    assert asked["body"] == {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": "Hm"}],
        "max_tokens": 256,
        **streamed,
    }
    told = asked["headers"]
    assert told.pop("authorization") == f"Bearer {KEY}"
    assert told.pop("user-agent") == "tollgate"
    assert set(told) == {
        "host",
        "accept",
        "accept-encoding",
        "connection",
        "content-type",
        "content-length",
        "x-stainless-raw-response",
    }
    whole = json.dumps(asked)
    assert PRIVATE not in whole
    assert alone.key not in whole
    assert alone.tenant_id not in whole
    assert alone.services.keys.authenticate(bearer(alone.key)).cache_salt not in whole
    assert answer.headers["x-tollgate-dropped"] == "cache_salt, top_k, chat_template_kwargs"


async def test_what_openai_knows_is_passed_on(alone: Gateway, outside: OpenAiServer) -> None:
    fields: dict[str, Any] = {
        "n": 2,
        "stop": ["\n"],
        "seed": 7,
        "logprobs": True,
        "top_logprobs": 2,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "top_p": 0.9,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "strict": True, "schema": {"type": "object"}},
        },
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "max_completion_tokens": 70,
    }
    answer = await alone.chat("Grüße", **fields)
    assert answer.status_code == 200, answer.text
    (asked,) = outside.received()
    messages = [{"role": "user", "content": "Grüße"}]
    assert asked["body"] == {"model": "gpt-4o-mini", "messages": messages, **fields}
    assert "x-tollgate-dropped" not in answer.headers
    first, second = answer.json()["choices"]
    assert first["logprobs"]["content"][0]["token"] == "Over"
    assert second["index"] == 1


async def test_a_tools_call_comes_back_as_openai_says_it(alone: Gateway, outside: OpenAiServer) -> None:
    outside.control(calls_tool=True)
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    answer = await alone.chat("Weather in Ulm?", tools=tools)
    (choice,) = answer.json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [
            {
                "id": "call_12345xyz",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city": "Ulm"}'},
            }
        ],
    }


async def test_every_choice_of_a_stream_arrives(alone: Gateway) -> None:
    answer = await alone.chat("Hm", stream=True, n=2)
    *events, done = Events(answer.content).data
    assert done == "[DONE]"
    choices = [json.loads(event)["choices"][0] for event in events]
    for index in (0, 1):
        mine = [choice for choice in choices if choice["index"] == index]
        assert "".join(one["delta"].get("content") or "" for one in mine) == "Over the hills"
        assert mine[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"structured_outputs": {"choice": ["a", "b"]}}, "`structured_outputs` means something to our own"),
        ({"guided_regex": "[ab]"}, "`structured_outputs` means something to our own"),
        ({"ignore_eos": True}, "`ignore_eos` means something to our own"),
        ({"logit_bias": {"5": 10}}, "`logit_bias` means something to our own"),
        ({"never_heard_of": 1}, "`never_heard_of` means something to our own"),
        ({"api_base": "http://127.0.0.1:9/"}, "`api_base` means something to our own"),
        ({"mock_response": "free"}, "`mock_response` means something to our own"),
        ({"response_format": {"type": "structural_tag"}}, "its `response_format` means something"),
        ({"tools": [{"type": "web_search"}]}, "one of its `tools` is not run by the caller"),
    ],
)
async def test_what_only_our_engines_understand_stays_inside(
    alone: Gateway, outside: OpenAiServer, fields: dict[str, Any], reason: str
) -> None:
    answer = await alone.chat("Hm", **fields)
    assert answer.status_code == 503
    assert f"Overflow was not used: outside: {reason}" in answer.json()["error"]["message"]
    assert outside.received() == []
    await alone.rows(0)


async def test_a_prompt_of_token_ids_stays_inside(alone: Gateway, outside: OpenAiServer) -> None:
    for prompt in ([1, 2, 3], [[1, 2], [3]]):
        answer = await alone.client.post(TEXT, json={"model": "auto", "prompt": prompt})
        assert answer.status_code == 503
        assert "token ids" in answer.json()["error"]["message"]
    assert outside.received() == []


async def test_a_model_that_thinks_is_told_the_bound_by_the_name_it_knows(
    alone: Gateway, outside: OpenAiServer
) -> None:
    for fields, bound in (({}, 256), ({"max_tokens": 70}, 70), ({"max_completion_tokens": 80}, 80)):
        answer = await alone.chat("Hm", model="thinking", **fields)
        assert answer.status_code == 200, answer.text
        sent = outside.received()[-1]["body"]
        assert sent["max_completion_tokens"] == bound
        assert "max_tokens" not in sent


async def test_a_call_that_litellm_would_not_send_is_no_fault_of_the_caller(
    alone: Gateway, outside: OpenAiServer, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await alone.chat("Hm", model="thinking", temperature=0.5)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_unavailable")
    assert "litellm" not in answer.text
    assert "external target 'thinker': litellm.UnsupportedParamsError" in caplog.text
    assert outside.received() == []
    (row,) = await alone.rows(1)
    assert (row.state, row.payer, row.charge_usd_nanos) == ("failed", "platform", 0)
