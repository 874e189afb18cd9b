"""What of an engine's stream reaches the client?

Bytes pass through but for the model's name and the last events: the client sees the alias that it asked
for, no engine internals, and the usage chunk only if it asked for one. Looks closely at an event only
until the first content, and where a marker says that there is a usage, an error or the end. The markers
cannot be forged by generated text: inside a JSON string a quote is escaped.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from gateway.errors import UpstreamError, UpstreamProtocolError, UpstreamUnavailable
from gateway.inference import EngineMetrics, TokenUsage
from gateway.protocols.json_body import ABSENT, encode_object, is_there, raw
from gateway.protocols.openai import read_engine_metrics, read_usage
from gateway.protocols.sse import DONE, EventBuffer, encode_event, event_data, split_events
from gateway.upstream.vllm import ENGINE_ONLY, error_in_stream

_encode = msgspec.json.Encoder().encode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])

CostText = Callable[[TokenUsage], str]
"""The charge of a usage as a decimal string in USD; injected, since this room knows no prices."""


class _Choice(msgspec.Struct):
    delta: dict[str, msgspec.Raw] | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = ABSENT
    metrics: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


_event = msgspec.json.Decoder(_Event)


class StreamRelay:
    """One stream's way from engine bytes to client bytes, and what was learned on it."""

    __slots__ = (
        "_buffer",
        "_cost_text",
        "_model",
        "_wants_usage",
        "content_events",
        "engine",
        "failure",
        "has_content",
        "is_done",
        "usage",
    )

    def __init__(self, *, upstream_model: str, alias: str, wants_usage: bool, cost_text: CostText) -> None:
        self._buffer = EventBuffer()
        self._model = None if upstream_model == alias else _model_swap(upstream_model, alias)
        self._wants_usage = wants_usage
        self._cost_text = cost_text
        self.has_content = False
        self.is_done = False
        """`[DONE]` was seen."""
        self.content_events = 0
        """Events with content so far: a lower bound of the tokens generated."""
        self.usage: TokenUsage | None = None
        self.engine = EngineMetrics()
        self.failure: UpstreamError | None = None
        """What the engine said behind content that came in the same piece; raised by the next call."""

    def feed(self, chunk: bytes) -> bytes:
        """What the client shall get for these bytes; may be empty.

        Raises:
            UpstreamUnavailable: the engine reported an error inside the stream.
            UpstreamRejected: the engine refused the request there, before any content.
            UpstreamProtocolError: not a stream of OpenAI's events.
        """
        if self.failure is not None:
            raise self.failure
        block = self._buffer.feed(chunk)
        if not block:
            return block
        if (
            self.has_content
            and b'"usage":{' not in block
            and b'"error"' not in block
            and b"[DONE]" not in block
        ):
            self.content_events += block.count(b"\n\n")
        else:
            block = self._look_at_all(block)
        return block if self._model is None else block.replace(*self._model)

    def end(self) -> None:
        """The engine closed the stream.

        Raises:
            UpstreamUnavailable: before it was finished.
        """
        if self.failure is not None:
            raise self.failure
        if self._buffer.has_rest or not self.is_done:
            raise UpstreamUnavailable(
                "The model's answer ended before it was complete.",
                operator_detail="the engine closed the stream before [DONE]",
            )

    def _look_at_all(self, block: bytes) -> bytes:
        seen: list[bytes] = []
        for event in split_events(block):
            try:
                seen.append(self._look_at(event))
            except UpstreamError as error:
                if not seen:
                    raise
                self.failure = error
                break
        return b"".join(seen)

    def _look_at(self, event: bytes) -> bytes:
        data = event_data(event)
        if data is None:  # a comment that keeps the connection open
            return event
        if data == b"[DONE]":
            self.is_done = True
            return DONE
        try:
            parsed = _event.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UpstreamProtocolError(
                "The model's answer cannot be read.",
                operator_detail=f"not an OpenAI stream event: {error}: {data[:200]!r}",
            ) from None
        if is_there(parsed.error):
            raise error_in_stream(data, has_content=self.has_content)
        if is_there(parsed.usage):
            self._learn(parsed)
        if parsed.choices:
            if any(_has_content(choice) for choice in parsed.choices):
                self.content_events += 1
                self.has_content = True
            return event
        if is_there(parsed.usage):
            return self._usage_event(data) if self._wants_usage else b""
        return event

    def _learn(self, event: _Event) -> None:
        try:
            self.usage = read_usage(event.usage) or self.usage
            if is_there(event.metrics):
                self.engine = read_engine_metrics(event.metrics)
        except (msgspec.DecodeError, RecursionError) as error:
            raise UpstreamProtocolError(
                "The model's answer cannot be read.", operator_detail=f"unreadable usage in a stream: {error}"
            ) from None

    def _usage_event(self, data: bytes) -> bytes:
        fields = _fields.decode(data)
        for name in ENGINE_ONLY:
            fields.pop(name, None)
        if self.usage is not None:
            usage = _fields.decode(fields["usage"])
            usage["cost_usd"] = raw(self._cost_text(self.usage))
            fields["usage"] = raw(usage)
        return encode_event(encode_object(fields))


def _has_content(choice: _Choice) -> bool:
    if choice.finish_reason is not None or choice.text:
        return True
    return any(
        name != "role" and bytes(value) not in {b'""', b"null", b"[]"}
        for name, value in (choice.delta or {}).items()
    )


def _model_swap(upstream_model: str, alias: str) -> tuple[bytes, bytes]:
    return b'"model":' + _encode(upstream_model), b'"model":' + _encode(alias)
