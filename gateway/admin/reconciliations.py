"""Does a bill say what the ledger says? /admin/v1/reconciliations.

Proposals are approved where all adjustments are, by a second person: /admin/v1/adjustments.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from gateway.admin.reconciliation_views import (
    ReconcileRequest,
    ReconciliationMadeView,
    ReconciliationsView,
    ReconciliationView,
    bill_of,
    made_view,
    reconciliation_view,
    summary_view,
)
from gateway.db import begin_writing
from gateway.dependencies import ActDep, ServicesDep, SessionDep
from gateway.ledger.reconcile_store import Bill, get_reconciliation, list_reconciliations, reconcile

BODY_BYTES_MAX = 64_000_000
"""A bill of a month by the hour and the token class has hundreds of thousands of lines."""

router = APIRouter(prefix="/admin/v1/reconciliations", tags=["periods"])


@router.get("", summary="Bills that were compared with the ledger, the newest first")
async def list_all(session: SessionDep) -> ReconciliationsView:
    """Without their lines."""
    rows = await list_reconciliations(session)
    return ReconciliationsView(reconciliations=[summary_view(row) for row in rows])


@router.post(
    "",
    summary="Compare a bill with the ledger and propose adjustments",
    status_code=201,
    max_body_size=BODY_BYTES_MAX,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": ReconcileRequest.model_json_schema()}},
        }
    },
)
async def create(request: Request, services: ServicesDep, act: ActDep) -> ReconciliationMadeView:
    """Every line with its gaps by class, each month apart; nothing is booked, and nothing is proposed twice.

    A body of up to 64 MB is read beside the loop that serves, and no session is held meanwhile.

    Raises:
        InvalidRequest: the file cannot be read; names line and column.
    """
    body = await request.body()
    bill = await asyncio.to_thread(_read, body)
    async with services.sessions() as session:
        await begin_writing(session)
        made = await reconcile(session, bill, act=act)
        view = await made_view(session, bill, made)
        await session.commit()
    return view


def _read(body: bytes) -> Bill:
    try:
        asked = ReconcileRequest.model_validate_json(body)
    except ValidationError as error:
        found = [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_url=False)]
        raise RequestValidationError(found) from None
    return bill_of(asked)


@router.get("/{reconciliation}", summary="One comparison, with its lines and proposals")
async def show(session: SessionDep, reconciliation: str) -> ReconciliationView:
    """As it was made; the proposals as they stand.

    Raises:
        NotFound: there is none.
    """
    return await reconciliation_view(session, await get_reconciliation(session, reconciliation))
