"""The one raw door of the data plane.

Path table → authenticate → body → handler → answer or error, for requests that came as ASGI (a pure callable
around the FastAPI app) or straight from the socket (`direct.py`). Every other path, and the lifespan, falls
through to FastAPI. Nothing here parses a body or knows a
policy; no framework stands between a stream's chunks and the socket, where each layer would cost
microseconds for every chunk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Mapping
from time import monotonic
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api.edge_types import EdgeRequest, Handler
from gateway.api.error_bodies import error_headers, openai_error
from gateway.api.inference_calls import chat_completions, completions
from gateway.api.models import list_models
from gateway.api.rate_limit_headers import rate_limit_headers
from gateway.api.receipts import PATH as RECEIPT
from gateway.api.receipts import read_receipt
from gateway.api.wire import AsgiWire, Wire, too_large
from gateway.dependencies import Runtime, Services
from gateway.errors import (
    GatewayError,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    UnsupportedEncoding,
)
from gateway.identity.limits import Limits
from gateway.inference import new_id
from gateway.protocols.openai import CALL_HEADERS

ROUTES: dict[str, dict[str, Handler]] = {
    "/v1/chat/completions": {"POST": chat_completions},
    "/v1/completions": {"POST": completions},
    "/v1/models": {"GET": list_models},
    RECEIPT: {"GET": read_receipt},
}
PREFIX = "/v1/"
READ = {
    name.encode(): name
    for name in (
        "authorization",
        "content-encoding",
        "content-length",
        "x-api-key",
        *CALL_HEADERS,
    )
}
"""The headers that anybody here reads: the others are not even decoded, and clients send many."""
DIRECT = {path.encode(): path for path, methods in ROUTES.items() if "POST" in methods}
"""Paths that are served straight from the socket, as they stand in a request's first line."""
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
        await self.serve(AsgiWire(receive, send), scope["method"], scope["path"], headers=scope["headers"])

    def serve(
        self, wire: Wire, method: str, path: str, *, headers: Iterable[tuple[bytes, bytes]]
    ) -> Coroutine[Any, Any, None]:
        """Answer one request of the data plane."""
        return _Exchange(wire, method, path).run(self._runtime, headers)


class _Exchange:
    """One request and its answer."""

    __slots__ = ("_has_started", "_limits", "_method", "_path", "_request_id", "_status", "_wire")

    def __init__(self, wire: Wire, method: str, path: str) -> None:
        self._wire = wire
        self._method = method
        self._path = path
        self._request_id = ""
        self._status = 500
        self._has_started = False
        self._limits: Limits | None = None

    async def run(self, runtime: Runtime, headers: Iterable[tuple[bytes, bytes]]) -> None:
        started_s = monotonic()
        services, wire = runtime.services, self._wire
        try:
            services = runtime.current()
            self._request_id = new_id("req_", services.clock.epoch_ms())
            await self._serve(
                services, {READ[name]: v.decode("latin-1") for name, v in headers if name in READ}
            )
        except GatewayError as error:
            wire.unwatch()
            await self._refuse(error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not wire.has_left or task is None:
                raise
            task.uncancel()
            self._status = CLIENT_GONE
        except Exception as error:  # noqa: BLE001 - the one place: a bug is logged and answered
            wire.unwatch()
            _log.exception("request %s", self._request_id)
            await self._refuse(
                InternalError("Something went wrong inside Tollgate.", operator_detail=repr(error))
            )
        finally:
            wire.unwatch()
        if services is not None:
            path = route_of(self._path) or "other"
            services.telemetry.request_ended(path, self._status, monotonic() - started_s)
            if self._status == CLIENT_GONE:
                services.telemetry.client_gone()

    async def _serve(self, services: Services, headers: Mapping[str, str]) -> None:
        route = route_of(self._path)
        if route is None:
            raise NotFound(f"There is no {self._path[:200]} here. Known paths: {', '.join(ROUTES)}.")
        methods = ROUTES[route]
        handler = methods.get(self._method)
        if handler is None:
            raise MethodNotAllowed(f"{self._path} takes {', '.join(methods)}, not {self._method}.")
        caller = services.keys.authenticate(headers)
        self._limits = caller.limits
        limit_bytes = services.settings.limits.body_bytes_max
        _refuse_unreadable(headers, limit_bytes)
        body = await self._wire.read_body(limit_bytes)
        request = EdgeRequest(services, caller, headers, body, self._path, self._request_id)
        self._wire.watch()
        response = await handler(request)
        if self._limits is not None:
            response.headers += rate_limit_headers(self._limits)
        self._has_started = True
        self._status = response.status
        await response.send(self._wire)

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
            methods = ROUTES[route_of(self._path) or ""]
            headers.append((b"allow", ", ".join(methods).encode()))
        await self._wire.whole(error.status_code, headers, openai_error(error))


def _refuse_unreadable(headers: Mapping[str, str], limit_bytes: int) -> None:
    """Refuse a body before it is read, where its headers say enough."""
    encoding = headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise UnsupportedEncoding(
            f"The request body is compressed ({encoding[:32]}): send it uncompressed,"
            " without a Content-Encoding header."
        )
    announced = headers.get("content-length")
    if announced is not None and announced.isdigit() and int(announced) > limit_bytes:
        raise too_large(limit_bytes)


def route_of(path: str) -> str | None:
    """The row of the table that a path is served by."""
    if path in ROUTES:
        return path
    folder, _, name = path.rpartition("/")
    return RECEIPT if name and folder == RECEIPTS_FOLDER else None
