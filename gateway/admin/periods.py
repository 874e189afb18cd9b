"""Which months are closed, and are they what they were? /admin/v1/periods."""

from __future__ import annotations

from dataclasses import replace

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from gateway.admin.period_views import (
    ClosingView,
    PeriodsView,
    PeriodView,
    VerificationView,
    closed_view,
    closing_view,
    period_view,
    verification_view,
)
from gateway.beside import beside
from gateway.closing import Check, Closing, Wish, close_period, report_of, verify_period
from gateway.db import SessionFactory, database_ms
from gateway.dependencies import ActDep, ServicesDep, SessionDep
from gateway.errors import Conflict
from gateway.identity.root_key import load_root_keys
from gateway.ledger.periods import list_periods, month_named, require_closed
from gateway.ledger.spool_look import attempts_in_spools
from gateway.ledger.supply_terms import terms_of
from gateway.seals import Signer

router = APIRouter(prefix="/admin/v1/periods", tags=["periods"])


class CloseRequest(BaseModel):
    """A month to be closed."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"period": "2026-10"}]})

    period: str = Field(description="a UTC month that is over, such as 2026-10")
    now: bool = Field(default=False, description="although usage may still arrive: it becomes a correction")


@router.get("", summary="Every month and how it stands, the newest first")
async def list_all(services: ServicesDep, session: SessionDep) -> PeriodsView:
    """Open, ending, due or closed."""
    grace_ms = int(services.settings.periods.grace_s * 1000)
    now_ms = await database_ms(session, services.clock)
    states = await list_periods(session, now_ms=now_ms, grace_ms=grace_ms)
    return PeriodsView(periods=[period_view(each) for each in states])


@router.post("", summary="Close a month for ever", status_code=201)
async def close(services: ServicesDep, act: ActDep, *, body: CloseRequest, response: Response) -> ClosingView:
    """The closed month; 200 if it was closed already.

    Raises:
        InvalidRequest: no month.
        Conflict: it is not over, usage may still arrive, or another month comes first.
        BooksAreWrong: an invariant is broken.
    """
    settings, month = services.settings, month_named(body.period)
    folder = settings.state_dir / "spool"
    async with services.sessions() as session:
        now_ms = await database_ms(session, services.clock)
    wish = Wish(
        month,
        replace(act, at_ms=now_ms),
        grace_ms=int(settings.periods.grace_s * 1000),
        is_early=body.now,
        terms=terms_of(services.registry.specs),
        in_spools=frozenset(attempts_in_spools(folder, before_ms=month.end_ms)),
        slice_grace_ms=int(settings.budgets.slice_grace_s * 1000),
    )
    signer = Signer(load_root_keys(settings))

    async def work(sessions: SessionFactory) -> Closing:
        return await close_period(sessions, wish, signer=signer, clock=services.clock)

    made = await beside(settings.effective_database_url, work)
    response.status_code = 201 if made.is_new else 200
    return closing_view(made)


@router.get("/{period}", summary="A closed month, its hashes and its signature")
async def show(session: SessionDep, period: str) -> PeriodView:
    """The closed month without its report.

    Raises:
        NotFound: it is not closed.
    """
    return closed_view(await require_closed(session, month_named(period)))


@router.get(
    "/{period}/report",
    summary="The closed report, byte for byte",
    response_class=Response,
    responses={200: {"content": {"application/json": {}}}},
)
async def report(session: SessionDep, period: str) -> Response:
    """The stored bytes; their SHA-256 is in `x-tollgate-sha256`.

    Raises:
        NotFound: it is not closed.
    """
    closed = await require_closed(session, month_named(period))
    headers = {"x-tollgate-sha256": closed.report_sha256, "cache-control": "no-store"}
    return Response(report_of(closed), media_type="application/json", headers=headers)


@router.get("/{period}/verification", summary="Is a closed month what it was? Read again from the ledger")
async def verify(services: ServicesDep, period: str) -> VerificationView:
    """Hash, seal, signature, chain, and every row.

    Raises:
        NotFound: it is not closed.
    """
    month = month_named(period)
    signer = Signer(load_root_keys(services.settings))

    async def work(sessions: SessionFactory) -> list[Check]:
        async with sessions() as session:
            return await verify_period(session, month, signer)

    return verification_view(month, await beside(services.settings.effective_database_url, work))


@router.post("/{period}/reopen", summary="Refused: a closed month stays closed")
async def reopen(session: SessionDep, period: str) -> PeriodView:
    """Nothing reopens a month; corrections are made in the open one.

    Raises:
        NotFound: it is not closed.
        Conflict: it is.
    """
    closed = await require_closed(session, month_named(period))
    raise Conflict(_never(closed.id))


def _never(period: str) -> str:
    return (
        f"{period} is closed for ever. What is wrong in it is corrected in the open period:"
        " POST /admin/v1/adjustments."
    )
