"""Where does one server-sent event end, and what does it carry?

The little of the event-stream format (WHATWG HTML, 9.2) that OpenAI's streams use: `data:` lines, comments,
a blank line after each event. Raw carriage returns never occur inside JSON, so they are framing and are
dropped. Pure: bytes in, values out.
"""

from __future__ import annotations

from collections.abc import Iterator

from gateway.errors import UpstreamProtocolError

DONE = b"data: [DONE]\n\n"
EVENT_BYTES_MAX = 8_000_000
"""A longer single event is not a stream any more."""


class EventBuffer:
    """Collects bytes until events are whole; keeps what is left of the last one."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, chunk: bytes) -> bytes:
        """The whole events that are there now, as one block that ends with a blank line, or nothing.

        Raises:
            UpstreamProtocolError: a single event grew beyond the bound.
        """
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r", b"")
        data = self._tail + chunk if self._tail else chunk
        if data.endswith(b"\n\n"):
            self._tail = b""
            return data
        end = data.rfind(b"\n\n")
        if end < 0:
            if len(data) > EVENT_BYTES_MAX:
                raise UpstreamProtocolError(
                    "The model's answer cannot be read.",
                    operator_detail=f"one event of a stream is longer than {EVENT_BYTES_MAX} bytes",
                )
            self._tail = data
            return b""
        self._tail = data[end + 2 :]
        return data[: end + 2]

    @property
    def has_rest(self) -> bool:
        """The stream stopped in the middle of an event."""
        return bool(self._tail.strip())


def split_events(block: bytes) -> Iterator[bytes]:
    """The events of a block of whole events, each with its blank line."""
    for event in block.split(b"\n\n"):
        if event:
            yield event + b"\n\n"


def event_data(event: bytes) -> bytes | None:
    """What the event's `data:` lines carry; None for a comment."""
    if event.startswith(b"data: ") and b"\n" not in event[:-2]:
        return event[6:-2]
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def encode_event(data: bytes) -> bytes:
    """One event that carries one line."""
    return b"data: " + data + b"\n\n"
