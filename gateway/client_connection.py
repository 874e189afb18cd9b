"""How much may a client send before it is a request, how long may it take for that, and to read its answer?

uvicorn's protocol on httptools (0.54) bounds none of it: a head of any length is kept, and a connection that
never says anything, or a byte a minute, or reads nothing of a stream, stays for ever. Here a head has a size
and a number of headers (431), a request is whole within a time of its first byte, or of the connection (408),
and who takes in nothing of an answer for a while has left. Nothing is asked per chunk, and a request that
comes in one piece arms no timer but the one of its connection.
"""

from __future__ import annotations

import asyncio
import http
import json
from dataclasses import dataclass, field
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_FEW_HEADERS: Final = 48
"""A head of no more than these, in one piece, is not added up: one read brings 256 KB at most."""


class _HeadTooLarge(Exception):  # httptools carries it out of a callback and wraps it
    """The head breaks a rule of ours."""


@dataclass(slots=True)
class ClientRule:
    """What clients may do, and how many did more."""

    head_bytes_max: int
    headers_max: int
    request_timeout_s: float
    read_timeout_s: float
    refused: dict[str, int] = field(default_factory=lambda: {"head": 0, "time": 0, "read": 0})
    """Connections that were closed for the size of a head, for the time that a request took, or because
    nothing of an answer was read."""


class ClientConnection(HttpToolsProtocol):
    """One client's connection; `api/direct.py` serves on it."""

    def __init__(self, *, rule: ClientRule, **options: Any) -> None:
        super().__init__(**options)
        self._rule = rule
        self._head_bytes = 0
        self._is_in_head = False
        self._is_in_request = False
        self._is_head_too_large = False
        self._is_more_in_piece = False
        """What was read last held some of a body, or the end of a request before."""
        self._unread_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Expect a request."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(self._rule.request_timeout_s, self._overdue)

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing any more."""
        self._stop_timer()
        self._stop_unread_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads more slowly than we write: it shall read something before long."""
        super().pause_writing()
        if self._unread_timer is None:
            self._await_reader()

    def resume_writing(self) -> None:
        """It has caught up."""
        if not self.transport.is_closing():  # then only the end counts
            self._stop_unread_timer()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Parse, and look at what is still incomplete."""
        self._is_more_in_piece = False
        super().data_received(data)
        if not self._is_in_request:
            if self._timer is not None and self.cycle is not None:  # line ends alone are no request
                self._stop_timer()
            return
        # A head, or trailers, which httptools keeps too.
        self._head_bytes = 1 if self._is_more_in_piece else self._head_bytes + len(data)
        if self._head_bytes > self._rule.head_bytes_max and not self._is_head_too_large:
            self._refuse_head()
            return
        if self._timer is None:
            self._timer = self.loop.call_later(self._rule.request_timeout_s, self._overdue)

    # ------------------------------------------- what whoever takes the parser's callbacks tells of a request
    def request_begins(self) -> None:
        """Its first byte is there."""
        self._is_in_request = self._is_in_head = True
        self._head_bytes = 0

    def head_is_whole(self) -> None:
        """Its headers are there.

        Raises:
            _HeadTooLarge: there are too many of them, or they are too long.
        """
        headers = self.headers
        if len(headers) > _FEW_HEADERS or self._head_bytes:
            size = sum(len(name) + len(value) for name, value in headers) + len(self.url)
            if size > self._rule.head_bytes_max or len(headers) > self._rule.headers_max:
                self._is_head_too_large = True
                raise _HeadTooLarge
        self._is_in_head = False

    def request_is_whole(self) -> None:
        """Its last byte is there."""
        self._is_in_request = False
        self._is_more_in_piece = True

    def body_comes(self) -> None:
        """Some of its body is there."""
        self._is_more_in_piece = True

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong with what cannot be read; uvicorn calls it for an error of the parser."""
        if self._is_head_too_large:
            self._refuse_head()
        elif self._may_speak():
            super().send_400_response(msg)
        else:
            self.transport.close()

    # ------------------------------------------------------------------------------------------- refusing
    def _refuse_head(self) -> None:
        self._rule.refused["head"] += 1
        rule = self._rule
        most = f"{rule.head_bytes_max:,} bytes and {rule.headers_max} headers"
        self._end(431, "head_too_large", f"The request's head is too large: {most} at most.")

    def _overdue(self) -> None:
        self._timer = None
        if self.cycle is not None and not self._is_in_request:
            return  # it is whole: how long its answer takes is another matter
        if self.pipeline:  # it is us who do not read on, until the answers before it are out
            self._timer = self.loop.call_later(self._rule.request_timeout_s, self._overdue)
            return
        self._rule.refused["time"] += 1
        self._end(408, "request_timeout", f"No whole request within {self._rule.request_timeout_s:g} s.")

    def _unread(self) -> None:
        self._unread_timer = None
        if self.transport.get_write_buffer_size() < self._unread_bytes:
            self._await_reader()  # it reads, if slowly
            return
        self._rule.refused["read"] += 1
        self.transport.abort()  # what is buffered would keep it open

    def _end(self, status: int, code: str, message: str) -> None:
        if self.transport.is_closing():
            return
        if self._may_speak():
            error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
            body = json.dumps({"error": error}).encode()
            lines = (
                f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
                "content-type: application/json",
                f"content-length: {len(body)}",
                "x-should-retry: false",
                "connection: close",
            )
            self.transport.write("\r\n".join((*lines, "", "")).encode() + body)
        self.close_soon()

    def close_soon(self) -> None:
        """Close once the client has read everything, or nothing for a while."""
        self.transport.close()
        if self._unread_timer is None and self.transport.get_write_buffer_size():
            self._await_reader()

    def _await_reader(self) -> None:
        self._unread_bytes = self.transport.get_write_buffer_size()
        self._unread_timer = self.loop.call_later(self._rule.read_timeout_s, self._unread)

    def _may_speak(self) -> bool:
        """Whether an answer now would be that of the request that is not whole, and its first."""
        cycle = self.cycle
        if cycle is None:
            return True
        if self.pipeline:  # others are answered first
            return False
        if not self._is_in_request or self._is_in_head:  # the cycle is that of the request before
            return cycle.response_complete
        # A cycle that knows no beginning has begun nothing while its request is not whole.
        return not (cycle.response_complete or getattr(cycle, "response_started", False))

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
