"""What does vLLM want to be told, and what does it say?

Bodies and errors of vLLM 0.32's OpenAI server (`entrypoints/openai`). The body that is sent is the client's
own fields with the model's name, the tenant's cache salt, a bound on the output where there was none, and
usage asked for in streams.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.errors import (
    UpstreamError,
    UpstreamOverloaded,
    UpstreamProtocolError,
    UpstreamRejected,
    UpstreamUnavailable,
)
from gateway.inference import Call, Completion, EngineMetrics, RouteDecision, Target, UsageSource
from gateway.protocols.json_body import encode_object, raw, raw_name
from gateway.protocols.openai import read_engine_metrics, read_usage

REQUEST_HEADERS = b"content-type: application/json\r\naccept: application/json, text/event-stream\r\n"
ERROR_BYTES_MAX = 1_000_000
ANSWER_BYTES_MAX = 64_000_000

ENGINE_ONLY = (
    "system_fingerprint",
    "metrics",
    "prompt_token_ids",
    "prompt_text",
    "kv_transfer_params",
    "ec_transfer_params",
)
"""vLLM's additions that describe the engine, not the answer."""

_USAGE_WANTED = raw({"include_usage": True})
_CONTINUOUS_USAGE_WANTED = raw({"include_usage": True, "continuous_usage_stats": True})
_TRUE = raw(value=True)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])

_OVERLOADED = frozenset({408, 429, 503})
_NOT_THE_CALLERS_FAULT = frozenset({401, 403, 404, 405})
"""From a pool these mean that we reached it wrongly: its key, its model's name, its path."""


class _ErrorBody(msgspec.Struct):
    message: str = ""
    code: Any = None
    type: str | None = None
    param: str | None = None


class _ErrorEnvelope(msgspec.Struct):
    error: _ErrorBody | str


_error = msgspec.json.Decoder(_ErrorEnvelope)


def output_bound(call: Call, decision: RouteDecision, target: Target) -> int:
    """Output tokens that one answer can have at a target; the client's own limit is never changed."""
    if call.max_tokens is not None:
        return call.max_tokens
    return min(decision.max_tokens_default, target.max_model_len)


def request_body(call: Call, decision: RouteDecision, target: Target, *, cache_salt: str) -> bytes:
    """The body for one attempt at one target."""
    fields = dict(call.fields)
    fields["model"] = raw_name(target.upstream_model)
    fields["cache_salt"] = raw_name(cache_salt)
    if target.priority is not None:
        fields["priority"] = raw(target.priority)
    if call.max_tokens is None:
        # vLLM clamps a limit to what is left of the context (get_max_tokens), so this never causes a refusal.
        fields["max_tokens"] = raw(output_bound(call, decision, target))
    if call.is_streaming:
        fields["stream"] = _TRUE
        fields["stream_options"] = _CONTINUOUS_USAGE_WANTED if call.wants_continuous_usage else _USAGE_WANTED
    return encode_object(fields)


def read_completion(body: bytes, *, alias: str) -> Completion:
    """A whole answer as the client shall see it: under the alias, without what describes the engine.

    Raises:
        UpstreamProtocolError: not an answer.
    """
    try:
        fields = _fields.decode(body)
        if "choices" not in fields:
            raise msgspec.ValidationError("no `choices`")
        usage = read_usage(fields.get("usage"))
        metrics = fields.get("metrics")
        engine = EngineMetrics() if metrics is None else read_engine_metrics(metrics)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UpstreamProtocolError(
            "The model's answer cannot be read.",
            operator_detail=f"not an OpenAI answer: {error}: {body[:200]!r}",
        ) from None
    for name in ENGINE_ONLY:
        fields.pop(name, None)
    fields["model"] = raw_name(alias)
    source = UsageSource.MEASURED if usage is not None else UsageSource.ESTIMATED
    return Completion(encode_object(fields), usage, source, engine)


def error_of(status: int, body: bytes, *, replica: str) -> UpstreamError:
    """Our error for an answer that is not 2xx."""
    try:
        said = _error.decode(body).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        said = body[:300].decode("utf-8", "replace")
    detail = said if isinstance(said, str) else said.message
    operator_detail = f"{replica} answered {status}: {detail[:500]}"
    error: UpstreamError
    if status in _OVERLOADED:
        error = UpstreamOverloaded("The model is overloaded.", operator_detail=operator_detail)
    elif status >= 500 or status in _NOT_THE_CALLERS_FAULT or status < 400:  # noqa: PLR2004 - HTTP's classes
        error = UpstreamUnavailable("The model could not answer.", operator_detail=operator_detail)
    else:
        body_of = said if isinstance(said, _ErrorBody) else _ErrorBody(message=said)
        return UpstreamRejected(
            body_of.message or f"The model refused the request with status {status}.",
            status_code=status,
            upstream_code=str(body_of.type or body_of.code or "invalid_request"),
            param=body_of.param,
        )
    error.upstream_status = status
    return error


def error_in_stream(data: bytes, *, has_content: bool) -> UpstreamError:
    """Our error for an event that carries one instead of an answer.

    An engine that finds a request wrong only when the stream has begun says so there, with the status it
    would have answered: before any content that is a refusal like any other.
    """
    try:
        said = _error.decode(data).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        said = ""
    code = said.code if isinstance(said, _ErrorBody) else None
    if not has_content and isinstance(code, int) and 400 <= code < 500:  # noqa: PLR2004 - HTTP's classes
        return error_of(code, data, replica="the engine")
    return UpstreamUnavailable(
        "The model stopped with an error.", operator_detail=f"error in the stream: {data[:500]!r}"
    )
