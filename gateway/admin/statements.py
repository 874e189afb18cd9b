"""A tenant's month as a PDF: GET /admin/v1/periods/{period}/statements/{tenant}.

The statement is read here and printed by a process of its own: what prints takes 30 MB and does not belong
into what serves.
"""

from __future__ import annotations

import asyncio

import msgspec
from fastapi import APIRouter, Request, Response

from gateway.dependencies import ServicesDep
from gateway.forecasts.processes import ask_process
from gateway.identity.store import get_tenant
from gateway.ledger.cuts import moment_of
from gateway.ledger.invariants import take_snapshot
from gateway.ledger.periods import month_named
from gateway.ledger.statement import Subject, statement_of
from gateway.ledger.statement_reading import read_month
from gateway.spend_names import read_names

router = APIRouter(prefix="/admin/v1/periods", tags=["periods"])

PRINTER = "gateway.ledger.statement_child"
PDF = "application/pdf"
AT_ONCE = 2
"""Processes that print; each takes 30 MB."""


@router.get(
    "/{period}/statements/{tenant}",
    summary="What a tenant is charged for a month, as a PDF",
    response_class=Response,
    responses={200: {"content": {PDF: {}}}},
)
async def statement(request: Request, services: ServicesDep, *, period: str, tenant: str) -> Response:
    """The document; of a month that is not closed it says that it is provisional.

    Raises:
        InvalidRequest: no month.
        NotFound: there is no such tenant.
        DoesNotAddUp: a table does not come to what the ledger has.
    """
    month = month_named(period)
    async with services.sessions() as session:
        await take_snapshot(session)
        of = await get_tenant(session, tenant)
        start, end = moment_of(month.start_ms), moment_of(month.end_ms)
        subject = Subject(of.id, of.name, start, end, services.clock.epoch_ms())
        made = statement_of(subject, await read_month(session, subject, await read_names(session)))
    # Whoever waits for the printer holds no connection.
    async with _printers(request):
        document = await ask_process(PRINTER, msgspec.json.encode(made))
    headers = {
        "content-disposition": f'attachment; filename="statement-{of.id}-{month.id}.pdf"',
        "cache-control": "no-store",
    }
    return Response(document, media_type=PDF, headers=headers)


def _printers(request: Request) -> asyncio.Semaphore:
    """The application's, made when it is first asked."""
    state = request.app.state
    if not hasattr(state, "statement_printers"):
        state.statement_printers = asyncio.Semaphore(AT_ONCE)
    printers: asyncio.Semaphore = state.statement_printers
    return printers
