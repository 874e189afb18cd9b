"""Does a bill say what the ledger says? /admin/v1/reconciliations.

Proposals are approved where all adjustments are, by a second person: /admin/v1/adjustments.
"""

from __future__ import annotations

from fastapi import APIRouter

from gateway.admin.reconciliation_views import (
    ReconcileRequest,
    ReconciliationsView,
    ReconciliationView,
    bill_of,
    reconciliation_view,
    summary_view,
)
from gateway.dependencies import ActDep, SessionDep
from gateway.ledger.reconcile_store import get_reconciliation, list_reconciliations, reconcile

router = APIRouter(prefix="/admin/v1/reconciliations", tags=["periods"])


@router.get("", summary="Bills that were compared with the ledger, the newest first")
async def list_all(session: SessionDep) -> ReconciliationsView:
    """Without their lines."""
    rows = await list_reconciliations(session)
    return ReconciliationsView(reconciliations=[summary_view(row) for row in rows])


@router.post("", summary="Compare a bill with the ledger and propose adjustments", status_code=201)
async def create(session: SessionDep, act: ActDep, body: ReconcileRequest) -> ReconciliationView:
    """Every line with its gaps by class; nothing is booked.

    Raises:
        InvalidRequest: the file cannot be read; names line and column.
    """
    made = await reconcile(session, bill_of(body), act=act)
    view = await reconciliation_view(session, made.row)
    await session.commit()
    return view


@router.get("/{reconciliation}", summary="One comparison, with its lines and proposals")
async def show(session: SessionDep, reconciliation: str) -> ReconciliationView:
    """As it was made; the proposals as they stand.

    Raises:
        NotFound: there is none.
    """
    return await reconciliation_view(session, await get_reconciliation(session, reconciliation))
