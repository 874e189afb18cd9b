"""How are tenants and projects kept? Their SQL; flushes, never commits.

Nothing is ever deleted: the ledger refers to it. What is not wanted any more is retired, and then its keys
are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Select, func
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from gateway import audit
from gateway.audit import Act
from gateway.errors import Conflict, NotFound
from gateway.identity.credentials import check_name
from gateway.identity.tables import ApiKey, Project, Tenant
from gateway.identity.tags import checked_tags
from gateway.inference import new_id
from gateway.paging import Page, PageRequest, page_of, seek

Statement = TypeVar("Statement", bound=Select[*tuple[Any, ...]])


@dataclass(frozen=True, slots=True)
class TenantRecord:
    """A tenant and how much belongs to it."""

    tenant: Tenant
    projects: int
    valid_keys: int


@dataclass(frozen=True, slots=True)
class ProjectRecord:
    """A project with its tenant's name."""

    project: Project
    tenant_name: str


# ----------------------------------------------------------------------------------------------- tenants
async def create_tenant(
    session: AsyncSession, name: str, *, act: Act, is_internal_only: bool = True, caches_answers: bool = True
) -> Tenant:
    """A new tenant.

    Raises:
        Conflict: the name is taken.
        InvalidRequest: the name is empty, too long, or looks like an id.
    """
    check_name(name)
    await _require_free_tenant_name(session, name)
    tenant = Tenant(
        id=new_id("ten_", act.at_ms),
        name=name,
        created_at_ms=act.at_ms,
        is_internal_only=is_internal_only,
        caches_answers=caches_answers,
    )
    await audit.write(session, act, "tenant.create", row=tenant, conflict=_tenant_taken(name))
    return tenant


async def find_tenant(session: AsyncSession, name_or_id: str, *, for_change: bool = False) -> Tenant | None:
    """The tenant of that name or id."""
    statement = select(Tenant).where((col(Tenant.name) == name_or_id) | (col(Tenant.id) == name_or_id))
    found = await session.execute(_locked(statement) if for_change else statement)
    return found.scalars().first()


async def get_tenant(session: AsyncSession, name_or_id: str, *, for_change: bool = False) -> Tenant:
    """The tenant of that name or id.

    Raises:
        NotFound: there is none.
    """
    tenant = await find_tenant(session, name_or_id, for_change=for_change)
    if tenant is None:
        raise NotFound(f"No tenant {name_or_id[:128]!r}; `tollgate tenants list` shows the known ones.")
    return tenant


async def update_tenant(
    session: AsyncSession,
    name_or_id: str,
    *,
    act: Act,
    name: str | None = None,
    is_internal_only: bool | None = None,
    caches_answers: bool | None = None,
) -> Tenant:
    """Change what is given; None leaves it. The same change again changes nothing.

    Raises:
        NotFound: no such tenant.
        Conflict: the new name is taken.
        InvalidRequest: the new name is no name.
    """
    tenant = await get_tenant(session, name_or_id, for_change=True)
    if name is not None and name != tenant.name:
        check_name(name)
        await _require_free_tenant_name(session, name)
    given = {"name": name, "is_internal_only": is_internal_only, "caches_answers": caches_answers}
    changes = {field: value for field, value in given.items() if value is not None}
    conflict = _tenant_taken(name or tenant.name)
    await audit.write(session, act, "tenant.update", row=tenant, changes=changes, conflict=conflict)
    return tenant


async def retire_tenant(session: AsyncSession, name_or_id: str, *, act: Act) -> Tenant:
    """Refuse all its keys from now on; retiring twice keeps the first instant.

    Raises:
        NotFound: no such tenant.
    """
    tenant = await get_tenant(session, name_or_id, for_change=True)
    if tenant.retired_at_ms is None:
        await audit.write(session, act, "tenant.retire", row=tenant, changes={"retired_at_ms": act.at_ms})
    return tenant


async def page_tenants(session: AsyncSession, page: PageRequest, *, now_ms: int) -> Page[TenantRecord]:
    """Tenants, the oldest first.

    Raises:
        InvalidRequest: the limit or the cursor is wrong.
    """
    statement = seek(_tenants(now_ms), page, at=col(Tenant.created_at_ms), row_id=col(Tenant.id))
    records = [TenantRecord(*row) for row in await session.execute(statement)]
    return page_of(records, page, lambda record: (record.tenant.created_at_ms, record.tenant.id))


async def describe_tenant(session: AsyncSession, name_or_id: str, *, now_ms: int) -> TenantRecord:
    """One tenant and how much belongs to it.

    Raises:
        NotFound: there is none.
    """
    tenant = await get_tenant(session, name_or_id)
    rows = await session.execute(_tenants(now_ms).where(col(Tenant.id) == tenant.id))
    return TenantRecord(*rows.one())


async def tenant_names(session: AsyncSession) -> dict[str, str]:
    """What people call every tenant, by id."""
    rows = await session.execute(select(Tenant.id, Tenant.name))
    return {tenant_id: name for tenant_id, name in rows}  # noqa: C416 - dict() cannot be typed from rows


def _tenants(now_ms: int) -> Select[Tenant, int, int]:
    projects = (
        select(func.count())
        .where(col(Project.tenant_id) == col(Tenant.id), col(Project.retired_at_ms).is_(None))
        .correlate(Tenant)
        .scalar_subquery()
    )
    keys = (
        select(func.count())
        .select_from(ApiKey)
        .join(Project, col(Project.id) == col(ApiKey.project_id))
        .where(
            col(ApiKey.tenant_id) == col(Tenant.id),
            col(ApiKey.revoked_at_ms).is_(None),
            col(ApiKey.expires_at_ms).is_(None) | (col(ApiKey.expires_at_ms) > now_ms),
            col(Project.retired_at_ms).is_(None),
            col(Tenant.retired_at_ms).is_(None),
        )
        .correlate(Tenant)
        .scalar_subquery()
    )
    return select(Tenant, projects, keys)


async def _require_free_tenant_name(session: AsyncSession, name: str) -> None:
    if await find_tenant(session, name) is not None:
        raise Conflict(_tenant_taken(name), param="name")


def _tenant_taken(name: str) -> str:
    return f"There is a tenant called {name!r} already; `tollgate tenants list` shows it."


# ---------------------------------------------------------------------------------------------- projects
async def create_project(
    session: AsyncSession, tenant: Tenant, name: str, *, act: Act, tags: Mapping[str, str] | None = None
) -> Project:
    """A new project of the tenant.

    Raises:
        Conflict: the name is taken within the tenant, or the tenant is retired.
        InvalidRequest: the name is empty, too long, or looks like an id, or a tag is none.
    """
    check_name(name)
    require_in_use(tenant)
    if await _named(session, tenant, name) is not None:
        raise Conflict(_project_taken(tenant, name), param="name")
    project = Project(
        id=new_id("prj_", act.at_ms),
        tenant_id=tenant.id,
        name=name,
        created_at_ms=act.at_ms,
        tags=checked_tags(tags or {}),
    )
    await audit.write(session, act, "project.create", row=project, conflict=_project_taken(tenant, name))
    return project


async def ensure_project(session: AsyncSession, tenant: Tenant, name: str, *, act: Act) -> Project:
    """The tenant's project of that name, made if it is new.

    Raises:
        Conflict: the tenant is retired.
        InvalidRequest: the name is empty, too long, or looks like an id.
    """
    project = await _named(session, tenant, name)
    return project or await create_project(session, tenant, name, act=act)


async def get_project(
    session: AsyncSession, name_or_id: str, *, tenant: Tenant | None = None, for_change: bool = False
) -> Project:
    """The project of that id; of that name too, where the tenant is known.

    Raises:
        NotFound: there is none.
    """
    matches = col(Project.id) == name_or_id
    if tenant is not None:
        matches = (matches | (col(Project.name) == name_or_id)) & (col(Project.tenant_id) == tenant.id)
    statement = select(Project).where(matches)
    found = await session.execute(_locked(statement) if for_change else statement)
    project = found.scalars().first()
    if project is None:
        where = "" if tenant is None else f" in tenant {tenant.name!r}"
        raise NotFound(
            f"No project {name_or_id[:128]!r}{where}; `tollgate projects list` shows names and ids."
        )
    return project


async def describe_project(
    session: AsyncSession, name_or_id: str, *, tenant: Tenant | None = None
) -> ProjectRecord:
    """One project with its tenant's name.

    Raises:
        NotFound: there is none.
    """
    project = await get_project(session, name_or_id, tenant=tenant)
    owner = tenant or await get_tenant(session, project.tenant_id)
    return ProjectRecord(project, owner.name)


async def update_project(
    session: AsyncSession,
    project: Project,
    *,
    act: Act,
    name: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Project:
    """Change what is given; None leaves it. Spend stays where it is; tags stand on what is spent from now on.

    Tags that are given take the place of all that there were.

    Raises:
        Conflict: the name is taken within the tenant.
        InvalidRequest: it is no name, or a tag is none.
    """
    tenant = await get_tenant(session, project.tenant_id)
    changes: dict[str, Any] = {}
    if name is not None and name != project.name:
        check_name(name)
        if await _named(session, tenant, name) is not None:
            raise Conflict(_project_taken(tenant, name), param="name")
        changes["name"] = name
    if tags is not None:
        changes["tags"] = checked_tags(tags)
    conflict = _project_taken(tenant, name or project.name)
    await audit.write(session, act, "project.update", row=project, changes=changes, conflict=conflict)
    return project


async def retire_project(session: AsyncSession, project: Project, *, act: Act) -> Project:
    """Refuse all its keys from now on; retiring twice keeps the first instant."""
    if project.retired_at_ms is None:
        await audit.write(session, act, "project.retire", row=project, changes={"retired_at_ms": act.at_ms})
    return project


async def page_projects(
    session: AsyncSession, page: PageRequest, *, tenant: Tenant | None = None
) -> Page[ProjectRecord]:
    """Projects of one tenant or of all, the oldest first.

    Raises:
        InvalidRequest: the limit or the cursor is wrong.
    """
    statement = select(Project, Tenant.name).join(Tenant, col(Tenant.id) == col(Project.tenant_id))
    if tenant is not None:
        statement = statement.where(col(Project.tenant_id) == tenant.id)
    statement = seek(statement, page, at=col(Project.created_at_ms), row_id=col(Project.id))
    records = [ProjectRecord(*row) for row in await session.execute(statement)]
    return page_of(records, page, lambda record: (record.project.created_at_ms, record.project.id))


def require_in_use(owner: Tenant | Project) -> None:
    """Let what is not retired through.

    Raises:
        Conflict: it is retired.
    """
    if owner.retired_at_ms is not None:
        raise Conflict(f"The {owner.audit_kind} {owner.name!r} is retired: nothing new can be made for it.")


async def _named(session: AsyncSession, tenant: Tenant, name: str) -> Project | None:
    found = await session.execute(
        select(Project).where(col(Project.tenant_id) == tenant.id, col(Project.name) == name)
    )
    return found.scalars().first()


def _project_taken(tenant: Tenant, name: str) -> str:
    return f"Tenant {tenant.name!r} has a project called {name!r} already; `tollgate projects list` shows it."


def _locked(statement: Statement) -> Statement:
    # Until the transaction ends nobody else changes the row; SQLite has one writer at a time anyway.
    return statement.with_for_update().execution_options(populate_existing=True)
