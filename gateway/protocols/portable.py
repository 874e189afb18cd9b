"""What of a request may leave the company, and can another model than ours answer it at all?

Outside goes only what OpenAI documents for the path (its API reference as of 2026-11), and of that only what
costs nothing beyond tokens and means the same to any model. So a field that nobody has thought of stays
inside, and a client cannot reach the library that carries the call (`api_base`, `mock_response`, …).
`metadata`, `user`, `safety_identifier` and the like were taken out when the request was read
(`openai.GATEWAY_ONLY`), engine secrets are only put in for engines, and headers are never passed on.

A field outside that list is one of two things. A hint (`HINTS`) tunes how our engines sample or render;
without it the answer is of the same kind, so it is removed and named in `x-tollgate-dropped`. Anything else,
known (a grammar, a least length, ids of our tokenizer's tokens) or not, says what the answer shall be:
without it the caller would get something else than asked for, so the call stays inside.

A value of null, false, 0 or nothing asks for nothing. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from gateway.inference import Call, Endpoint

_COMMON = frozenset(
    {
        "frequency_penalty",
        "logprobs",
        "max_tokens",
        "n",
        "presence_penalty",
        "seed",
        "stop",
        "temperature",
        "top_p",
    }
)
PORTABLE = {
    Endpoint.CHAT_COMPLETIONS: _COMMON
    | {
        "function_call",
        "functions",
        "max_completion_tokens",
        "messages",
        "parallel_tool_calls",
        "reasoning_effort",
        "response_format",
        "tool_choice",
        "tools",
        "top_logprobs",
        "verbosity",
    },
    Endpoint.COMPLETIONS: _COMMON | {"echo", "prompt", "suffix"},
}
"""What is sent outside, by path. Of OpenAI's own fields `logit_bias` is missing because its token ids are
those of our tokenizer, and `best_of`, `audio`, `modalities` and `web_search_options` because they would cost
more than the tokens that were held for."""

OURS = frozenset({"model", "stream", "stream_options"})
"""Written anew for every attempt."""

HINTS = frozenset(
    {
        "add_special_tokens",
        "chat_template_kwargs",
        "include_reasoning",
        "min_p",
        "prediction",  # OpenAI's, but its rejected tokens are billed on top of max_tokens
        "repetition_penalty",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "top_k",
    }
)
"""Removed and named; the published list."""

_SAYS_NOTHING = frozenset({b"null", b"false", b"0", b"0.0", b'""', b"[]", b"{}"})
_TRUE_BY_DEFAULT = frozenset({"add_generation_prompt"})
_FORMATS = frozenset({"text", "json_object", "json_schema"})
_TOOLS = frozenset({"function", "custom"})
"""Those that the caller runs; what a provider would run costs more than tokens."""


class _TypeOnly(msgspec.Struct):
    type: str = ""


_format = msgspec.json.Decoder(_TypeOnly | None)
_tools = msgspec.json.Decoder(list[_TypeOnly] | None)


@dataclass(frozen=True, slots=True)
class Portability:
    """How much of a call another model can be given."""

    obstacle: str | None
    """Why the call must stay inside, for people; None: it may leave."""
    withheld: tuple[str, ...] = ()
    """Hints that it would leave without."""


def portability(call: Call) -> Portability:
    """Can the call be answered outside, and what would be left out?"""
    portable = PORTABLE[call.endpoint]
    withheld: list[str] = []
    for name, value in call.fields.items():
        if name in portable or name in OURS:
            continue
        if bytes(value) in _SAYS_NOTHING and (name not in _TRUE_BY_DEFAULT or bytes(value) == b"null"):
            continue
        if name not in HINTS:
            return Portability(f"`{name[:64]}` means something to our own engines only")
        withheld.append(name)
    if _has_foreign_format(call):
        return Portability("its `response_format` means something to our own engines only")
    if any(tool.type not in _TOOLS for tool in _tools.decode(call.fields.get("tools", b"null")) or ()):
        return Portability("one of its `tools` is not run by the caller")
    if call.endpoint is Endpoint.COMPLETIONS and _is_token_ids(bytes(call.fields.get("prompt", b""))):
        return Portability("its prompt consists of token ids, which another model reads differently")
    if call.wants_continuous_usage:
        withheld.append("stream_options.continuous_usage_stats")
    return Portability(None, tuple(withheld))


def portable_fields(call: Call) -> dict[str, msgspec.Raw]:
    """The fields of a call that may be sent outside, as the client wrote them."""
    portable = PORTABLE[call.endpoint]
    return {
        name: value for name, value in call.fields.items() if name in portable and bytes(value) != b"null"
    }


def _has_foreign_format(call: Call) -> bool:
    value = call.fields.get("response_format")
    wanted = None if value is None else _format.decode(value)
    return wanted is not None and wanted.type not in _FORMATS


def _is_token_ids(prompt: bytes) -> bool:
    return prompt.startswith(b"[") and not prompt[1:].lstrip().startswith(b'"')
