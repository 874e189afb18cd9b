"""What does a request ask for, and would vLLM 0.32 accept it?

Turns the bytes of a chat or completion request into a `Generation`, or raises `Refused` with the status and
the body of vLLM's refusal. Checks are those that a gateway meets, in vLLM's order; everything else is
ignored, as vLLM ignores unknown fields. Prompt tokens are counted in whitespace words, 4 more per chat
message.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.support.mock_vllm_text import sample_json

CHARS_PER_WORD: Final = 64
MESSAGE_OVERHEAD_TOKENS: Final = 4
SALT_CHARS_MAX: Final = 128


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
    keep_alive_s: float = 5.0
    """Idle connections are closed after this, as VLLM_HTTP_TIMEOUT_KEEP_ALIVE says."""


class Refused(Exception):
    """vLLM's refusal of a request."""

    def __init__(self, status: int, body: dict[str, Any], *, is_in_stream: bool = False) -> None:
        super().__init__(body)
        self.status = status
        self.body = body
        self.is_in_stream = is_in_stream
        """Found by the engine when the stream had already begun: it is the first event of a 200."""


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
    is_named_tool: bool = False
    """tool_choice named the function: finish_reason stays what it was."""
    least_tokens: int = 0
    """min_tokens, or all of the limit with ignore_eos."""


def error_body(message: str, kind: str, code: int, param: str | None = None) -> dict[str, Any]:
    """An error in vLLM's shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def bad_request(
    message: str, param: str | None = None, value: object = None, *, is_in_stream: bool = False
) -> Refused:
    """A VLLMValidationError: its text repeats parameter and value."""
    extras = [] if param is None else [f"parameter={param}"]
    if value is not None:
        extras.append(f"value={value}")
    text = f"{message} ({', '.join(extras)})" if extras else message
    return Refused(400, error_body(text, "BadRequestError", 400, param), is_in_stream=is_in_stream)


def invalid_field(
    kind: str, loc: str, message: str, value: object, ctx: dict[str, Any] | None = None
) -> Refused:
    """A pydantic error as vLLM's handler prints it."""
    shown = value
    if isinstance(value, dict | list):
        shown = f"<{type(value).__name__} of {len(value)} items>"
    entry: dict[str, Any] = {"type": kind, "loc": loc, "msg": message, "input": shown}
    if ctx is not None:
        entry["ctx"] = ctx
    return Refused(400, error_body(f"1 validation error:\n  {entry}", "Bad Request", 400, loc))


def parse_generation(raw: bytes, content_type: str, profile: ServerProfile, *, is_chat: bool) -> Generation:
    """The request that these bytes make.

    Raises:
        Refused: vLLM would answer with an error.
    """
    body = _json_object(raw, content_type)
    _check_raw_fields(body)
    _check_types(body, is_chat=is_chat)
    _check_model(body, profile)
    structure = _structure(body)
    tool = _tool(body, profile) if is_chat else None
    prompts = tuple(_chat_prompt(body) if is_chat else _completion_prompts(body["prompt"]))
    limit = min(_limit(body, prompt.tokens, profile, is_chat=is_chat) for prompt in prompts)
    _check_sampling(body, profile, limit)
    options = body.get("stream_options") or {}
    least = limit if body.get("ignore_eos") else int(body.get("min_tokens") or 0)
    return Generation(
        is_chat=is_chat,
        model=profile.models[0],
        prompts=prompts,
        limit_tokens=limit,
        n=body.get("n") or 1,
        is_streaming=bool(body.get("stream")),
        has_usage_chunk=bool(options.get("include_usage")),
        has_continuous_usage=bool(options.get("include_usage") and options.get("continuous_usage_stats")),
        top_logprobs=_top_logprobs(body, is_chat=is_chat),
        fixed_text=tool[1] if tool else structure,
        tool_name=tool[0] if tool else None,
        is_named_tool=isinstance(body.get("tool_choice"), dict),
        least_tokens=least,
    )


def _json_object(raw: bytes, content_type: str) -> dict[str, Any]:
    if content_type.lower().split(";", maxsplit=1)[0] != "application/json":
        message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        raise Refused(400, error_body(message, "Bad Request", 400))
    try:
        body = json.loads(raw)
    except json.JSONDecodeError as error:
        ctx = {"error": error.msg}
        raise invalid_field("json_invalid", f"body.{error.pos}", "JSON decode error", {}, ctx) from error
    if not isinstance(body, dict):
        raise invalid_field(
            "model_attributes_type",
            "body",
            "Input should be a valid dictionary or object to extract fields from",
            body,
        )
    return body


def _check_raw_fields(body: dict[str, Any]) -> None:
    """The checks vLLM makes before it looks at types."""
    salt = body.get("cache_salt")
    if salt is not None and (not isinstance(salt, str) or not salt):
        raise bad_request("Parameter 'cache_salt' must be a non-empty string if provided.", "cache_salt")
    if salt is not None and (len(salt) > SALT_CHARS_MAX or set(salt) & set("@/\\\x00")):
        raise bad_request(
            "Parameter 'cache_salt' must be at most 128 characters and must not contain "
            "'@', '/', '\\\\', or NUL.",
            "cache_salt",
        )
    if body.get("stream_options") and not body.get("stream"):
        raise bad_request("Stream options can only be defined when `stream=True`.", "stream_options")
    if body.get("tools") == []:
        raise bad_request(
            "`tools` must not be an empty array. "
            "Either provide at least one tool or omit the field entirely.",
            "tools",
        )
    top = body.get("top_logprobs")
    if isinstance(top, int) and top > 0 and not body.get("logprobs"):
        raise bad_request("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
    if body.get("tool_choice") not in (None, "none") and body.get("tools") is None:
        raise bad_request("When using `tool_choice`, `tools` must be set.", "tool_choice")


def _check_types(body: dict[str, Any], *, is_chat: bool) -> None:
    if is_chat:
        if "messages" not in body:
            raise invalid_field("missing", "body.messages", "Field required", body)
        if not isinstance(body["messages"], list):
            raise invalid_field(
                "list_type", "body.messages", "Input should be a valid list", body["messages"]
            )
    elif body.get("prompt") in {None, ""} if not isinstance(body.get("prompt"), list) else False:
        raise bad_request("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    for name in ("max_tokens", "max_completion_tokens", "n", "min_tokens", "seed"):
        _check_number(body, name, "int", "integer")
    for name in ("temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty"):
        _check_number(body, name, "float", "number")
    for name in ("model", "user"):
        if not isinstance(body.get(name), str | None):
            raise invalid_field("string_type", f"body.{name}", "Input should be a valid string", body[name])


def _check_number(body: dict[str, Any], name: str, kind: str, word: str) -> None:
    value = body.get(name)
    if value is None or isinstance(value, int | float):
        return
    if isinstance(value, str):
        try:
            body[name] = int(value) if kind == "int" else float(value)
        except ValueError:
            message = f"Input should be a valid {word}, unable to parse string as {_article(word)} {word}"
            raise invalid_field(f"{kind}_parsing", f"body.{name}", message, value) from None
        return
    raise invalid_field(f"{kind}_type", f"body.{name}", f"Input should be a valid {word}", value)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _check_model(body: dict[str, Any], profile: ServerProfile) -> None:
    model = body.get("model")
    if model and model not in profile.models:
        message = f"The model `{model}` does not exist. Valid aliases: {', '.join(profile.models)}."
        raise Refused(404, error_body(message, "NotFoundError", 404, "model"))


def _structure(body: dict[str, Any]) -> str | None:
    """The text that a structured output has to be."""
    wanted = body.get("response_format") or {}
    if wanted.get("type") == "json_object":
        return sample_json(None)
    if wanted.get("type") == "json_schema":
        if wanted.get("json_schema") is None:
            raise bad_request(
                "When response_format type is 'json_schema', the 'json_schema' field must be provided.",
                "response_format",
            )
        return sample_json(wanted["json_schema"].get("schema"))
    constraint = body.get("structured_outputs") or {}
    if constraint.get("json") is not None:
        schema = constraint["json"]
        return sample_json(json.loads(schema) if isinstance(schema, str) else schema)
    if constraint.get("choice"):
        return str(constraint["choice"][0])
    return sample_json(None) if constraint.get("json_object") else None


def _tool(body: dict[str, Any], profile: ServerProfile) -> tuple[str, str] | None:
    """Name and arguments of the call the answer makes."""
    tools = body.get("tools")
    choice = body.get("tool_choice", "auto")
    if not tools or choice is None or choice == "none":
        return None
    if choice == "auto" and not profile.has_auto_tools:
        raise bad_request(
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
        )
    functions = [tool["function"] for tool in tools]
    if isinstance(choice, dict):
        named = choice.get("function", {}).get("name")
        functions = [function for function in functions if function["name"] == named]
        if not functions:
            raise bad_request(
                "The tool specified in `tool_choice` does not match any of the specified `tools`",
                "tool_choice",
            )
    return functions[0]["name"], sample_json(functions[0].get("parameters") or {"type": "object"})


def _chat_prompt(body: dict[str, Any]) -> list[Prompt]:
    if not body["messages"]:
        raise Refused(400, error_body("list index out of range", "BadRequestError", 400))
    words = 0
    parts: list[str] = []
    for message in body["messages"]:
        if not isinstance(message, dict):
            raise invalid_field("dict_type", "body.messages.0", "Input should be a valid dictionary", message)
        text = _content_text(message.get("content"))
        words += _words(text) + MESSAGE_OVERHEAD_TOKENS
        parts += (str(message.get("role")), text)
    return [Prompt(words, _seed("\n".join(parts), body))]


def _content_text(content: object) -> str:
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)


def _completion_prompts(prompt: Any) -> list[Prompt]:
    if isinstance(prompt, str):
        return [Prompt(max(_words(prompt), 1), _seed(prompt, {}))]
    if all(isinstance(token, int) for token in prompt):
        return [Prompt(len(prompt), _seed(repr(prompt), {}))]
    return [part for one in prompt for part in _completion_prompts(one)]


def _words(text: str) -> int:
    """Whitespace words; a word of more than CHARS_PER_WORD characters counts as several."""
    return sum(1 + len(word) // CHARS_PER_WORD for word in text.split())


def _seed(text: str, body: dict[str, Any]) -> int:
    return zlib.crc32(f"{body.get('cache_salt', '')}\0{text}".encode())


def _limit(body: dict[str, Any], prompt_tokens: int, profile: ServerProfile, *, is_chat: bool) -> int:
    """Output tokens there is room for: more than the context is an error, more than is left is clamped."""
    name = (
        "max_completion_tokens" if is_chat and body.get("max_completion_tokens") is not None else "max_tokens"
    )
    asked = body.get(name)
    if asked is None and not is_chat:
        asked = 16
    if asked is not None and asked > profile.max_model_len:
        raise bad_request(
            f"{name}={asked} cannot be greater than max_model_len={profile.max_model_len}. "
            "Please request fewer output tokens.",
            name,
            asked,
        )
    if prompt_tokens > profile.max_model_len:
        seen = profile.max_model_len + 1
        raise bad_request(
            f"This model's maximum context length is {profile.max_model_len} tokens. "
            f"However, your prompt contains at least {seen} input tokens, "
            "which exceeds this limit even without any output tokens. "
            "Please reduce the length of the input prompt.",
            "input_tokens",
            seen,
        )
    left = profile.max_model_len - prompt_tokens
    return left if asked is None else min(left, asked)


def _check_sampling(body: dict[str, Any], profile: ServerProfile, limit: int) -> None:
    if limit < 1:
        raise bad_request(f"max_tokens must be at least 1, got {limit}.", "max_tokens", limit)
    n = body.get("n")
    if n is not None and n < 1:
        raise bad_request(f"n must be at least 1, got {n}.", "n", n)
    temperature = body.get("temperature")
    if temperature is not None and temperature < 0:
        raise bad_request(
            f"temperature must be non-negative, got {float(temperature)}.", "temperature", float(temperature)
        )
    if profile.draft_tokens and ((body.get("min_p") or 0) > 0 or body.get("logit_bias")):
        raise bad_request(
            "The min_p and logit_bias sampling parameters are not yet supported with speculative decoding.",
            is_in_stream=bool(body.get("stream")),
        )


def _top_logprobs(body: dict[str, Any], *, is_chat: bool) -> int | None:
    if is_chat:
        return int(body.get("top_logprobs") or 0) if body.get("logprobs") else None
    asked: int | None = body.get("logprobs")
    return asked


def prompt_tokens(prompts: Sequence[Prompt]) -> int:
    """All prompt tokens of a request."""
    return sum(prompt.tokens for prompt in prompts)
