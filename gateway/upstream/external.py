"""How is a model outside the company asked, and what does its answer become here?

The one door to litellm (1.106.2), which is a carrier here and nothing else. What it would do by itself and
what was done about it (`litellm/utils.py`, `main.py`, `litellm_core_utils/streaming_handler.py`):

- At import it downloads its price list and reads a `.env` file: both are switched off in the environment
  before the import. Log lines, hints on standard output, callbacks: off.
- After a call it computes a cost and hands the call to a logging task that lives for ever: calls are marked
  as internal, which skips that. Nothing of its prices is used; rates come from the policy.
- It loads most of itself on its first calls, which would stop every request for seconds just when the pools
  are busy: `warm_up` makes those calls, to nobody, in the thread that imports this module.
- It retries, twice by default, and caches clients: it gets a client of ours, with no retries, that does not
  follow redirects and sends the headers below only.
- A call with tools is looked at for tools of its own, by a package that is not installed, and some calls are
  asked through OpenAI's other API: both skipped. Fields that it thinks a model does not know are sent anyway.
- Fields of a request may be its own controls (`api_base`, `mock_response`, `fallbacks`): only the published
  list (`protocols/portable.py`) reaches it.
- Its stream wrapper invents a finish reason for a stream that was cut, and counts tokens itself where the
  provider said nothing: the provider's own events, which it wraps, are read instead. A whole answer without
  a usage gets one of zeros: that is read as none.
- It turns the prompts of text completions into chat messages and back, and hides the connection of their
  streams: these go to the client library directly (openai 2.54, which litellm would have used).

Providers: those that speak OpenAI's wire format (OpenAI itself, and any compatible URL). Units and limits as
everywhere; timeouts but the one for connecting are the dispatcher's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

import httpx
import msgspec
import openai

from gateway.errors import (
    UpstreamError,
    UpstreamOverloaded,
    UpstreamProtocolError,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.inference import Call, Completion, RouteDecision, Target, TokenUsage, UsageSource
from gateway.inference import Endpoint as Path
from gateway.protocols.json_body import raw
from gateway.protocols.openai import read_usage
from gateway.protocols.portable import portable_fields
from gateway.protocols.sse import DONE, encode_event
from gateway.upstream.outside import Endpoint
from gateway.upstream.vllm import output_bound

# Before the import, which reads them.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # noqa: TID251 - not a setting of ours: a switch of litellm's
os.environ["LITELLM_MODE"] = "PRODUCTION"  # noqa: TID251 - as above: no .env file

import litellm
from litellm._internal_context import is_internal_call

litellm.suppress_debug_info = True
litellm.turn_off_message_logging = True
litellm.drop_params = False
litellm.modify_params = False
litellm.route_all_chat_openai_to_responses = False
for _name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
    logging.getLogger(_name).disabled = True  # its lines hold requests
logging.getLogger("openai").setLevel(logging.WARNING)

CONNECTIONS_MAX: Final = 1000
HEADERS: Final = frozenset(
    {
        "accept",
        "accept-encoding",
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "host",
        "transfer-encoding",
        "user-agent",
        "x-stainless-raw-response",  # the client library looks for it in the request it has sent
    }
)
"""All that is sent outside: the client library would tell what this machine is, and obey its environment."""

_NO_KEY = "none"
"""The client library insists on one; it is not sent."""
_OVERLOADED = frozenset({408, 429, 503})
_OUR_FAULT = frozenset({401, 402, 403, 404, 405, 407, 409})
"""Our key, our bill, our permissions, the model's name or the address in our policy."""
_COULD_NOT = "The model could not answer."
_UNREADABLE = "The model's answer cannot be read."
_SHOWN_CHARS = 500

_USAGE_WANTED: Final = {"include_usage": True}
_EVENT_FIELDS = ("id", "object", "created", "choices", "usage")
_MESSAGE_FIELDS = ("tool_calls", "function_call", "annotations", "audio", "reasoning_content")
_USAGE_FIELDS: Final = {
    "prompt_tokens": None,
    "completion_tokens": None,
    "total_tokens": None,
    "prompt_tokens_details": ("cached_tokens", "audio_tokens"),
    "completion_tokens_details": (
        "reasoning_tokens",
        "audio_tokens",
        "accepted_prediction_tokens",
        "rejected_prediction_tokens",
    ),
}
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def warm_up() -> None:
    """Have litellm and the client library load what they load on their first calls; takes seconds."""
    asyncio.run(_call_nobody())


async def _call_nobody() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if b'"stream":true' in request.content.replace(b" ", b""):
            return httpx.Response(200, text="data: [DONE]\n\n", headers={"content-type": "text/event-stream"})
        message = {"role": "assistant", "content": ""}
        choice = {"index": 0, "text": "", "message": message, "finish_reason": "stop"}
        return httpx.Response(
            200, json={"id": "", "object": "", "created": 0, "model": "", "choices": [choice]}
        )

    nobody = _Door(
        "nobody",
        Endpoint("http://nobody.invalid/v1", None),
        connect_timeout_s=1,
        transport=httpx.MockTransport(answer),
    )
    chat = {"model": "none", "messages": [{"role": "user", "content": ""}]}
    with nobody.translating():
        (await nobody.post(Path.CHAT_COMPLETIONS, chat)).model_dump(mode="json", warnings=False)
        answer_stream = await nobody.post(Path.CHAT_COMPLETIONS, {**chat, "stream": True})
        async for _ in answer_stream.completion_stream:
            pass
        await nobody.post(Path.COMPLETIONS, {"model": "none", "prompt": ""})
    await nobody.client.close()


class Litellm:
    """Speaks to external targets."""

    def __init__(self, endpoints: Mapping[str, Endpoint], *, connect_timeout_s: float) -> None:
        self._doors = {
            name: _Door(name, endpoint, connect_timeout_s=connect_timeout_s)
            for name, endpoint in endpoints.items()
        }
        self._closing: set[asyncio.Task[None]] = set()

    async def complete(self, call: Call, decision: RouteDecision, target: Target) -> Completion:
        """A whole answer, under the alias.

        Raises:
            UpstreamError: there is none.
        """
        door = self._doors[target.pool]
        with door.translating():
            answer = await door.ask(call, decision, target)
            return _completion(answer.model_dump(mode="json", warnings=False), call)

    async def open(self, call: Call, decision: RouteDecision, target: Target) -> ChunkSource:
        """A stream whose status is good.

        Raises:
            UpstreamError: there is none.
        """
        door = self._doors[target.pool]
        with door.translating():
            answer = await door.ask(call, decision, target, stream=True, stream_options=_USAGE_WANTED)
            chunks = getattr(answer, "completion_stream", answer)
            if not isinstance(chunks, openai.AsyncStream):
                await answer.aclose()
                raise UpstreamProtocolError(
                    _UNREADABLE,
                    operator_detail=f"external target '{target.pool}': litellm asks this model through an API"
                    " other than OpenAI's chat completions",
                )
        return ChunkSource(self, door, chunks, alias=call.model_alias)

    def close_soon(self, chunks: openai.AsyncStream[Any]) -> None:
        """Close a stream's connection, by a task that `close` waits for."""
        task = asyncio.get_running_loop().create_task(_quietly(chunks))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close every connection, also those in use."""
        if self._closing:
            await asyncio.wait(self._closing)
        for door in self._doors.values():
            await door.client.close()


async def _quietly(chunks: openai.AsyncStream[Any]) -> None:
    with contextlib.suppress(httpx.HTTPError, OSError, RuntimeError):  # it is gone either way
        await chunks.close()


class _Door:
    """One external target's connections."""

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        *,
        connect_timeout_s: float,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._name = name
        self._endpoint = endpoint
        timeout = httpx.Timeout(None, connect=connect_timeout_s, pool=connect_timeout_s)
        self.client = openai.AsyncOpenAI(
            api_key=endpoint.api_key or _NO_KEY,
            base_url=endpoint.api_base,
            max_retries=0,
            timeout=timeout,
            http_client=httpx.AsyncClient(  # noqa: TID251 - litellm's transport, for targets outside only
                timeout=timeout,
                limits=httpx.Limits(max_connections=CONNECTIONS_MAX),
                follow_redirects=False,
                event_hooks={"request": [self._strip]},
                transport=transport,
            ),
        )

    async def _strip(self, request: httpx.Request) -> None:
        for name in [name for name in request.headers if name not in HEADERS]:
            del request.headers[name]
        request.headers["user-agent"] = "tollgate"
        if self._endpoint.api_key is None:
            request.headers.pop("authorization", None)

    async def ask(self, call: Call, decision: RouteDecision, target: Target, **more: Any) -> Any:
        """Whatever litellm, or the client library, makes of the answer."""
        wanted: dict[str, Any] = {name: _decode(value) for name, value in portable_fields(call).items()}
        if call.max_tokens is None:
            # litellm gives it the name that the model understands.
            wanted["max_tokens"] = output_bound(call, decision, target)
        return await self.post(call.endpoint, {**wanted, **more, "model": target.upstream_model})

    async def post(self, path: Path, wanted: dict[str, Any]) -> Any:
        """Send it."""
        if path is Path.COMPLETIONS:
            return await self.client.completions.create(**wanted)
        return await litellm.acompletion(
            **wanted,
            custom_llm_provider="openai",
            client=self.client,
            api_key=self.client.api_key,
            api_base=self._endpoint.api_base,
            timeout=self.client.timeout,
            max_retries=0,
            num_retries=0,
            allowed_openai_params=list(wanted),
            _skip_mcp_handler=True,
            _skip_responses_api_bridge=True,
        )

    @contextlib.contextmanager
    def translating(self) -> Iterator[None]:
        """Work with litellm inside: unseen by its logging, its errors turned into ours."""
        token = is_internal_call.set(True)
        try:
            yield
        except UpstreamError:
            raise
        except Exception as error:  # litellm raises whatever it meets; this is its only door
            raise self._error(error) from error
        finally:
            is_internal_call.reset(token)

    def _error(self, error: Exception) -> UpstreamError:
        """Our error for what the client library, or litellm in front of it, raised."""
        chain = list(_chain(error))
        who = f"external target '{self._name}'"
        for one in chain:
            if isinstance(one, openai.APITimeoutError | httpx.TimeoutException):
                return UpstreamTimeout(
                    "The model took too long to answer.", operator_detail=f"{who}: {type(one).__name__}"
                )
            if isinstance(one, openai.APIConnectionError | httpx.TransportError):
                return self._unavailable(f"{who}: {one.__cause__ or one!r}")
            if isinstance(one, openai.APIStatusError) and type(one).__module__.startswith("openai"):
                return self._of_status(one.status_code, one.body, str(one))
        if any(
            isinstance(one, json.JSONDecodeError | msgspec.DecodeError | UnicodeDecodeError) for one in chain
        ):
            return UpstreamProtocolError(_UNREADABLE, operator_detail=self._masked(f"{who}: {error!r}"))
        # Also where litellm knows by itself that the model would refuse: whoever asked could not know which
        # model would answer, and a pool that is up again will take the call.
        return self._unavailable(f"{who}: {error!r}")

    def _of_status(self, status: int, body: object, text: str) -> UpstreamError:
        said = body if isinstance(body, dict) else {}
        message = str(said.get("message") or text)
        if status >= 400 and status < 500 and status not in _OVERLOADED | _OUR_FAULT:  # noqa: PLR2004 - HTTP's classes
            return self._rejected(status, said, message)
        detail = f"external target '{self._name}' answered {status}: {message}"
        error: UpstreamError
        if status in _OVERLOADED:
            error = UpstreamOverloaded("The model is overloaded.", operator_detail=self._masked(detail))
        else:
            error = self._unavailable(detail)
        error.upstream_status = status
        return error

    def _rejected(self, status: int, said: Mapping[str, Any], message: str) -> UpstreamRejected:
        param = said.get("param")
        return UpstreamRejected(
            self._masked(message) or f"The model refused the request with status {status}.",
            status_code=status,
            upstream_code=str(said.get("code") or said.get("type") or "invalid_request"),
            param=param if isinstance(param, str) else None,
        )

    def _unavailable(self, detail: str) -> UpstreamUnavailable:
        return UpstreamUnavailable(_COULD_NOT, operator_detail=self._masked(detail))

    def _masked(self, text: str) -> str:
        """A provider's sentence without our key and without where the target is."""
        host = httpx.URL(self._endpoint.api_base).host
        for secret in (self._endpoint.api_key, self._endpoint.api_base, host):
            if secret:
                text = text.replace(secret, "…")
        return text[:_SHOWN_CHARS]


class ChunkSource:
    """A provider's stream as the events that an engine of ours would have sent."""

    def __init__(self, owner: Litellm, door: _Door, chunks: openai.AsyncStream[Any], *, alias: str) -> None:
        self._owner = owner
        self._door = door
        self._chunks = chunks
        self._alias = alias
        self._open_choices: set[int] = set()
        self._ended_choices: set[int] = set()
        self._is_closed = False
        self._is_over = False

    async def read(self) -> bytes:
        """The next event; nothing once the stream has ended.

        Raises:
            UpstreamError: it broke, or the provider reported an error.
        """
        if self._is_over:
            return b""
        with self._door.translating():
            chunk = await anext(self._chunks, None)
            if chunk is not None:
                return encode_event(self._event(chunk.model_dump(exclude_unset=True, warnings=False)))
        self._is_over = True
        # The client library does not tell [DONE] from a connection that was closed early: every answer that
        # has begun must have said why it ended.
        is_whole = bool(self._ended_choices) and self._open_choices <= self._ended_choices
        return DONE if is_whole else b""

    def close(self) -> None:
        """Let go of it; the connection is closed if the stream has not ended."""
        if not self._is_closed:
            self._is_closed = True
            self._owner.close_soon(self._chunks)

    def _event(self, said: dict[str, Any]) -> bytes:
        for choice in said.get("choices") or ():
            index = choice.get("index", 0)
            self._open_choices.add(index)
            if choice.get("finish_reason") is not None:
                self._ended_choices.add(index)
        event = {name: said[name] for name in _EVENT_FIELDS if said.get(name) is not None}
        if "usage" in event:
            event["usage"] = _openai_usage(event["usage"])
        return _encode({**event, "model": self._alias})


def _completion(said: dict[str, Any], call: Call) -> Completion:
    """A whole answer in OpenAI's shape, without what litellm adds."""
    if not said.get("choices"):
        raise UpstreamProtocolError(
            _UNREADABLE, operator_detail="an external target's answer has no `choices`"
        )
    is_chat = call.endpoint is Path.CHAT_COMPLETIONS
    body: dict[str, Any] = {
        "id": said.get("id"),
        "object": "chat.completion" if is_chat else "text_completion",
        "created": said.get("created"),
        "model": call.model_alias,
        "choices": [_chat_choice(one) if is_chat else _text_choice(one) for one in said["choices"]],
    }
    usage: TokenUsage | None = None
    wire = said.get("usage")
    if wire and (wire.get("prompt_tokens") or wire.get("completion_tokens")):
        body["usage"] = _openai_usage(wire)
        usage = read_usage(raw(body["usage"]))
    source = UsageSource.ESTIMATED if usage is None else UsageSource.MEASURED
    return Completion(body=_encode(body), usage=usage, usage_source=source)


def _chat_choice(said: dict[str, Any]) -> dict[str, Any]:
    message = said["message"]
    moved = message.get("provider_specific_fields") or {}  # litellm puts OpenAI's `refusal` there
    return {
        "index": said["index"],
        "message": {
            "role": message["role"],
            "content": message.get("content"),
            "refusal": message.get("refusal", moved.get("refusal")),
            **{name: message[name] for name in _MESSAGE_FIELDS if message.get(name)},
        },
        "logprobs": said.get("logprobs"),
        "finish_reason": said["finish_reason"],
    }


def _text_choice(said: dict[str, Any]) -> dict[str, Any]:
    return {name: said.get(name) for name in ("index", "text", "logprobs", "finish_reason")}


def _openai_usage(said: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's fields of a usage, without those that are not said."""
    usage: dict[str, Any] = {}
    for name, inner in _USAGE_FIELDS.items():
        value = said.get(name)
        if value is not None:
            usage[name] = (
                value
                if inner is None
                else {part: value[part] for part in inner if value.get(part) is not None}
            )
    return usage


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__
