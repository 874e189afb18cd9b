"""Which handler answers which address below /console?

What changes something is not here: the pages call the admin API with the login, so that roles, checks and the
audit are those of the API.
"""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import RedirectResponse, Response

from gateway.console.assets import static_file
from gateway.console.navigation import HOME
from gateway.console.overview import Overview
from gateway.console.pages import STATIC, PageRoute
from gateway.console.session import Door
from gateway.console.sign_on import CompanyDoor
from gateway.errors import NotFound


def console_router() -> APIRouter:
    """The whole console, with a memory of its own for logins and figures."""
    router = APIRouter(route_class=PageRoute, include_in_schema=False)
    router.include_router(Door().router())
    router.include_router(CompanyDoor().router())
    Overview().routes(router)
    router.add_api_route(STATIC + "/{name}", static_file, methods=["GET"])
    # Last: whatever has no page.
    router.add_api_route(HOME + "/{path:path}", _elsewhere, methods=["GET"])
    return router


async def _elsewhere(path: str) -> Response:
    """Any other address below the console.

    Raises:
        NotFound: there is no such page.
    """
    if not path:
        return RedirectResponse(HOME, 303)
    raise NotFound("There is no such page in the console.")
