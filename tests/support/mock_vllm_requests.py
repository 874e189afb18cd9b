"""What does a request ask for?

Turns the bytes of a chat or completion request into a `Generation`, or passes on the refusal of
mock_vllm_checks. Prompt tokens are counted in whitespace words, 4 more per chat message.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from tests.support.mock_vllm_checks import (
    Fault,
    Refused,
    check_body,
    check_model,
    check_prompt,
    check_sampling,
    check_tools,
    error_body,
    invalid,
    output_limit,
)
from tests.support.mock_vllm_text import sample_json

MESSAGE_OVERHEAD_TOKENS: Final = 4
REMEMBERED_BYTES_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class ServerProfile:
    """What server the mock pretends to be."""

    models: tuple[str, ...] = ("tollgate-reference",)
    """Served names; the first is echoed."""
    max_model_len: int = 2048
    answer_tokens: int = 16
    """Length of an answer that max_tokens does not cut."""
    draft_tokens: int = 0
    """Draft tokens per step; 0: no speculation."""
    acceptance: float = 0.6
    """Chance that one draft token is accepted."""
    ttft_ms: float = 0.0
    tpot_ms: float = 0.0
    step_ms: float = 0.0
    """Per engine step, whatever it yields, instead of per token; 0: by `tpot_ms`."""
    has_request_metrics: bool = True
    """--enable-per-request-metrics."""
    has_prompt_tokens_details: bool = True
    """--enable-prompt-tokens-details."""
    has_auto_tools: bool = False
    """--enable-auto-tool-choice with a parser."""
    has_prefix_cache: bool = True
    api_key: str | None = None
    queued_requests_max: int | None = None
    """--max-num-queued-reqs: running and waiting requests together."""
    wake_s: float | None = None
    """--enable-sleep-mode and VLLM_SERVER_DEV_MODE=1: how long a wake takes; None: no such endpoints."""
    keep_alive_s: float = 5.0
    """Idle connections are closed after this, as VLLM_HTTP_TIMEOUT_KEEP_ALIVE says."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a request."""

    tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Generation:
    """An accepted request."""

    is_chat: bool
    model: str
    prompts: tuple[Prompt, ...]
    limit_tokens: int
    """Output tokens at most, per choice, after vLLM's clamping to the context."""
    n: int = 1
    is_streaming: bool = False
    has_usage_chunk: bool = False
    has_continuous_usage: bool = False
    top_logprobs: int | None = None
    fixed_text: str | None = None
    """A text the answer must be (structured output), instead of prose."""
    tool_name: str | None = None
    """The function to call, with fixed_text as its arguments."""
    is_free_to_call: bool = False
    """tool_choice was "auto"."""
    is_named_tool: bool = False
    """tool_choice named the function: finish_reason stays what it was."""
    stops: tuple[str, ...] = ()
    least_tokens: int = 0
    """min_tokens, or all of the limit with ignore_eos."""


def parse_generation(raw: bytes, content_type: str, profile: ServerProfile, *, is_chat: bool) -> Generation:
    """The request that these bytes make.

    Raises:
        Refused: vLLM would answer with an error.
    """
    parse = _parse_again if len(raw) <= REMEMBERED_BYTES_MAX else _parse
    return parse(raw, content_type, profile, is_chat)


def _parse(raw: bytes, content_type: str, profile: ServerProfile, is_chat: bool) -> Generation:  # noqa: FBT001 - for the cache
    body = check_body(_decoded(raw, content_type), is_chat=is_chat)
    check_model(body, profile.models)
    check_tools(body, has_parser=profile.has_auto_tools)
    check_prompt(body, is_chat=is_chat, max_model_len=profile.max_model_len)
    tool = _tool(body) if is_chat else None
    prompts = (_chat_prompt(body),) if is_chat else tuple(_completion_prompts(body["prompt"]))
    limit = min(
        output_limit(body, prompt.tokens, is_chat=is_chat, max_model_len=profile.max_model_len)
        for prompt in prompts
    )
    check_sampling(body, limit, is_speculative=profile.draft_tokens > 0)
    options = body.get("stream_options") or {}
    return Generation(
        is_chat=is_chat,
        model=profile.models[0],
        prompts=prompts,
        limit_tokens=limit,
        n=1 if body.get("n") is None else body["n"],
        is_streaming=bool(body.get("stream")),
        has_usage_chunk=bool(options.get("include_usage")),
        has_continuous_usage=bool(options.get("include_usage") and options.get("continuous_usage_stats")),
        top_logprobs=_top_logprobs(body, is_chat=is_chat),
        fixed_text=tool[1] if tool else _structure(body),
        tool_name=tool[0] if tool else None,
        is_free_to_call=body.get("tool_choice", "auto") == "auto",
        is_named_tool=isinstance(body.get("tool_choice"), dict),
        stops=_stops(body.get("stop")),
        least_tokens=limit if body.get("ignore_eos") else body.get("min_tokens") or 0,
    )


# Generators of load repeat themselves, and a mock should be cheaper than what it stands behind.
_parse_again = lru_cache(maxsize=1024)(_parse)


def _decoded(raw: bytes, content_type: str) -> object:
    if content_type.lower().split(";", maxsplit=1)[0] != "application/json":
        message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        raise Refused(400, error_body(message, "Bad Request", 400))
    if not raw:
        raise invalid(Fault("missing", "body", "Field required", None))
    try:
        return json.loads(raw)
    except json.JSONDecodeError as error:
        loc, ctx = f"body.{error.pos}", {"error": error.msg}
        raise invalid(Fault("json_invalid", loc, "JSON decode error", {}, ctx)) from error
    except UnicodeDecodeError as error:
        raise Refused(400, error_body("There was an error parsing the body", "Bad Request", 400)) from error


def _structure(body: dict[str, Any]) -> str | None:
    """The text that a structured output has to be."""
    wanted = body.get("response_format") or {}
    if wanted.get("type") == "json_object":
        return sample_json(None)
    if wanted.get("type") == "json_schema":
        return sample_json(wanted["json_schema"].get("schema"))
    constraint = body.get("structured_outputs") or {}
    if constraint.get("json") is not None:
        schema = constraint["json"]
        return sample_json(json.loads(schema) if isinstance(schema, str) else schema)
    if constraint.get("choice"):
        return str(constraint["choice"][0])
    return sample_json(None) if constraint.get("json_object") else None


def _tool(body: dict[str, Any]) -> tuple[str, str] | None:
    """Name and arguments of the call the answer makes: of the named tool, or of the first."""
    tools, choice = body.get("tools"), body.get("tool_choice", "auto")
    if not tools or choice in (None, "none"):
        return None
    functions = [tool["function"] for tool in tools]
    if isinstance(choice, dict):
        functions = [function for function in functions if function["name"] == choice["function"]["name"]]
    return functions[0]["name"], sample_json(functions[0].get("parameters") or {"type": "object"})


def _chat_prompt(body: dict[str, Any]) -> Prompt:
    tokens = 0
    parts = [body.get("cache_salt") or ""]
    for message in body["messages"]:
        text = _content_text(message.get("content"))
        tokens += len(text.split()) + MESSAGE_OVERHEAD_TOKENS
        parts += (str(message["role"]), text)
    return Prompt(tokens, zlib.crc32("\0".join(parts).encode("utf-8", "surrogatepass")))


def _content_text(content: object) -> str:
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)


def _completion_prompts(prompt: Any) -> list[Prompt]:
    if isinstance(prompt, str):
        seed = zlib.crc32(prompt.encode("utf-8", "surrogatepass"))
        return [Prompt(max(len(prompt.split()), 1), seed)]
    if all(isinstance(token, int) for token in prompt):
        return [Prompt(len(prompt), zlib.crc32(repr(prompt).encode()))]
    return [part for one in prompt for part in _completion_prompts(one)]


def _stops(stop: Any) -> tuple[str, ...]:
    if isinstance(stop, str):
        return (stop,) if stop else ()
    return tuple(stop or ())


def _top_logprobs(body: dict[str, Any], *, is_chat: bool) -> int | None:
    if is_chat:
        return int(body.get("top_logprobs") or 0) if body.get("logprobs") else None
    asked: int | None = body.get("logprobs")
    return asked


def count_tokens(raw: bytes) -> int:
    """What /tokenize says of a chat or a prompt."""
    body = json.loads(raw)
    prompts = [_chat_prompt(body)] if "messages" in body else _completion_prompts(body["prompt"])
    return prompt_tokens(prompts)


def prompt_tokens(prompts: Sequence[Prompt]) -> int:
    """All prompt tokens of a request."""
    return sum(prompt.tokens for prompt in prompts)
