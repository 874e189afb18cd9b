"""How is everything right now: pools, this month's spend, the policy, the keys?

One page for operators and finance. Pools come from memory and are shown even while the database is away.
"""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.exc import SQLAlchemyError

from backends.pool import PoolSnapshot
from gateway.console.books import BookKeeper
from gateway.console.pages import HOME, STATIC, PageRoute, page, static_file
from gateway.console.session import Door
from gateway.dependencies import ActorDep, ServicesDep
from gateway.errors import NotFound

REFRESH_S = 10

_log = logging.getLogger(__name__)


def console_router() -> APIRouter:
    """The whole console, with a memory of its own for logins and figures."""
    door = Door()
    overview = Overview()
    router = APIRouter(route_class=PageRoute, include_in_schema=False)
    router.include_router(door.router())
    router.add_api_route(HOME, overview.show, methods=["GET"])
    router.add_api_route(STATIC + "/{name}", static_file, methods=["GET"])
    router.add_api_route(HOME + "/{path:path}", _elsewhere, methods=["GET", "POST"])
    return router


class Overview:
    """The page."""

    def __init__(self) -> None:
        self._keeper = BookKeeper()

    async def show(
        self,
        services: ServicesDep,
        actor: ActorDep,
        refresh: Annotated[str, Query(description="`off` stops the page from loading itself again")] = "",
    ) -> Response:
        """Render it."""
        try:
            books = await self._keeper.books(services)
        except (SQLAlchemyError, OSError) as error:
            _log.warning("the console could not read the database: %s", error)
            books = None
        pools = services.registry.snapshots()
        return page(
            "overview.html",
            now=services.clock.now(),
            actor=actor,
            refresh_s=0 if refresh == "off" else REFRESH_S,
            pools=[(pool, is_speculating(pool)) for pool in pools],
            policy=services.pipeline.routing.policy,
            books=books,
        )


def is_speculating(pool: PoolSnapshot) -> bool:
    """By its file, or because a replica that someone else runs says so."""
    loads = [replica.load for replica in pool.replicas if replica.load is not None]
    return pool.spec.speculation is not None or any(load.draft_steps_total is not None for load in loads)


async def _elsewhere(path: str) -> Response:
    """Any other address below the console.

    Raises:
        NotFound: there is no such page.
    """
    if not path:
        return RedirectResponse(HOME, 303)
    raise NotFound("There is no such page in the console.")
