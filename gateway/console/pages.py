"""How does a page get onto the wire, and what if it cannot?

Templates with everything escaped, the headers that every answer of the console carries, and a route class
that turns our errors into pages: whoever is not logged in is led to the login, all others read a sentence.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy.exc import SQLAlchemyError

from gateway.console import display
from gateway.console.assets import assets_version
from gateway.console.navigation import HOME, SECTIONS, may
from gateway.errors import AuthenticationFailed, GatewayError, Overloaded

LOGIN = "/console/login"
STATIC = "/console/static"
NO_DATABASE = "The database does not answer right now: nothing can be shown or changed. Try again shortly."
RETRY_AFTER_S = 10

_FOLDER = Path(__file__).parent

HEADERS = {
    # Everything from here, nothing inline that runs; nobody may frame the page or take its forms elsewhere.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Not no-referrer: with it, browsers send "Origin: null" with our own forms, and the check refuses them.
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}

_log = logging.getLogger(__name__)

_templates = Environment(
    loader=FileSystemLoader(_FOLDER / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters.update(
    count=display.count,
    milliseconds=display.milliseconds,
    minute=display.minute,
    percent=display.percent,
    second=display.second,
    usd_below_cents=display.usd_below_cents,
    usd_plain=display.usd_plain,
    usd_short=display.usd_short,
    usd_to_cents=display.usd_to_cents,
    with_code=display.with_code,
)
_templates.globals.update(
    home=HOME, login=LOGIN, static=STATIC, version=assets_version(), sections=SECTIONS, may=may
)


def page(template: str, *, status_code: int = 200, **values: Any) -> HTMLResponse:
    """A rendered template."""
    return HTMLResponse(_templates.get_template(template).render(values), status_code)


def error_page(error: GatewayError) -> HTMLResponse:
    """What went wrong, in a sentence."""
    response = page("error.html", status_code=error.status_code, message=error.caller_detail)
    if error.retry_after_s is not None:
        response.headers["retry-after"] = str(error.retry_after_s)
    return response


class PageRoute(APIRoute):
    """A route whose errors are pages; its answers are never cached unless they say so themselves."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with the console's headers and errors."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                response = await handler(request)
            except AuthenticationFailed:
                response = RedirectResponse(LOGIN, 303)
                if "hx-request" in request.headers:
                    # A redirect would put the login form into a part of the page.
                    response = Response(status_code=401, headers={"hx-redirect": LOGIN})
            except GatewayError as error:
                _log.log(error.log_level, "%s %s: %s", request.url.path, error.code, error.operator_detail)
                response = error_page(error)
            except (SQLAlchemyError, OSError) as error:
                _log.warning("%s: the console could not read the database: %s", request.url.path, error)
                response = error_page(Overloaded(NO_DATABASE, retry_after_s=RETRY_AFTER_S))
            response.headers.setdefault("cache-control", "no-store")
            response.headers.update(HEADERS)
            return response

        return handle
