"""What does an OpenAI request ask for, and what did an OpenAI answer use?

Requests (chat completions, completions) become a `Call`; answers and stream events of an engine that
speaks OpenAI's format give `TokenUsage`. Formats: OpenAI API reference as of 2026-11; vLLM 0.32
`entrypoints/openai/*/protocol.py` for its additions.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.errors import InvalidRequest
from gateway.inference import (
    TAG_NAME_CHARS,
    TAG_VALUE_CHARS,
    TAGS_MAX,
    Call,
    CallFacts,
    Endpoint,
    EngineMetrics,
    TaskType,
    TokenUsage,
)
from gateway.protocols.cache_control import CACHE_HEADERS, read_cache_wish
from gateway.protocols.json_body import ABSENT, decode_object, is_there, raw

INSTRUCTION_CHARS = 4_000
"""Of a long turn the first and last halves of this are looked at for the task."""

GATEWAY_ONLY = frozenset(
    {
        "metadata",
        "user",
        "safety_identifier",
        "service_tier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "store",
    }
)
"""Read here and never sent to an engine."""

FORBIDDEN_FIELDS = frozenset(
    {
        "priority",  # the scheduler's order is the operator's
        "cache_salt",  # tenant isolation in the prefix cache; the gateway sets it
        "kv_transfer_params",
        "ec_transfer_params",
        "vllm_xargs",
        "request_id",  # ids are ours
        "session_id",
        "prompt_embeds",  # raw tensors into the engine
        "chat_template",  # code that the engine would run
        "mm_processor_kwargs",
    }
)
"""The published list of what tenants may not set: removed, and named in `x-tollgate-dropped`."""

FORBIDDEN_HEADERS = (
    "x-data-parallel-rank",
    "x-vllm-priority",
    "x-session-id",
    "endpoint-load-metrics-format",
)
"""Headers that would steer an engine; no client header reaches one, these are named as dropped."""

CALL_HEADERS = ("x-request-id", "x-tollgate-task", *CACHE_HEADERS, *FORBIDDEN_HEADERS)
"""Those that a call is made of, beside its body."""

GUIDED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
"""vLLM removed these and ignores them silently with status 200; they are carried over to their successor."""

TOKENS_MAX = 2**31 - 1
"""No context is longer; keeps every amount of money that follows from a count within 64 bits."""
REQUEST_ID_CHARS = 256
SERVICE_TIERS = ("auto", "default", "flex", "priority")


class _Part(msgspec.Struct):
    type: str = "text"
    text: str | None = None


_SCHEMA_FORMATS = frozenset({"json_schema", "structural_tag"})
_SYSTEM_ROLES = frozenset({"system", "developer"})
_TEXT_PARTS = frozenset({"text", "refusal", "thinking"})


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class _TypeOnly(msgspec.Struct):
    type: str = ""


class _Read(msgspec.Struct):
    """The fields that decisions need, decoded in one pass over the body."""

    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    min_p: float | None = None
    logit_bias: dict[str, float] | None = None
    response_format: _TypeOnly | None = None
    tools: list[dict[str, msgspec.Raw]] | None = None
    functions: list[dict[str, msgspec.Raw]] | None = None
    prediction: dict[str, msgspec.Raw] | None = None
    structured_outputs: dict[str, msgspec.Raw] | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None


class _ReadChat(_Read, kw_only=True):
    messages: list[_Message]
    max_completion_tokens: int | None = None


class _ReadCompletion(_Read, kw_only=True):
    prompt: str | list[Any] | None
    # vLLM reads `max_completion_tokens` for chats only (completion/protocol.py).


_KINDS: dict[Endpoint, type[_ReadChat | _ReadCompletion]] = {
    Endpoint.CHAT_COMPLETIONS: _ReadChat,
    Endpoint.COMPLETIONS: _ReadCompletion,
}
_READERS: dict[Endpoint, msgspec.json.Decoder[_ReadChat | _ReadCompletion]] = {
    endpoint: msgspec.json.Decoder(kind) for endpoint, kind in _KINDS.items()
}
_REQUIRED = {
    "model": 'a model alias such as "auto"',
    "messages": 'a list such as [{"role": "user", "content": "Hi"}]',
    "prompt": 'a string such as "Once upon a time"',
}


class ParseLimits(msgspec.Struct, frozen=True):
    """How much one request may ask for."""

    messages_max: int
    choices_max: int


def parse_call(
    endpoint: Endpoint,
    body: bytes,
    headers: Mapping[str, str],
    *,
    limits: ParseLimits,
) -> Call:
    """The call that a request body makes.

    Args:
        endpoint: which of the two bodies it is.
        body: the whole body.
        headers: lower-case names; read are `x-tollgate-task`, `x-request-id`, those about the cache, and the
            forbidden ones.
        limits: bounds on messages and choices.

    Raises:
        InvalidRequest: malformed, of a wrong type, empty, or with an unknown task name; says what to do.
    """
    fields = decode_object(body)
    asked = _read(endpoint, body, fields)
    if not asked.model:
        raise InvalidRequest('`model` is empty: name a model alias, or "auto".', param="model")
    dropped = _drop_forbidden(fields, headers)
    is_guided = _carry_over_guided(fields)
    options = asked.stream_options
    if options is not None and not asked.stream:
        raise InvalidRequest("`stream_options` is only allowed with `stream: true`.", param="stream_options")
    prompts = 1
    if isinstance(asked, _ReadChat):
        instruction, system, previous, has_media = _read_messages(asked.messages, limits)
    else:
        instruction, prompts = _read_prompt(asked.prompt)
        system, previous, has_media = "", "", False
    choices = prompts * _positive("n", asked.n, default=1)
    if choices > limits.choices_max:
        raise InvalidRequest(
            f"{choices} answers in one request; at most {limits.choices_max} are allowed.", param="n"
        )
    tags = _checked_tags(asked.metadata)
    call = Call(  # by position: keywords take five times as long, and every request makes one
        endpoint,
        asked.model,
        fields,
        bool(asked.stream),
        bool(options and options.include_usage),
        bool(options and options.continuous_usage_stats),
        _max_tokens(asked),
        choices,
        _facts(asked, (instruction, system, previous), has_media=has_media, is_guided=is_guided),
        _declared_task(headers.get("x-tollgate-task"), tags),
        tags,
        asked.safety_identifier or asked.user or None,
        _checked_tier(asked.service_tier),
        asked.prompt_cache_key,
        dropped,
        headers.get("x-request-id", "")[:REQUEST_ID_CHARS] or None,
        len(body),
        prompts,
        read_cache_wish(headers),
    )
    if not GATEWAY_ONLY.isdisjoint(fields):
        for name in GATEWAY_ONLY:
            fields.pop(name, None)
    return call


def _read(endpoint: Endpoint, body: bytes, fields: Mapping[str, msgspec.Raw]) -> _ReadChat | _ReadCompletion:
    """What decisions need of a body.

    Raises:
        InvalidRequest: a field is missing or of a wrong type; names it and says what to send.
    """
    try:
        return _READERS[endpoint].decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _refusal(_KINDS[endpoint], fields, error) from None


def _refusal(
    kind: type[_ReadChat | _ReadCompletion], fields: Mapping[str, msgspec.Raw], error: Exception
) -> InvalidRequest:
    """Which field is in the way: each is read by itself, for the message shall name it."""
    for field in msgspec.structs.fields(kind):
        name, value = field.encode_name, fields.get(field.encode_name)
        if value is None:
            if field.required:
                return InvalidRequest(f"`{name}` is missing: send {_REQUIRED[name]}.", param=name)
            continue
        try:
            msgspec.json.decode(value, type=field.type)
        except msgspec.DecodeError as problem:
            return InvalidRequest(f"`{name}` has the wrong type: {_plain(str(problem), name)}.", param=name)
        except RecursionError:
            return InvalidRequest(f"`{name}` is nested too deeply.", param=name)
    return InvalidRequest(f"The request cannot be read: {error}.")


def _plain(message: str, name: str) -> str:
    """The decoder's sentence with our field's name put into its path."""
    text = message.replace("`$", f"`{name}")
    return text[:1].lower() + text[1:]


def _positive(name: str, value: int | None, *, default: int) -> int:
    if value is None:
        return default
    if value < 1:
        raise InvalidRequest(f"`{name}` must be at least 1, not {value}.", param=name)
    if value > TOKENS_MAX:
        raise InvalidRequest(f"`{name}` must be at most {TOKENS_MAX}.", param=name)
    return value


def _max_tokens(asked: _ReadChat | _ReadCompletion) -> int | None:
    if isinstance(asked, _ReadChat) and asked.max_completion_tokens is not None:
        return _positive("max_completion_tokens", asked.max_completion_tokens, default=1)
    return None if asked.max_tokens is None else _positive("max_tokens", asked.max_tokens, default=1)


def _read_messages(messages: list[_Message], limits: ParseLimits) -> tuple[str, str, str, bool]:
    """The last user turn, the system prompt, the user turn before, and whether there is more than text."""
    if not messages:
        raise InvalidRequest(
            '`messages` is empty: send at least one, such as {"role": "user", "content": "Hi"}.',
            param="messages",
        )
    if len(messages) > limits.messages_max:
        raise InvalidRequest(
            f"{len(messages)} messages in one request; at most {limits.messages_max} are allowed.",
            param="messages",
        )
    turns = [message for message in messages if message.role == "user"][-2:]
    turn, system = turns[-1] if turns else messages[-1], None
    has_media = False
    for message in messages:
        if system is None and message.role in _SYSTEM_ROLES:
            system = message
        if isinstance(message.content, list) and not has_media:
            has_media = any(part.type not in _TEXT_PARTS for part in message.content)
    previous = _ends(_text(turns[0])) if len(turns) > 1 else ""
    return _ends(_text(turn)), "" if system is None else _ends(_text(system)), previous, has_media


def _text(message: _Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content or () if part.text)


def _ends(text: str) -> str:
    if len(text) <= INSTRUCTION_CHARS:
        return text
    half = INSTRUCTION_CHARS // 2
    return f"{text[:half]}\n{text[-half:]}"


def _read_prompt(prompt: str | list[Any] | None) -> tuple[str, int]:
    if not prompt:
        raise InvalidRequest("`prompt` is empty: send some text, or a list of prompts.", param="prompt")
    if isinstance(prompt, str):
        return _ends(prompt), 1
    if all(type(part) is int for part in prompt):
        return "", 1
    if all(isinstance(part, str) for part in prompt):
        return _ends(prompt[0]), len(prompt)
    if all(isinstance(part, list) and part and all(type(token) is int for token in part) for part in prompt):
        return "", len(prompt)
    raise InvalidRequest(
        "`prompt` must be a string, a list of strings, a list of token ids, or a list of lists of token ids.",
        param="prompt",
    )


def _facts(asked: _Read, texts: tuple[str, str, str], *, has_media: bool, is_guided: bool) -> CallFacts:
    instruction, system, previous = texts
    format_type = "" if asked.response_format is None else asked.response_format.type
    return CallFacts(
        instruction,
        system,
        is_guided or bool(asked.structured_outputs) or format_type in _SCHEMA_FORMATS,
        format_type == "json_object",
        bool(asked.tools or asked.functions),
        bool(asked.prediction),
        has_media,
        asked.temperature,
        bool(asked.min_p or asked.logit_bias),
        previous,
    )


def _drop_forbidden(fields: dict[str, msgspec.Raw], headers: Mapping[str, str]) -> tuple[str, ...]:
    found: list[str] = []
    if not FORBIDDEN_FIELDS.isdisjoint(fields):
        found = [name for name in fields if name in FORBIDDEN_FIELDS]
        for name in found:
            del fields[name]
    found += [name for name in FORBIDDEN_HEADERS if name in headers]
    return tuple(found)


def _carry_over_guided(fields: dict[str, msgspec.Raw]) -> bool:
    """Put vLLM's former names of a grammar under its present one; whether there were any."""
    if GUIDED.keys().isdisjoint(fields):
        return False
    for name in GUIDED:
        if name in fields and not is_there(fields[name]):
            del fields[name]
    found = [name for name in GUIDED if name in fields]
    if not found:
        return False
    if len(found) > 1 or is_there(fields.get("structured_outputs", ABSENT)):
        raise InvalidRequest(
            f"`{found[0]}` together with another constraint on the output: send one, as"
            ' {"structured_outputs": {"' + GUIDED[found[0]] + '": …}}.',
            param=found[0],
        )
    fields["structured_outputs"] = raw({GUIDED[found[0]]: fields.pop(found[0])})
    return True


def _checked_tags(tags: dict[str, str] | None) -> dict[str, str]:
    if not tags:
        return {}
    if len(tags) > TAGS_MAX:
        raise InvalidRequest(
            f"`metadata` has {len(tags)} pairs; at most {TAGS_MAX} are allowed.", param="metadata"
        )
    for name, value in tags.items():
        if not name or len(name) > TAG_NAME_CHARS or len(value) > TAG_VALUE_CHARS:
            raise InvalidRequest(
                f"`metadata.{name[:TAG_NAME_CHARS]}`: names have 1 to {TAG_NAME_CHARS} characters,"
                f" values at most {TAG_VALUE_CHARS}.",
                param="metadata",
            )
        if "\0" in name or "\0" in value:  # PostgreSQL cannot keep it in a text
            raise InvalidRequest("`metadata` holds a NUL character.", param="metadata")
    return tags


def _declared_task(header: str | None, tags: Mapping[str, str]) -> TaskType | None:
    name = header if header is not None else tags.get("task")
    if name is None:
        return None
    try:
        return TaskType(name.strip().lower())
    except ValueError:
        known = ", ".join(TaskType)
        close = difflib.get_close_matches(name.lower(), list(TaskType), n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        where = "x-tollgate-task" if header is not None else "metadata.task"
        raise InvalidRequest(
            f"Unknown task {name[:64]!r} in {where}.{hint} Known tasks: {known}.", param=where
        ) from None


def _checked_tier(tier: str | None) -> str | None:
    if tier is not None and tier not in SERVICE_TIERS:
        raise InvalidRequest(
            f"Unknown `service_tier` {tier[:64]!r}: use one of {', '.join(SERVICE_TIERS)}.",
            param="service_tier",
        )
    return tier


# ------------------------------------------------------------------------------------------- answers


class _InputDetails(msgspec.Struct):
    cached_tokens: int | None = None
    created_cache_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class WireUsage(msgspec.Struct):
    """OpenAI's `usage`: its input count includes cached tokens, its output count reasoning tokens."""

    prompt_tokens: int
    completion_tokens: int | None = 0
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None


class _SpeculativeMetrics(msgspec.Struct):
    num_spec_steps: int | None = None
    num_accepted_draft_tokens: int | None = None
    num_draft_tokens: int | None = None


class _WireMetrics(msgspec.Struct):
    queue_time_ms: float | None = None
    generation_time_ms: float | None = None
    speculative_decoding: _SpeculativeMetrics | None = None


_usage = msgspec.json.Decoder(WireUsage | None)
_metrics = msgspec.json.Decoder(_WireMetrics | None)


def read_usage(value: msgspec.Raw | None) -> TokenUsage | None:
    """Disjoint meters of a `usage` object; None where there is none.

    Counts that contradict each other (more cached than input, more reasoning than output) are bounded, so
    that the parts never exceed the whole that the engine reported.

    Raises:
        msgspec.DecodeError: not a usage object.
    """
    wire = None if value is None else _usage.decode(value)
    if wire is None:
        return None
    input_total = max(wire.prompt_tokens, 0)
    output_total = max(wire.completion_tokens or 0, 0)
    cached = written = reasoning = 0
    if wire.prompt_tokens_details is not None:
        cached = min(max(wire.prompt_tokens_details.cached_tokens or 0, 0), input_total)
    if wire.completion_tokens_details is not None:
        reasoning = min(max(wire.completion_tokens_details.reasoning_tokens or 0, 0), output_total)
    return TokenUsage(input_total - cached - written, cached, written, output_total - reasoning, reasoning)


def read_engine_metrics(value: msgspec.Raw | None) -> EngineMetrics:
    """The `metrics` object of vLLM (0.32, --enable-per-request-metrics), empty where there is none.

    Raises:
        msgspec.DecodeError: not a metrics object.
    """
    wire = None if value is None else _metrics.decode(value)
    if wire is None:
        return EngineMetrics()
    speculative = wire.speculative_decoding or _SpeculativeMetrics()
    return EngineMetrics(
        queue_ms=wire.queue_time_ms,
        generation_ms=wire.generation_time_ms,
        draft_steps=speculative.num_spec_steps,
        draft_tokens=speculative.num_draft_tokens,
        accepted_tokens=speculative.num_accepted_draft_tokens,
    )
