"""How does a stream reach its client, and how does it end?

The response owns its stream: whichever way it ends, complete, failed or abandoned, it is settled here, once,
without a wait that a cancellation could cut short.
"""

from __future__ import annotations

from collections.abc import Awaitable

from gateway.api.error_bodies import Headers, openai_error
from gateway.api.wire import Wire
from gateway.errors import UpstreamError
from gateway.protocols.sse import DONE, encode_event
from gateway.served import StreamedAnswer


class EventStreamResponse:
    """Sends one stream."""

    __slots__ = ("_stream", "headers")

    status = 200

    def __init__(self, stream: StreamedAnswer, headers: Headers) -> None:
        self._stream = stream
        self.headers = headers

    async def send(self, wire: Wire) -> None:
        """Send it to the end, or settle it as far as it came."""
        stream = self._stream
        try:
            await wire.begin(self.status, self.headers)
            write = wire.write
            if write is None:
                while block := await stream.read():
                    await wire.part(block)
            else:
                while not await stream.pour(write):
                    await wire.drain()
            stream.finish()
            rest = b""
        except UpstreamError as error:
            stream.fail(error)
            # The status is out already: say it in the stream, as vLLM and OpenAI do, and end it properly.
            rest = encode_event(openai_error(error)) + DONE
        except BaseException:  # the client left (a cancellation), or a bug: the engine must stop either way
            stream.abandon()
            raise
        wire.unwatch()
        await wire.end(rest)


class PlainResponse:
    """Sends one whole answer."""

    __slots__ = ("_body", "headers", "status")

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self._body = body

    def send(self, wire: Wire) -> Awaitable[None]:
        """Send it."""
        wire.unwatch()
        return wire.whole(self.status, self.headers, self._body)


Response = PlainResponse | EventStreamResponse
