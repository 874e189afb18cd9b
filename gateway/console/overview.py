"""How is everything right now: pools, this month's spend, the policy, the keys?

One page for operators and finance. Pools come from memory and are shown even while the database is away.
"""

from __future__ import annotations

import logging

from fastapi.responses import Response
from sqlalchemy.exc import SQLAlchemyError

from backends.pool import PoolSnapshot
from gateway.console.books import BookKeeper
from gateway.console.pages import page
from gateway.dependencies import ActorDep, ServicesDep

REFRESH_S = 10

_log = logging.getLogger(__name__)


class Overview:
    """The page."""

    def __init__(self) -> None:
        self._keeper = BookKeeper()

    async def show(self, services: ServicesDep, actor: ActorDep) -> Response:
        """Render it."""
        try:
            books = await self._keeper.books(services)
        except (SQLAlchemyError, OSError) as error:
            _log.warning("the console could not read the database: %s", error)
            books = None
        pools = services.registry.snapshots()
        return page(
            "overview.html",
            section="overview",
            actor=actor,
            now=services.clock.now(),
            refresh_s=REFRESH_S,
            pools=[(pool, is_speculating(pool)) for pool in pools],
            policy=services.pipeline.routing.policy,
            books=books,
        )


def is_speculating(pool: PoolSnapshot) -> bool:
    """By its file, or because a replica that someone else runs says so."""
    loads = [replica.load for replica in pool.replicas if replica.load is not None]
    return pool.spec.speculation is not None or any(load.draft_steps_total is not None for load in loads)
