"""Who pays? /admin/v1/tenants."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from gateway.admin.views import PageView, TenantView, tenant_view
from gateway.dependencies import ActDep, PageDep, ServicesDep, SessionDep
from gateway.identity import store

router = APIRouter(prefix="/admin/v1/tenants", tags=["tenants"])


class NewTenant(BaseModel):
    """A tenant to be made."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "acme"}]})

    name: str
    is_internal_only: bool = Field(default=True, description="nothing of it may leave the company")
    caches_answers: bool = Field(default=True, description="its answers may be kept in the cache")


class TenantChange(BaseModel):
    """What shall be different; what is left out stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"caches_answers": False}]})

    name: str | None = None
    is_internal_only: bool | None = None
    caches_answers: bool | None = None


@router.get("", summary="Tenants, the oldest first")
async def list_tenants(services: ServicesDep, session: SessionDep, page: PageDep) -> PageView[TenantView]:
    """A page of tenants, retired ones included."""
    found = await store.page_tenants(session, page, now_ms=services.clock.epoch_ms())
    return PageView(data=[tenant_view(record) for record in found.rows], next_cursor=found.next_cursor)


@router.post("", status_code=201, summary="Make a tenant")
async def create_tenant(session: SessionDep, act: ActDep, new: NewTenant) -> TenantView:
    """A name that is taken is a conflict (409)."""
    tenant = await store.create_tenant(
        session,
        new.name,
        act=act,
        is_internal_only=new.is_internal_only,
        caches_answers=new.caches_answers,
    )
    await session.commit()
    return tenant_view(await store.describe_tenant(session, tenant.id, now_ms=act.at_ms))


@router.get("/{tenant}", summary="One tenant, by id or name")
async def show_tenant(services: ServicesDep, session: SessionDep, tenant: str) -> TenantView:
    """The tenant, and how much belongs to it."""
    now_ms = services.clock.epoch_ms()
    return tenant_view(await store.describe_tenant(session, tenant, now_ms=now_ms))


@router.patch("/{tenant}", summary="Rename a tenant, or change what it allows")
async def update_tenant(session: SessionDep, act: ActDep, tenant: str, *, change: TenantChange) -> TenantView:
    """The same change again changes nothing."""
    changed = await store.update_tenant(
        session,
        tenant,
        act=act,
        name=change.name,
        is_internal_only=change.is_internal_only,
        caches_answers=change.caches_answers,
    )
    await session.commit()
    return tenant_view(await store.describe_tenant(session, changed.id, now_ms=act.at_ms))


@router.post("/{tenant}/retire", summary="Refuse all keys of a tenant from now on")
async def retire_tenant(session: SessionDep, act: ActDep, tenant: str) -> TenantView:
    """Nothing is deleted: what it spent stays in the reports. Retiring twice keeps the first instant."""
    retired = await store.retire_tenant(session, tenant, act=act)
    await session.commit()
    return tenant_view(await store.describe_tenant(session, retired.id, now_ms=act.at_ms))
