"""Is an engine told what the client asked for, and does its answer come back as the client's?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import (
    UpstreamError,
    UpstreamOverloaded,
    UpstreamProtocolError,
    UpstreamRejected,
    UpstreamUnavailable,
)
from gateway.inference import Call, EngineMetrics, TokenUsage, UsageSource
from gateway.protocols.json_body import decode_object
from gateway.upstream.vllm import ENGINE_ONLY, error_of, output_bound, read_completion, request_body
from tests.support.factories import make_call, make_decision, make_target

GOLDEN = Path(__file__).parents[3] / "support/golden"


def golden(name: str) -> tuple[int, bytes]:
    response = json.loads((GOLDEN / name).read_text())["response"]
    return response["status"], "".join(response["pieces"]).encode()


def sent(call: Call) -> dict[str, Any]:
    body = request_body(call, make_decision(), make_target(), cache_salt="salt")
    value: dict[str, Any] = json.loads(body)
    return value


def call_of(body: str, **changes: Any) -> Call:
    return make_call(fields=decode_object(body.encode()), **changes)


# -------------------------------------------------------------------------------------------------- requests
def test_an_engine_gets_its_models_name_the_tenants_salt_and_a_bound() -> None:
    assert sent(call_of('{"model":"auto","messages":[],"top_k":5}')) == {
        "model": "tollgate-reference",
        "messages": [],
        "top_k": 5,
        "cache_salt": "salt",
        "max_tokens": 256,
    }


def test_the_clients_own_limit_is_never_changed() -> None:
    call = call_of('{"model":"auto","max_completion_tokens":5000}', max_tokens=5000)
    assert sent(call) == {"model": "tollgate-reference", "max_completion_tokens": 5000, "cache_salt": "salt"}


def test_a_limit_of_null_is_replaced_by_the_policys() -> None:
    assert sent(call_of('{"model":"auto","max_tokens":null}'))["max_tokens"] == 256


@pytest.mark.parametrize(("continuous", "options"), [(False, {}), (True, {"continuous_usage_stats": True})])
def test_a_stream_is_always_asked_for_its_usage(*, continuous: bool, options: dict[str, bool]) -> None:
    call = call_of('{"model":"auto"}', is_streaming=True, wants_continuous_usage=continuous)
    body = sent(call)
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True, **options}


def test_building_a_body_leaves_the_call_as_it_was() -> None:
    call = call_of('{"model":"auto"}', is_streaming=True)
    assert sent(call) == sent(call)
    assert list(call.fields) == ["model"]


@pytest.mark.parametrize(("context", "bound"), [(1024, 256), (100, 100)])
def test_without_a_limit_the_policys_default_or_the_context_bounds_the_output(
    context: int, bound: int
) -> None:
    assert output_bound(make_call(), make_decision(), make_target(max_model_len=context)) == bound


def test_the_clients_limit_bounds_the_output() -> None:
    assert output_bound(make_call(max_tokens=7), make_decision(), make_target()) == 7


# --------------------------------------------------------------------------------------------------- answers
@pytest.mark.parametrize("name", ["plain/chat.json", "speculative/chat_n2.json", "plain/completion.json"])
def test_a_recorded_answer_comes_back_under_the_alias_without_the_engines_own(name: str) -> None:
    _, body = golden(name)
    theirs = json.loads(body)
    expected = {key: value for key, value in theirs.items() if key not in ENGINE_ONLY} | {"model": "auto"}
    completion = read_completion(body, alias="auto")
    assert json.loads(completion.body) == expected
    assert completion.usage_source is UsageSource.MEASURED
    assert completion.usage is not None
    assert completion.usage.total == theirs["usage"]["total_tokens"]


def test_an_answer_without_usage_is_estimated() -> None:
    completion = read_completion(b'{"choices":[],"usage":null}', alias="auto")
    assert (completion.usage, completion.usage_source) == (None, UsageSource.ESTIMATED)
    assert completion.engine == EngineMetrics()


def test_an_answer_may_come_without_metrics() -> None:
    completion = read_completion(b'{"choices":[],"usage":{"prompt_tokens":3}}', alias="auto")
    assert completion.usage == TokenUsage(input=3)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"id":1}',
        b'{"choices":[],"usage":5}',
        b'{"choices":[],"metrics":5}',
        b'{"a":1,}',
        pytest.param(b'{"x":' + b"[" * 100_000, id="too deep for the parser"),
    ],
)
def test_what_is_no_answer_is_refused(body: bytes) -> None:
    with pytest.raises(UpstreamProtocolError, match="not an OpenAI answer"):
        read_completion(body, alias="auto")


# ---------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (429, UpstreamOverloaded),
        (503, UpstreamOverloaded),
        (408, UpstreamOverloaded),
        (500, UpstreamUnavailable),
        (502, UpstreamUnavailable),
        (401, UpstreamUnavailable),
        (403, UpstreamUnavailable),
        (404, UpstreamUnavailable),
        (405, UpstreamUnavailable),
        (302, UpstreamUnavailable),
        (204, UpstreamUnavailable),
        (400, UpstreamRejected),
        (413, UpstreamRejected),
        (422, UpstreamRejected),
    ],
)
def test_a_status_says_whose_fault_it_is(status: int, kind: type[UpstreamError]) -> None:
    error = error_of(status, b'{"error":{"message":"m"}}', replica="plain-0")
    assert type(error) is kind
    assert error.upstream_status == status


@pytest.mark.parametrize(
    "name", ["bad_max_tokens_zero", "bad_messages_empty", "limit_chat_too_long", "bad_json"]
)
def test_a_recorded_refusal_is_passed_on_in_the_engines_words(name: str) -> None:
    status, body = golden(f"plain/{name}.json")
    said = json.loads(body)["error"]
    error = error_of(status, body, replica="plain-0")
    assert isinstance(error, UpstreamRejected)
    assert (error.caller_detail, error.param) == (said["message"], said["param"])
    assert (error.status_code, error.upstream_code) == (400, said["type"])


def test_what_an_engine_says_of_itself_stays_with_the_operator() -> None:
    error = error_of(500, b'{"error":{"message":"CUDA error at 10.0.0.7"}}', replica="plain-0")
    assert error.caller_detail == "The model could not answer."
    assert error.operator_detail == "plain-0 answered 500: CUDA error at 10.0.0.7"


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"error":"Unauthorized"}', "Unauthorized"),
        (b"Bad \xff Gateway", "Bad \N{REPLACEMENT CHARACTER} Gateway"),
        (b'{"detail":"Not Found"}', '{"detail":"Not Found"}'),
        (b"", ""),
        (b'{"error":{"message":"' + b"x" * 900 + b'"}}', "x" * 500),
    ],
)
def test_an_error_in_any_shape_is_reported(body: bytes, detail: str) -> None:
    assert error_of(500, body, replica="plain-0").operator_detail == f"plain-0 answered 500: {detail}"


def test_a_refusal_without_words_names_its_status() -> None:
    error = error_of(422, b"", replica="plain-0")
    assert error.caller_detail == "The model refused the request with status 422."
    assert isinstance(error, UpstreamRejected)
    assert error.upstream_code == "invalid_request"
