"""Who may call, for whom, and how fast: keys, tenants, projects, limits? `/console/keys`.

A secret is in the admin API's answer alone and shown by the browser once; it is never rendered here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from fastapi.responses import Response
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.console.navigation import HOME, SECTIONS
from gateway.console.pages import page
from gateway.dependencies import ActorDep, Services, ServicesDep, SessionDep
from gateway.errors import InvalidRequest, NotFound
from gateway.identity.credentials import OVERLAP_S_DEFAULT
from gateway.identity.key_store import KeyRecord, KeyState, get_key, page_keys
from gateway.identity.limit_store import LimitOwner, LimitRecord, find_owner, get_limit
from gateway.identity.limits import Scope
from gateway.identity.store import describe_tenant, page_projects, page_tenants, tenant_names
from gateway.identity.tables import CLASSES
from gateway.ledger.cuts import Filter
from gateway.ledger.reports import NOTHING, Shape, SpendFigures, spend_report
from gateway.paging import PageRequest

PATH = f"{HOME}/keys"
ROWS = 50
PROJECTS_MAX = 100
SEEN_DAYS = 30
NEW_REFRESH_S = 3
REFRESH_S = 15
SEARCH_CHARS = 128
TABS = (("keys", "Keys", ""), ("tenants", "Tenants and projects", "/tenants"))
"""Name, title, what their address has more."""


@dataclass(frozen=True, slots=True)
class Limited:
    """Something that a limit may be set on."""

    scope: Scope
    id: str
    name: str
    limit: LimitRecord | None


async def show_keys(
    request: Request, services: ServicesDep, session: SessionDep, *, actor: ActorDep
) -> Response:
    """A piece of the list, with a search; and a form for a new one.

    Raises:
        InvalidRequest: an unknown state, or a cursor that is none.
    """
    asked = request.query_params
    search, cursor = asked.get("q", "").strip()[:SEARCH_CHARS], asked.get("cursor", "") or None
    state = _state(asked.get("state", ""))
    now_ms = services.clock.epoch_ms()
    found = await page_keys(
        session,
        PageRequest(limit=ROWS, cursor=cursor),
        now_ms=now_ms,
        state=state,
        search=search or None,
    )
    pairs = {"q": search, "state": state or "", "cursor": found.next_cursor or ""}
    return page(
        "keys.html",
        section="keys",
        actor=actor,
        tabs=TABS,
        tab="keys",
        path=PATH,
        rows=[(key, key.state(now_ms)) for key in found.rows],
        search=search,
        state=state,
        states=tuple(KeyState),
        is_first=cursor is None,
        next=f"{PATH}?{urlencode(pairs)}" if found.next_cursor else None,
        tenants=sorted((await tenant_names(session)).values()),
        tenant=asked.get("tenant", ""),
        project=asked.get("project", "") or "default",
        **_choices(services),
    )


async def show_key(services: ServicesDep, session: SessionDep, *, actor: ActorDep, key: str) -> Response:
    """One of them: what it may do, what it did, and its changes.

    Raises:
        NotFound: there is none.
    """
    record = await get_key(session, key)
    now_ms = services.clock.epoch_ms()
    used = await _used(session, record, services.clock.now())
    is_new = not used.requests and record.state(now_ms) is KeyState.ACTIVE
    return page(
        "key.html",
        section="keys",
        actor=actor,
        tabs=TABS,
        tab="keys",
        path=PATH,
        one=record,
        state_of=record.state(now_ms),
        limited=await _limited(session, Scope.KEY, record.id, name=record.name),
        used=used,
        seen_days=SEEN_DAYS,
        is_new=is_new,
        refresh_s=NEW_REFRESH_S if is_new else REFRESH_S,
        spend=f"{HOME}/spend?{urlencode({'period': 'last-30', 'by': 'day', 'filter': f'key={record.id}'})}",
        traffic=_traffic(record),
        overlap_h=OVERLAP_S_DEFAULT // 3600,
        **_choices(services),
    )


async def show_tenants(
    request: Request, services: ServicesDep, session: SessionDep, *, actor: ActorDep
) -> Response:
    """A piece of the list, and a form for a new one.

    Raises:
        InvalidRequest: a cursor that is none.
    """
    cursor = request.query_params.get("cursor", "") or None
    now_ms = services.clock.epoch_ms()
    found = await page_tenants(session, PageRequest(limit=ROWS, cursor=cursor), now_ms=now_ms)
    return page(
        "tenants.html",
        section="keys",
        actor=actor,
        tabs=TABS,
        tab="tenants",
        path=PATH,
        rows=found.rows,
        is_first=cursor is None,
        next=f"{PATH}/tenants?{urlencode({'cursor': found.next_cursor})}" if found.next_cursor else None,
    )


async def show_tenant(
    request: Request, services: ServicesDep, session: SessionDep, *, actor: ActorDep, tenant: str
) -> Response:
    """One of them: its projects, keys and limits.

    Raises:
        NotFound: there is none.
        InvalidRequest: a cursor that is none.
    """
    now_ms = services.clock.epoch_ms()
    record = await describe_tenant(session, tenant, now_ms=now_ms)
    cursor = request.query_params.get("cursor", "") or None
    projects = await page_projects(
        session, PageRequest(limit=PROJECTS_MAX, cursor=cursor), tenant=record.tenant
    )
    keys = await page_keys(session, PageRequest(limit=ROWS), now_ms=now_ms, tenant=record.tenant)
    next_projects = urlencode({"cursor": projects.next_cursor}) if projects.next_cursor else ""
    return page(
        "tenant.html",
        section="keys",
        actor=actor,
        tabs=TABS,
        tab="tenants",
        path=PATH,
        one=record,
        limited=await _limited(session, Scope.TENANT, record.tenant.id, name=record.tenant.name),
        projects=[
            (each.project, await _limited(session, Scope.PROJECT, each.project.id, name=each.project.name))
            for each in projects.rows
        ],
        next=f"{PATH}/tenants/{record.tenant.id}?{next_projects}" if next_projects else None,
        keys=[(key, key.state(now_ms)) for key in keys.rows],
        more_keys=keys.next_cursor is not None,
    )


def _choices(services: Services) -> dict[str, Any]:
    models = list(services.pipeline.routing.policy.models)
    return {"models": models, "classes": CLASSES, "model": "auto" if "auto" in models else models[0]}


def _state(text: str) -> KeyState | None:
    if not text:
        return None
    try:
        return KeyState(text)
    except ValueError:
        known = ", ".join(KeyState)
        raise InvalidRequest(f"A key's state is one of {known}, not {text[:40]!r}.", param="state") from None


async def _limited(session: AsyncSession, scope: Scope, owner_id: str, *, name: str) -> Limited:
    owner = await find_owner(session, scope, owner_id)
    return Limited(scope, owner_id, name, await _limit(session, owner))


async def _limit(session: AsyncSession, owner: LimitOwner) -> LimitRecord | None:
    try:
        return await get_limit(session, owner)
    except NotFound:
        return None


async def _used(session: AsyncSession, record: KeyRecord, now: datetime) -> SpendFigures:
    """What the key did lately."""
    end = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    report = await spend_report(
        session,
        group_by=[],
        start=end - timedelta(days=SEEN_DAYS),
        end=end,
        shape=Shape(filters=(Filter("key", (record.id,)),)),
    )
    return sum((figures for _, figures in report.rows), start=NOTHING)


def _traffic(record: KeyRecord) -> str | None:
    """Where the requests of its tenant are; None: there is no such page."""
    if not any(one.name == "traffic" for one in SECTIONS):
        return None
    return f"{HOME}/traffic?{urlencode({'tenant': record.tenant_name})}"
