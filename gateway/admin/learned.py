"""What has been learned of each pool and task, and what follows from it? GET /admin/v1/pools/learned.

As this process routes by it: at most a second behind what any process has booked.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from gateway.admin.learned_views import LearnedListView, learned_view
from gateway.dependencies import ServicesDep

router = APIRouter(prefix="/admin/v1", tags=["pools"])


@router.get("/pools/learned", summary="What was learned of each pool and task")
async def list_learned(
    services: ServicesDep,
    pool: Annotated[str | None, Query(description="only of this pool")] = None,
    *,
    tenants: Annotated[bool, Query(description="what is known of single tenants too")] = False,
) -> LearnedListView:
    """Acceptance, speed, times and lengths by pool and task, and up to which load speculation pays."""
    economist = services.pipeline.routing.economist
    rows = [
        row
        for key, row in sorted(economist.rows().items())
        if pool in {None, key.pool} and (tenants or not key.tenant_id)
    ]
    return LearnedListView(data=[learned_view(economist, row) for row in rows])
