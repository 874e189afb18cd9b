"""Which requests would vLLM 0.32 refuse, and in which words?

The checks that a gateway meets, in vLLM's order and with its texts; what it ignores is ignored here. Where
pydantic would print a list of every branch of a union (a message without a role: eleven of them), the
refusal has the right status, type and `param`, and one entry.
"""

from dataclasses import dataclass
from typing import Any, Final

SALT_CHARS_MAX: Final = 128
STOP_STRINGS_MAX: Final = 4
CHARS_PER_TOKEN_MAX: Final = 13
"""Longest entry of the reference tokenizer: what vLLM refuses by characters, before it tokenizes."""
VOCABULARY: Final = 1_000_000
GREEDY: Final = 1e-5
"""Temperatures below are greedy, and min_p is dropped for them before anything looks at it."""
_INTEGERS: Final = ("max_tokens", "max_completion_tokens", "n", "min_tokens", "seed")
_NUMBERS: Final = ("temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty")
_STRINGS: Final = ("model", "user")
_BOOLEANS: Final = ("stream", "ignore_eos", "echo")
_TRUE: Final = {"true", "1", "yes", "y", "on", "t"}
_FALSE: Final = {"false", "0", "no", "n", "off", "f"}
_FIRST_BRANCH: Final = "ChatCompletionDeveloperMessageParam"


class Refused(Exception):
    """vLLM's refusal of a request."""

    def __init__(self, status: int, body: dict[str, Any], *, is_in_stream: bool = False) -> None:
        super().__init__(body)
        self.status = status
        self.body = body
        self.is_in_stream = is_in_stream
        """Found by the engine when the stream had already begun: it is the first event of a 200."""


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


@dataclass(frozen=True, slots=True)
class Fault:
    """One error of pydantic's."""

    kind: str
    loc: str
    message: str
    value: object
    ctx: dict[str, Any] | None = None

    def text(self) -> str:
        """As vLLM's handler prints it: containers are counted, everything else becomes text."""
        shown = str(self.value)
        if isinstance(self.value, dict | list):
            shown = f"<{type(self.value).__name__} of {len(self.value)} items>"
        entry: dict[str, Any] = {"type": self.kind, "loc": self.loc, "msg": self.message, "input": shown}
        return str(entry if self.ctx is None else entry | {"ctx": self.ctx})


def invalid(*faults: Fault) -> Refused:
    """A RequestValidationError: type "Bad Request", unlike all others."""
    label = "error" if len(faults) == 1 else "errors"
    lines = "".join(f"\n  {fault.text()}" for fault in faults)
    message = f"{len(faults)} validation {label}:{lines}"
    return Refused(400, error_body(message, "Bad Request", 400, faults[0].loc))


def check_body(body: object, *, is_chat: bool) -> dict[str, Any]:
    """Everything that needs no knowledge of the server; numbers and booleans written as text are converted.

    Raises:
        Refused: the body is not a request.
    """
    if not isinstance(body, dict):
        message = "Input should be a valid dictionary or object to extract fields from"
        raise invalid(Fault("model_attributes_type", "body", message, body))
    _check_before_types(body)
    if not is_chat and (body.get("prompt") is None or body["prompt"] == ""):
        raise bad_request("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    faults = [*(_messages(body) if is_chat else _prompt(body)), *_scalars(body), *_stop(body), *_format(body)]
    if faults:
        raise invalid(*faults)
    return body


def _check_before_types(body: dict[str, Any]) -> None:
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
    wanted = body.get("response_format")
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema" and wanted.get("json_schema") is None:
        raise bad_request(
            "When response_format type is 'json_schema', the 'json_schema' field must be provided.",
            "response_format",
        )
    if body.get("tools") == []:
        raise bad_request(
            "`tools` must not be an empty array. "
            "Either provide at least one tool or omit the field entirely.",
            "tools",
        )
    top = body.get("top_logprobs")
    if isinstance(top, int) and top > 0 and not body.get("logprobs"):
        raise bad_request("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
    _check_tool_choice(body)


def _check_tool_choice(body: dict[str, Any]) -> None:
    choice, tools = body.get("tool_choice"), body.get("tools")
    if choice in (None, "none"):
        return
    if tools is None:
        raise bad_request("When using `tool_choice`, `tools` must be set.", "tool_choice")
    if isinstance(choice, dict):
        name = (choice.get("function") or {}).get("name")
        if name not in [tool["function"]["name"] for tool in tools]:
            raise bad_request(
                "The tool specified in `tool_choice` does not match any of the specified `tools`",
                "tool_choice",
            )


def _messages(body: dict[str, Any]) -> list[Fault]:
    if "messages" not in body:
        return [Fault("missing", "body.messages", "Field required", body)]
    messages = body["messages"]
    if not isinstance(messages, list):
        return [Fault("list_type", "body.messages", "Input should be a valid list", messages)]
    for number, message in enumerate(messages):
        loc = f"body.messages.{number}.{_FIRST_BRANCH}"
        if not isinstance(message, dict):
            return [Fault("dict_type", loc, "Input should be a valid dictionary", message)]
        content = message.get("content")
        may_be_empty = message.get("role") in {"assistant", "function"}
        if not isinstance(content, str | list) and not (content is None and may_be_empty):
            return [Fault("string_type", f"{loc}.content", "Input should be a valid string", content)]
        if "role" not in message:
            return [Fault("missing", f"{loc}.role", "Field required", message)]
    return []


def _prompt(body: dict[str, Any]) -> list[Fault]:
    prompt = body["prompt"]
    if isinstance(prompt, str | list):
        return []
    a_list = Fault("list_type", "body.prompt", "Input should be a valid list", prompt)
    return [
        a_list,
        a_list,
        Fault("string_type", "body.prompt", "Input should be a valid string", prompt),
        a_list,
    ]


def _scalars(body: dict[str, Any]) -> list[Fault]:
    found: list[Fault] = []
    for name in _STRINGS:
        if not isinstance(body.get(name), str | None):
            message = "Input should be a valid string"
            found.append(Fault("string_type", f"body.{name}", message, body[name]))
    for names, check in ((_INTEGERS, _integer), (_NUMBERS, _number), (_BOOLEANS, _boolean)):
        checked = [check(body, name) for name in names if body.get(name) is not None]
        found += [fault for fault in checked if fault is not None]
    return found


def _integer(body: dict[str, Any], name: str) -> Fault | None:
    value, loc = body[name], f"body.{name}"
    if isinstance(value, float) and not value.is_integer():
        message = "Input should be a valid integer, got a number with a fractional part"
        return Fault("int_from_float", loc, message, value)
    if not isinstance(value, str | int | float):
        return Fault("int_type", loc, "Input should be a valid integer", value)
    try:
        body[name] = int(value)
    except ValueError:
        message = "Input should be a valid integer, unable to parse string as an integer"
        return Fault("int_parsing", loc, message, value)
    return None


def _number(body: dict[str, Any], name: str) -> Fault | None:
    value, loc = body[name], f"body.{name}"
    if not isinstance(value, str | int | float):
        return Fault("float_type", loc, "Input should be a valid number", value)
    try:
        body[name] = float(value)
    except ValueError:
        message = "Input should be a valid number, unable to parse string as a number"
        return Fault("float_parsing", loc, message, value)
    return None


def _boolean(body: dict[str, Any], name: str) -> Fault | None:
    value, loc = body[name], f"body.{name}"
    if isinstance(value, bool):
        return None
    written = str(value).lower()
    if not isinstance(value, str | int | float):
        return Fault("bool_type", loc, "Input should be a valid boolean", value)
    if written not in _TRUE | _FALSE:
        message = "Input should be a valid boolean, unable to interpret input"
        return Fault("bool_parsing", loc, message, value)
    body[name] = written in _TRUE
    return None


def _stop(body: dict[str, Any]) -> list[Fault]:
    stop = body.get("stop")
    if not isinstance(stop, list) or len(stop) <= STOP_STRINGS_MAX:
        return []
    limits = {"field_type": "List", "max_length": STOP_STRINGS_MAX, "actual_length": len(stop)}
    message = f"List should have at most {STOP_STRINGS_MAX} items after validation, not {len(stop)}"
    return [
        Fault("string_type", "body.stop", "Input should be a valid string", stop),
        Fault("too_long", "body.stop", message, stop, limits),
    ]


def _format(body: dict[str, Any]) -> list[Fault]:
    wanted = body.get("response_format")
    known = "'text', 'json_object' or 'json_schema'"
    if not isinstance(wanted, dict) or wanted.get("type") in {
        "text",
        "json_object",
        "json_schema",
        "structural_tag",
    }:
        return []
    message = f"Input should be {known}"
    loc = "body.response_format.type"
    return [Fault("literal_error", loc, message, wanted.get("type"), {"expected": known})]


# ------------------------------------------------------------------------------------------ against a server
def check_model(body: dict[str, Any], models: tuple[str, ...]) -> None:
    """A missing model is the served one.

    Raises:
        Refused: unknown model.
    """
    model = body.get("model")
    if model and model not in models:
        message = f"The model `{model}` does not exist. Valid aliases: {', '.join(models)}."
        raise Refused(404, error_body(message, "NotFoundError", 404, "model"))


def check_tools(body: dict[str, Any], *, has_parser: bool) -> None:
    """Without a parser no tool can be called at all.

    Raises:
        Refused: tools are to be used.
    """
    choice = body.get("tool_choice", "auto")
    if not body.get("tools") or choice in (None, "none") or has_parser:
        return
    if choice == "auto":
        raise bad_request(
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
        )
    named = f'function "{choice["function"]["name"]}"' if isinstance(choice, dict) else f'"{choice}"'
    raise bad_request(f"tool_choice={named} requires --tool-call-parser to be set")


def check_prompt(body: dict[str, Any], *, is_chat: bool, max_model_len: int) -> None:
    """Prompts that cannot be tokenized, or need not be.

    Raises:
        Refused: no message, no prompt, an unknown token, or far too many characters.
    """
    prompt = body["messages"] if is_chat else body["prompt"]
    if is_chat and not prompt:
        raise bad_request(
            "Cannot apply chat template to an empty conversation. Provide at least one message."
        )
    if prompt == []:
        raise bad_request("You must pass at least one prompt")
    if isinstance(prompt, list) and not is_chat:
        for token in prompt:
            if isinstance(token, int) and token >= VOCABULARY:
                raise bad_request(f"Token id {token} is out of vocabulary")
    chars = sum(len(str(message.get("content"))) for message in prompt) if is_chat else len(prompt)
    allowed = CHARS_PER_TOKEN_MAX * max_model_len
    if chars > allowed:
        raise bad_request(
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains "
            f"{chars} characters (more than {allowed} characters, which is the upper bound for "
            f"{max_model_len} input tokens). Please reduce the length of the input prompt.",
            "input_text",
            chars,
        )


def output_limit(body: dict[str, Any], prompt_tokens: int, *, is_chat: bool, max_model_len: int) -> int:
    """Output tokens there is room for: more than the context is an error, more than is left is clamped.

    Raises:
        Refused: max_tokens or the prompt exceed the context.
    """
    name = "max_tokens"
    if is_chat and body.get("max_completion_tokens") is not None:
        name = "max_completion_tokens"
    asked: int | None = body.get(name)
    if asked is None and not is_chat:
        asked = 16
    if asked is not None and asked > max_model_len:
        raise bad_request(
            f"{name}={asked} cannot be greater than max_model_len={max_model_len}. "
            "Please request fewer output tokens.",
            name,
            asked,
        )
    if prompt_tokens > max_model_len:
        # The tokenizer stops one token behind the limit, hence "at least".
        seen = max_model_len + 1
        raise bad_request(
            f"This model's maximum context length is {max_model_len} tokens. "
            f"However, your prompt contains at least {seen} input tokens, "
            "which exceeds this limit even without any output tokens. "
            "Please reduce the length of the input prompt.",
            "input_tokens",
            seen,
        )
    left = max_model_len - prompt_tokens
    return left if asked is None else min(left, asked)


def check_sampling(body: dict[str, Any], limit: int, *, is_speculative: bool) -> None:
    """The sampling parameters, and what a speculative engine cannot do.

    Raises:
        Refused: a value outside its range.
    """
    n = 1 if body.get("n") is None else body["n"]
    if n < 1:
        raise bad_request(f"n must be at least 1, got {n}.")
    temperature: float = 1.0 if body.get("temperature") is None else body["temperature"]
    if temperature < 0:
        raise bad_request(f"temperature must be non-negative, got {temperature}.", "temperature", temperature)
    if temperature > 2:
        raise bad_request(f"temperature must be in [0, 2], got {temperature}.", "temperature", temperature)
    top_p: float = 1.0 if body.get("top_p") is None else body["top_p"]
    if not 0 < top_p <= 1:
        raise bad_request(f"top_p must be in (0, 1], got {top_p}.", "top_p", top_p)
    if limit < 1:
        raise bad_request(f"max_tokens must be at least 1, got {limit}.", "max_tokens", limit)
    if n > 1 and temperature < GREEDY:
        raise bad_request(f"n must be 1 when using greedy sampling, got {n}.")
    has_min_p = (body.get("min_p") or 0) > GREEDY and temperature >= GREEDY
    if is_speculative and (has_min_p or body.get("logit_bias")):
        raise bad_request(
            "The min_p and logit_bias sampling parameters are not yet supported with speculative decoding.",
            is_in_stream=bool(body.get("stream")),
        )
