"""How does a stream reach its client, and how does it end?

The response owns its stream: whichever way it ends, complete, failed or abandoned, it is settled here, once,
without a wait that a cancellation could cut short.
"""

from __future__ import annotations

from starlette.types import Send

from gateway.api.client_watch import ClientWatch
from gateway.api.error_bodies import Headers, openai_error
from gateway.errors import UpstreamError
from gateway.protocols.sse import DONE, encode_event
from gateway.served import StreamedAnswer


class EventStreamResponse:
    """Sends one stream."""

    status = 200

    def __init__(self, stream: StreamedAnswer, headers: Headers, watch: ClientWatch) -> None:
        self._stream = stream
        self.headers = headers
        self._watch = watch

    async def __call__(self, send: Send) -> None:
        """Send it to the end, or settle it as far as it came."""
        stream = self._stream
        try:
            await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
            while block := await stream.read():
                await send({"type": "http.response.body", "body": block, "more_body": True})
            stream.finish()
            rest = b""
        except UpstreamError as error:
            stream.fail(error)
            # The status is out already: say it in the stream, as vLLM and OpenAI do, and end it properly.
            rest = encode_event(openai_error(error)) + DONE
        except BaseException:  # the client left (a cancellation), or a bug: the engine must stop either way
            stream.abandon()
            raise
        self._watch.stop()
        await send({"type": "http.response.body", "body": rest, "more_body": False})


class PlainResponse:
    """Sends one whole answer."""

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self._body = body

    async def __call__(self, send: Send) -> None:
        """Send it."""
        headers = [*self.headers, (b"content-length", str(len(self._body)).encode())]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self._body})


Response = PlainResponse | EventStreamResponse
