"""The one raw door of the data plane.

A pure ASGI callable around the FastAPI app: path table → authenticate → body → handler → answer or
error. Every other path, and the lifespan, falls through to FastAPI. Nothing here parses a body or knows a
policy; no framework stands between a stream's chunks and the socket, where each layer would cost
microseconds for every chunk.
"""

from __future__ import annotations

import asyncio
import logging

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api.client_watch import ClientWatch
from gateway.api.edge_types import EdgeRequest, Handler
from gateway.api.error_bodies import error_headers, openai_error
from gateway.api.inference_calls import chat_completions, completions
from gateway.api.models import list_models
from gateway.api.rate_limit_headers import rate_limit_headers
from gateway.api.receipts import PATH as RECEIPT
from gateway.api.receipts import read_receipt
from gateway.api.streaming import PlainResponse
from gateway.dependencies import Runtime, Services
from gateway.errors import (
    GatewayError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    UnsupportedEncoding,
)
from gateway.identity.limits import Limits
from gateway.inference import new_id

ROUTES: dict[str, dict[str, Handler]] = {
    "/v1/chat/completions": {"POST": chat_completions},
    "/v1/completions": {"POST": completions},
    "/v1/models": {"GET": list_models},
    RECEIPT: {"GET": read_receipt},
}
PREFIX = "/v1/"
RECEIPTS_FOLDER = RECEIPT.rpartition("/")[0]
CLIENT_GONE = 499
"""nginx's status for a client that left; for metrics, never sent."""

_log = logging.getLogger(__name__)


class InternalError(GatewayError):
    """A bug of ours."""


class Edge:
    """The door."""

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self._app = app
        self._runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a path of the data plane, or let the app do it."""
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        await _Exchange(scope, receive, send).run(self._runtime)


class _Exchange:
    """One request and its answer."""

    __slots__ = ("_has_started", "_limits", "_receive", "_request_id", "_scope", "_send", "_status")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._request_id = ""
        self._status = 500
        self._has_started = False
        self._limits: Limits | None = None

    async def run(self, runtime: Runtime) -> None:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        services = runtime.services
        watch = ClientWatch(self._receive)
        try:
            services = runtime.current()
            self._request_id = new_id("req_", services.clock.epoch_ms())
            await self._serve(services, watch)
        except GatewayError as error:
            await self._refuse(error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not watch.has_left or task is None:
                raise
            task.uncancel()
            self._status = CLIENT_GONE
        except Exception as error:  # noqa: BLE001 - the one place: a bug is logged and answered
            _log.exception("request %s", self._request_id)
            await self._refuse(
                InternalError("Something went wrong inside Tollgate.", operator_detail=repr(error))
            )
        if services is not None:
            path = route_of(self._scope["path"]) or "other"
            services.telemetry.request_ended(path, self._status, loop.time() - started_s)
            if self._status == CLIENT_GONE:
                services.telemetry.client_gone()

    async def _serve(self, services: Services, watch: ClientWatch) -> None:
        scope = self._scope
        route = route_of(scope["path"])
        if route is None:
            raise NotFound(f"There is no {scope['path'][:200]} here. Known paths: {', '.join(ROUTES)}.")
        methods = ROUTES[route]
        handler = methods.get(scope["method"])
        if handler is None:
            raise MethodNotAllowed(f"{scope['path']} takes {', '.join(methods)}, not {scope['method']}.")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        caller = services.keys.authenticate(headers)
        self._limits = caller.limits
        body = await self._read_body(headers, services.settings.limits.body_bytes_max)
        request = EdgeRequest(services, caller, headers, body, scope["path"], self._request_id, watch)
        with watch:
            response = await handler(request)
            if self._limits is not None:
                response.headers += rate_limit_headers(self._limits)
            if isinstance(response, PlainResponse):
                watch.stop()
            self._has_started = True
            self._status = response.status
            await response(self._send)

    async def _read_body(self, headers: dict[str, str], limit_bytes: int) -> bytes:
        encoding = headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            raise UnsupportedEncoding(
                f"The request body is compressed ({encoding[:32]}): send it uncompressed,"
                " without a Content-Encoding header."
            )
        announced = headers.get("content-length")
        if announced is not None and announced.isdigit() and int(announced) > limit_bytes:
            raise _too_large(limit_bytes)
        body = b""
        pieces: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise InvalidRequest("The client left before its request was complete.")
            body = message.get("body", b"")
            size += len(body)
            if size > limit_bytes:
                raise _too_large(limit_bytes)
            if not message.get("more_body", False):
                return body if not pieces else b"".join([*pieces, body])
            pieces.append(body)

    async def _refuse(self, error: GatewayError) -> None:
        self._status = error.status_code
        _log.log(error.log_level, "%s %s: %s", self._request_id, error.code, error.operator_detail)
        if self._has_started:
            return  # too late for a status; uvicorn closes a connection whose answer was cut
        headers = [
            (b"content-type", b"application/json"),
            (b"x-request-id", self._request_id.encode()),
            *error_headers(error),
            *rate_limit_headers(self._limits),
        ]
        if isinstance(error, PayloadTooLarge | UnsupportedEncoding):
            headers.append((b"connection", b"close"))  # the rest of the body is never read
        if isinstance(error, MethodNotAllowed):
            methods = ROUTES[route_of(self._scope["path"]) or ""]
            headers.append((b"allow", ", ".join(methods).encode()))
        await PlainResponse(error.status_code, headers, openai_error(error))(self._send)


def route_of(path: str) -> str | None:
    """The row of the table that a path is served by."""
    if path in ROUTES:
        return path
    folder, _, name = path.rpartition("/")
    return RECEIPT if name and folder == RECEIPTS_FOLDER else None


def _too_large(limit_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The request body is larger than {limit_bytes:,} bytes: shorten the conversation, or ask the"
        " operator to raise TOLLGATE_LIMITS__BODY_BYTES_MAX."
    )
