"""How do errors look where FastAPI answers, on the control plane and on the pages?

As everywhere else: one body, one sentence that helps. What FastAPI would answer by itself (its list of
validation problems, its 404 and 405) and a database that is away become errors of ours.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionInTime
from starlette.exceptions import HTTPException

from gateway.api.error_bodies import error_headers, openai_error
from gateway.dependencies import REQUEST_ID
from gateway.errors import (
    CallerError,
    GatewayError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Overloaded,
)

_log = logging.getLogger(__name__)


def add_error_answers(app: FastAPI) -> None:
    """Answer every error of this app in our form."""
    app.add_exception_handler(GatewayError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _from_framework)
    for error in (OperationalError, InterfaceError, NoConnectionInTime, ConnectionError):
        app.add_exception_handler(error, _database_away)
    app.add_exception_handler(DBAPIError, _unkeepable)
    app.add_exception_handler(UnicodeEncodeError, _unkeepable)


def respond(request: Request, error: GatewayError, headers: dict[str, str] | None = None) -> Response:
    """The answer to an error."""
    request_id = getattr(request.state, "request_id", "")
    # The route, not the path: people paste whole keys where an id belongs.
    route = f"{request.method} {getattr(request.scope.get('route'), 'path', 'nowhere')}"
    _log.log(error.log_level, "%s %s %s: %s", request_id or "-", route, error.code, error.operator_detail)
    sent = {name.decode(): value.decode() for name, value in error_headers(error)} | (headers or {})
    if request_id:
        sent[REQUEST_ID] = request_id
    return Response(openai_error(error), error.status_code, sent, media_type="application/json")


async def _ours(request: Request, error: Exception) -> Response:
    if not isinstance(error, GatewayError):
        raise error
    return respond(request, error)


async def _invalid(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    return respond(request, invalid_request(error.errors()))


def invalid_request(problems: Sequence[Any]) -> InvalidRequest:
    """What is wrong with a request, field by field; what was sent is not repeated, it may be a secret."""
    if any(problem["type"] == "json_invalid" for problem in problems):
        return InvalidRequest("The body is not valid JSON.")
    found = [(_field(problem["loc"]), problem) for problem in problems]
    sentences = [f"`{field}`: {_reason(problem)}" if field else _reason(problem) for field, problem in found]
    return InvalidRequest("; ".join(sentences) + ".", param=found[0][0] or None)


def _field(location: Sequence[Any]) -> str:
    # The first part says where it stands: body, query, path.
    return ".".join(str(part) for part in location[1:])


def _reason(problem: Any) -> str:
    if tuple(problem["loc"]) == ("body",):
        return "The body must be a JSON object, sent with the header content-type: application/json"
    if problem["type"] == "extra_forbidden":
        return "there is no such field"
    if problem["type"] == "missing":
        return "is missing"
    message: str = problem["msg"]
    return message[:1].lower() + message[1:]


async def _from_framework(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    headers = dict(error.headers or {})
    path, allowed = request.url.path[:200], headers.get("Allow", "other methods")
    ours: dict[int, CallerError] = {
        404: NotFound(f"There is no {path} here. /docs shows what there is."),
        405: MethodNotAllowed(f"{path} takes {allowed}, not {request.method}."),
    }
    return respond(request, ours.get(error.status_code) or InvalidRequest(str(error.detail)), headers)


async def _unkeepable(request: Request, error: Exception) -> Response:
    # PostgreSQL's text holds no NUL, and no database's a lone surrogate (SQLSTATE class 22; SQLite's driver
    # raises Python's own error).
    is_data = isinstance(error, DBAPIError) and str(getattr(error.orig, "sqlstate", "")).startswith("22")
    if not is_data and not isinstance(error, UnicodeEncodeError):
        raise error
    return respond(request, InvalidRequest("The database cannot hold one of the characters that were sent."))


async def _database_away(request: Request, error: Exception) -> Response:
    reason = (str(error).strip() or repr(error)).splitlines()[0]
    answer = Overloaded(
        "The database does not answer. Try again shortly.", retry_after_s=5, operator_detail=reason
    )
    return respond(request, answer)
