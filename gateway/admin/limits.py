"""How fast may a tenant, a project or a key call? /admin/v1/limits."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from gateway.admin.views import LimitView, PageView, limit_view
from gateway.dependencies import ActDep, PageDep, SessionDep
from gateway.identity import limit_store
from gateway.identity.limit_store import Bounds
from gateway.identity.limits import Scope

router = APIRouter(prefix="/admin/v1/limits", tags=["limits"])

_ScopePath = Annotated[Scope, Path(description="tenant, project or key")]
_OwnerPath = Annotated[
    str,
    Path(
        description="of a tenant id or name; of a project its id, or its name together with `tenant`; of a"
        " key its public id (all keys of one line of rotations have one limit)",
    ),
]
_Tenant = Annotated[str | None, Query(description="the project's tenant, by id or name")]


class NewLimit(BaseModel):
    """A limit; what is left out or null is any number."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"requests_per_minute": 600, "tokens_per_minute": 200_000}]},
    )

    requests_per_minute: int | None = Field(default=None, description="answers from the cache count too")
    tokens_per_minute: int | None = Field(
        default=None, description="input and output; until a request ends, what it can come to"
    )
    concurrent_requests: int | None = Field(default=None, description="requests under way at once")


@router.get("", summary="Limits that hold, the oldest first")
async def list_limits(
    session: SessionDep,
    page: PageDep,
    scope: Annotated[Scope | None, Query(description="only on tenants, projects or keys")] = None,
) -> PageView[LimitView]:
    """A page of limits."""
    found = await limit_store.page_limits(session, page, scope=scope)
    return PageView(data=[limit_view(record) for record in found.rows], next_cursor=found.next_cursor)


@router.get("/{scope}/{owner}", summary="The limit of a tenant, a project or a key")
async def show_limit(
    session: SessionDep, scope: _ScopePath, owner: _OwnerPath, *, tenant: _Tenant = None
) -> LimitView:
    """Not found (404) where there is none. Limits of a project and a tenant hold as well."""
    found = await limit_store.find_owner(session, scope, owner, tenant=tenant)
    return limit_view(await limit_store.get_limit(session, found))


@router.put("/{scope}/{owner}", summary="Set the limit of a tenant, a project or a key")
async def set_limit(
    session: SessionDep,
    act: ActDep,
    scope: _ScopePath,
    *,
    owner: _OwnerPath,
    limit: NewLimit,
    tenant: _Tenant = None,
) -> LimitView:
    """It holds these bounds and no others. Running gateways obey within two seconds."""
    found = await limit_store.find_owner(session, scope, owner, tenant=tenant)
    record = await limit_store.set_limit(session, found, Bounds(**limit.model_dump()), act=act)
    await session.commit()
    return limit_view(record)


@router.delete("/{scope}/{owner}", summary="Take the limit of a tenant, a project or a key away")
async def end_limit(
    session: SessionDep, act: ActDep, scope: _ScopePath, *, owner: _OwnerPath, tenant: _Tenant = None
) -> LimitView:
    """Its history stays. Twice keeps the first instant."""
    found = await limit_store.find_owner(session, scope, owner, tenant=tenant)
    record = await limit_store.end_limit(session, found, act=act)
    await session.commit()
    return limit_view(record)
