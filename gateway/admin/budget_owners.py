"""Whose spending does a budget count, in people's words and in ours? And how is it shown with its owner?"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.budget_views import BudgetDetailView, BudgetView, budget_detail_view, budget_view
from gateway.budget_names import owner_name
from gateway.errors import ConfigurationError, Conflict, InvalidRequest, NotFound
from gateway.identity import key_store, store
from gateway.identity.tables import Tenant
from gateway.inference import TAG_NAME_CHARS, TAG_VALUE_CHARS
from gateway.ledger import budget_store
from gateway.ledger.buckets import Scope
from gateway.ledger.budget_store import BudgetState, Owner
from gateway.ledger.tables import Budget
from gateway.money import usd_nanos_from_decimal
from gateway.paging import ROWS_MAX, PageRequest


# ----------------------------------------------------------------------------------------- from what is sent
def limit_of(text: str, *, param: str = "limit_usd") -> int:
    """Nano-USD of a limit as people write it.

    Raises:
        InvalidRequest: it is no amount, or finer than a nano-dollar.
    """
    try:
        return usd_nanos_from_decimal(text.strip()[:64], what=f"`{param}`")
    except ConfigurationError as error:
        raise InvalidRequest(f"{error}.", param=param) from None


async def scope_id_of(
    session: AsyncSession, scope: Scope | None, owner: str | None, *, tenant: str | None
) -> str | None:
    """The owner that a list is asked for; None: all.

    Raises:
        InvalidRequest: an owner of what?
        NotFound: there is no such owner.
    """
    if owner is None:
        return None
    if scope is None:
        raise InvalidRequest("`owner` goes with `scope`: tenant, project, key or tag.", param="scope")
    return (await owner_of(session, scope, owner, tenant=tenant)).scope_id


async def owner_of(
    session: AsyncSession, scope: Scope, of: str, *, tenant: str | None, is_new: bool = False
) -> Owner:
    """Whose spending a budget shall count, of what people write.

    Raises:
        NotFound: there is no such owner; says which ones are called alike.
        Conflict: something new is for an owner that is retired.
        InvalidRequest: a tag that is none, or a tenant where none belongs.
    """
    within = None if tenant is None else await _tenant(session, tenant, is_new=is_new)
    if scope is Scope.PROJECT:
        return await _project_owner(session, of, within, is_new=is_new)
    if scope is Scope.TAG:
        return Owner(scope, _tag(of), None if within is None else within.id)
    if within is not None:
        raise InvalidRequest(f"A {scope} needs no `tenant` beside it.", param="tenant")
    if scope is Scope.TENANT:
        found = await _tenant(session, of, is_new=is_new)
        return Owner(scope, found.id, found.id)
    key = await key_store.get_key(session, of)
    if is_new and key.revoked_at_ms is not None:
        raise Conflict(f"Key {key.id} is revoked: nothing new can be made for it.")
    return Owner(scope, key.id, key.tenant_id)


async def _tenant(session: AsyncSession, name_or_id: str, *, is_new: bool) -> Tenant:
    tenant = await store.find_tenant(session, name_or_id)
    if tenant is None:
        names = (await store.tenant_names(session)).values()
        hint = _near(name_or_id, list(names))
        raise NotFound(f"No tenant {name_or_id[:128]!r}.{hint} `tollgate tenants list` shows all of them.")
    if is_new:
        store.require_in_use(tenant)
    return tenant


async def _project_owner(session: AsyncSession, of: str, within: Tenant | None, *, is_new: bool) -> Owner:
    try:
        project = await store.get_project(session, of, tenant=within)
    except NotFound:
        known = await store.page_projects(session, PageRequest(limit=ROWS_MAX), tenant=within)
        hint = _near(of, [record.project.name for record in known.rows])
        where = " by that id; its name needs `tenant` beside it" if within is None else f" in {within.name!r}"
        raise NotFound(
            f"No project {of[:128]!r}{where}.{hint} `tollgate projects list` shows names and ids."
        ) from None
    if is_new:
        store.require_in_use(project)
    return Owner(Scope.PROJECT, project.id, project.tenant_id)


def _tag(text: str) -> str:
    name, separator, value = text.partition("=")
    if not separator or not 0 < len(name) <= TAG_NAME_CHARS or not 0 < len(value) <= TAG_VALUE_CHARS:
        raise InvalidRequest(
            f"A tag is written name=value, such as team=search, with at most {TAG_NAME_CHARS} and"
            f" {TAG_VALUE_CHARS} characters.",
            param="of",
        )
    return text


def _near(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f" Did you mean {' or '.join(repr(each) for each in close)}?" if close else ""


# --------------------------------------------------------------------------------------- from what we keep
async def views_of(session: AsyncSession, states: Sequence[BudgetState]) -> list[BudgetView]:
    """Budgets with the names of their owners."""
    names: dict[tuple[str, str], str] = {}
    for state in states:
        place = (state.budget.scope, state.budget.scope_id)
        if place not in names:
            names[place] = await owner_name(session, state.budget)
    return [budget_view(state, names[state.budget.scope, state.budget.scope_id]) for state in states]


async def view_of(session: AsyncSession, budget: Budget, *, now_ms: int) -> BudgetView:
    """One budget, in its window of now."""
    return (await views_of(session, [await budget_store.state_of(session, budget, now_ms=now_ms)]))[0]


async def detail_of(session: AsyncSession, budget: Budget, *, now_ms: int) -> BudgetDetailView:
    """One budget with its history."""
    state = await budget_store.state_of(session, budget, now_ms=now_ms)
    return budget_detail_view(
        state,
        await owner_name(session, budget),
        alerts=await budget_store.alerts_in(session, budget, state.window_start_ms),
        windows=await budget_store.last_windows(session, budget),
    )
