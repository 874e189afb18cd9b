"""What do people call the owner of a budget, which the ledger knows by an id?"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from gateway.errors import NotFound
from gateway.identity import key_store, store
from gateway.ledger.buckets import Scope
from gateway.ledger.tables import Budget


async def owner_name(session: AsyncSession, budget: Budget) -> str:
    """What people call an owner; nothing is ever deleted, so it is still there."""
    scope, scope_id = Scope(budget.scope), budget.scope_id
    try:
        if scope is Scope.TENANT:
            return (await store.get_tenant(session, scope_id)).name
        if scope is Scope.PROJECT:
            record = await store.describe_project(session, scope_id)
            return f"{record.tenant_name}/{record.project.name}"
        if scope is Scope.KEY:
            key = await key_store.get_key(session, scope_id)
            return f"{key.tenant_name}/{key.project_name}/{key.name}"
        if budget.tenant_id is not None:
            return f"{(await store.get_tenant(session, budget.tenant_id)).name}: {scope_id}"
    except NotFound:  # of a database that was put together by hand
        return scope_id
    return scope_id
