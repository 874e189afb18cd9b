"""Which handler answers which address below /console?

What changes something is not here: the pages call the admin API with the login, so that roles, checks and the
audit are those of the API.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter
from fastapi.responses import RedirectResponse, Response

from gateway.console import outlook
from gateway.console.aside import Aside
from gateway.console.assets import static_file
from gateway.console.navigation import HOME
from gateway.console.overview import Overview
from gateway.console.pages import STATIC, PageRoute
from gateway.console.session import Door
from gateway.console.spend import SpendPages
from gateway.console.supply import SupplyPages
from gateway.errors import NotFound


def console_router() -> APIRouter:
    """The whole console, with a memory of its own for logins and figures."""
    router = APIRouter(route_class=PageRoute, include_in_schema=False)
    router.include_router(Door().router())
    router.add_api_route(HOME, Overview().show, methods=["GET"])
    _add_spend(router, Aside())
    router.add_api_route(STATIC + "/{name}", static_file, methods=["GET"])
    # Last: whatever has no page.
    router.add_api_route(HOME + "/{path:path}", _elsewhere, methods=["GET"])
    return router


def _add_spend(router: APIRouter, aside: Aside) -> None:
    pages, supply = SpendPages(aside), SupplyPages(aside)
    handlers: dict[str, Callable[..., Awaitable[Response]]] = {
        "": pages.show,
        "/report": pages.show_report,
        "/supply": supply.show,
        "/supply/report": supply.show_report,
        "/savings": supply.show_savings,
        "/savings/report": supply.show_savings_report,
        "/forecast": outlook.show_forecast,
        "/forecast/report": outlook.show_forecast_report,
        "/anomalies": outlook.show_anomalies,
    }
    for ending, handler in handlers.items():
        router.add_api_route(f"{HOME}/spend{ending}", handler, methods=["GET"])


async def _elsewhere(path: str) -> Response:
    """Any other address below the console.

    Raises:
        NotFound: there is no such page.
    """
    if not path:
        return RedirectResponse(HOME, 303)
    raise NotFound("There is no such page in the console.")
