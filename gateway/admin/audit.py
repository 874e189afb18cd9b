"""Who changed what? GET /admin/v1/audit."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from gateway.admin.views import AuditView, PageView, audit_filter, audit_view
from gateway.audit import page_entries
from gateway.dependencies import PageDep, SessionDep

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
