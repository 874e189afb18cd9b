"""What is credited or corrected, and who agreed? /admin/v1/adjustments."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from gateway.admin.adjustment_views import (
    AdjustmentRequest,
    AdjustmentsView,
    AdjustmentView,
    adjustment_view,
    new_adjustment,
)
from gateway.db import database_ms
from gateway.dependencies import ActDep, ServicesDep, SessionDep
from gateway.ledger.adjustments import list_proposals, propose
from gateway.two_people import decide_as

router = APIRouter(prefix="/admin/v1/adjustments", tags=["periods"])


@router.get("", summary="Credits and corrections, the newest first")
async def list_all(
    session: SessionDep,
    *,
    only_open: Annotated[bool, Query(alias="open", description="only what nobody has decided")] = False,
) -> AdjustmentsView:
    """The last thousand, with who proposed and who decided."""
    rows = await list_proposals(session, only_open=only_open)
    return AdjustmentsView(adjustments=[adjustment_view(row) for row in rows])


@router.post("", summary="Propose a credit or a correction", status_code=201)
async def create(session: SessionDep, act: ActDep, body: AdjustmentRequest) -> AdjustmentView:
    """The proposal; nothing is booked until a second person approves it.

    Raises:
        InvalidRequest: something about it makes no sense.
        NotFound: there is no such tenant.
    """
    row = await propose(session, await new_adjustment(session, body), act=act)
    await session.commit()
    return adjustment_view(row)


@router.post("/{adjustment}/approve", summary="Approve, as a second person: it is booked now")
async def approve(
    services: ServicesDep, session: SessionDep, *, act: ActDep, adjustment: str
) -> AdjustmentView:
    """The approved adjustment with its booking.

    Raises:
        NotFound: there is none.
        PermissionDenied: you proposed it, with whichever key, or yours is the bootstrap key.
        Conflict: it is decided.
    """
    now_ms = await database_ms(session, services.clock)
    row = await decide_as(session, adjustment, is_approved=True, act=act, now_ms=now_ms)
    await session.commit()
    return adjustment_view(row)


@router.post("/{adjustment}/reject", summary="Reject: nothing is booked")
async def reject(
    services: ServicesDep, session: SessionDep, *, act: ActDep, adjustment: str
) -> AdjustmentView:
    """The rejected proposal.

    Raises:
        NotFound: there is none.
        Conflict: it is decided.
    """
    now_ms = await database_ms(session, services.clock)
    row = await decide_as(session, adjustment, is_approved=False, act=act, now_ms=now_ms)
    await session.commit()
    return adjustment_view(row)
