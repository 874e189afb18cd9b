"""Who changed what, and is every number right? GET /admin/v1/audit."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from gateway.admin.audit_views import AuditRunsView, AuditRunView, audit_run_view
from gateway.admin.views import AuditView, PageView, audit_filter, audit_view
from gateway.audit import page_entries
from gateway.dependencies import PageDep, SessionDep
from gateway.jobs.auditor import decoded
from gateway.jobs.leases import job_states
from gateway.jobs.scheduler import RECENT, WHOLE

router = APIRouter(prefix="/admin/v1/audit", tags=["audit"])


@router.get("", summary="Changes and who made them, the newest first")
async def list_entries(
    session: SessionDep,
    page: PageDep,
    *,
    actor: Annotated[str | None, Query(description="id or name of who did it")] = None,
    action: Annotated[str | None, Query(description="`key.rotate`, or `key` for all about keys")] = None,
    affected: Annotated[
        str | None, Query(alias="object", description="id or name of what it was done to")
    ] = None,
    since: Annotated[str | None, Query(alias="from", description="ISO 8601")] = None,
    until: Annotated[
        str | None, Query(alias="to", description="ISO 8601; first instant that does not count")
    ] = None,
) -> PageView[AuditView]:
    """A page of entries; they hold no secrets and are never changed."""
    wanted = audit_filter(actor=actor, action=action, affected=affected, since=since, until=until)
    found = await page_entries(session, wanted, page)
    return PageView(data=[audit_view(entry) for entry in found.rows], next_cursor=found.next_cursor)


@router.get("/invariants", summary="Is every number right? The last results of the continuous audit")
async def show_invariants(session: SessionDep) -> AuditRunsView:
    """What must hold of the books, how much of them was looked at, and what is broken."""
    states = await job_states(session)

    def last(job: str) -> AuditRunView | None:
        report = decoded(states[job].last_result) if job in states else None
        return None if report is None else audit_run_view(report)

    return AuditRunsView(recent=last(RECENT), whole=last(WHOLE))
