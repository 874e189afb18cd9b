"""Where is spend allocated? /admin/v1/projects."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from gateway.admin.views import PageView, ProjectView, project_view
from gateway.dependencies import ActDep, PageDep, SessionDep
from gateway.identity import store

router = APIRouter(prefix="/admin/v1/projects", tags=["projects"])

_TAGS = "cost tags that stand on all its calls, whatever a caller sends; empty or null: none"


class NewProject(BaseModel):
    """A project to be made."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"tenant": "acme", "name": "search", "tags": {"cost_center": "4711"}}]
        },
    )

    tenant: str = Field(description="id or name")
    name: str = Field(description="unique within the tenant")
    tags: dict[str, str] | None = Field(default=None, description=_TAGS)


class ProjectChange(BaseModel):
    """What shall be different; what is left out stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "retrieval"}]})

    name: str | None = None
    tags: dict[str, str] | None = Field(default=None, description=_TAGS)


@router.get("", summary="Projects, the oldest first")
async def list_projects(
    session: SessionDep,
    page: PageDep,
    tenant: Annotated[str | None, Query(description="only of this tenant, by id or name")] = None,
) -> PageView[ProjectView]:
    """A page of projects, retired ones included."""
    owner = None if tenant is None else await store.get_tenant(session, tenant)
    found = await store.page_projects(session, page, tenant=owner)
    return PageView(data=[project_view(record) for record in found.rows], next_cursor=found.next_cursor)


@router.post("", status_code=201, summary="Make a project")
async def create_project(session: SessionDep, act: ActDep, new: NewProject) -> ProjectView:
    """A name that is taken within the tenant is a conflict (409)."""
    tenant = await store.get_tenant(session, new.tenant)
    project = await store.create_project(session, tenant, new.name, act=act, tags=new.tags)
    await session.commit()
    return project_view(await store.describe_project(session, project.id))


@router.get("/{project}", summary="One project, by id")
async def show_project(session: SessionDep, project: str) -> ProjectView:
    """The project."""
    return project_view(await store.describe_project(session, project))


@router.patch("/{project}", summary="Rename a project, or fix other tags on it")
async def update_project(
    session: SessionDep, act: ActDep, project: str, *, change: ProjectChange
) -> ProjectView:
    """What was spent stays with it, under its new name; tags stand on what is spent from now on."""
    found = await store.get_project(session, project, for_change=True)
    tags = (change.tags or {}) if "tags" in change.model_fields_set else None
    await store.update_project(session, found, act=act, name=change.name, tags=tags)
    await session.commit()
    return project_view(await store.describe_project(session, found.id))


@router.post("/{project}/retire", summary="Refuse all keys of a project from now on")
async def retire_project(session: SessionDep, act: ActDep, project: str) -> ProjectView:
    """Nothing is deleted. Retiring twice keeps the first instant."""
    found = await store.get_project(session, project, for_change=True)
    await store.retire_project(session, found, act=act)
    await session.commit()
    return project_view(await store.describe_project(session, found.id))
