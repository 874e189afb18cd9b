"""`tollgate tenants` and `tollgate projects`: who pays, and where is spend allocated?"""

from __future__ import annotations

from typing import Annotated

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.views import ProjectView, TenantView, project_view, tenant_view
from gateway.clock import Clock
from gateway.commands.terminal import (
    Json,
    NoTags,
    Tags,
    act_of_the_user,
    all_rows,
    in_session,
    out,
    print_fields,
    print_json,
    print_table,
    tags_of,
)
from gateway.identity import store

tenants = typer.Typer(help="Who pays.", no_args_is_help=True)
projects = typer.Typer(help="Where spend is allocated.", no_args_is_help=True)

_Tenant = Annotated[str, typer.Argument(help="name or id")]
_Project = Annotated[str, typer.Argument(help="id, or name together with --tenant")]
_Internal = Annotated[
    bool | None,
    typer.Option("--internal-only/--external-allowed", help="may anything of it leave the company?"),
]
_Caches = Annotated[
    bool | None, typer.Option("--cache-answers/--no-cache-answers", help="may its answers be cached?")
]


@tenants.command("create", epilog="Example: `tollgate tenants create acme`")
def tenants_create(
    name: str,
    *,
    internal_only: _Internal = True,
    cache_answers: _Caches = True,
    as_machine: Json = False,
) -> None:
    """Make a tenant."""
    act = act_of_the_user()

    async def work(session: AsyncSession) -> TenantView:
        made = await store.create_tenant(
            session,
            name,
            act=act,
            is_internal_only=internal_only is not False,
            caches_answers=cache_answers is not False,
        )
        return tenant_view(await store.describe_tenant(session, made.id, now_ms=act.at_ms))

    made = in_session(work)
    print_json(made) if as_machine else out.print(f"Tenant {made.name} ({made.id})", markup=False)


@tenants.command("list", epilog="Example: `tollgate tenants list`")
def tenants_list(*, as_machine: Json = False) -> None:
    """Show all tenants."""

    async def work(session: AsyncSession) -> list[TenantView]:
        now_ms = Clock().epoch_ms()
        rows = await all_rows(lambda page: store.page_tenants(session, page, now_ms=now_ms))
        return [tenant_view(record) for record in rows]

    found = in_session(work)
    if as_machine:
        print_json(found)
        return
    print_table(
        ("tenant", "id", "projects", "valid keys", "internal only", "cached", "retired"),
        [
            (
                one.name,
                one.id,
                one.projects,
                one.valid_keys,
                one.is_internal_only,
                one.caches_answers,
                one.retired_at,
            )
            for one in found
        ],
    )


@tenants.command("show", epilog="Example: `tollgate tenants show acme`")
def tenants_show(tenant: _Tenant, *, as_machine: Json = False) -> None:
    """Show one tenant."""

    async def work(session: AsyncSession) -> TenantView:
        return tenant_view(await store.describe_tenant(session, tenant, now_ms=Clock().epoch_ms()))

    _show_tenant(in_session(work), as_machine=as_machine)


@tenants.command("update", epilog="Example: `tollgate tenants update acme --external-allowed`")
def tenants_update(
    tenant: _Tenant,
    name: Annotated[str | None, typer.Option(help="a new name")] = None,
    internal_only: _Internal = None,
    cache_answers: _Caches = None,
    *,
    as_machine: Json = False,
) -> None:
    """Rename a tenant, or change what it allows."""
    act = act_of_the_user()

    async def work(session: AsyncSession) -> TenantView:
        changed = await store.update_tenant(
            session,
            tenant,
            act=act,
            name=name,
            is_internal_only=internal_only,
            caches_answers=cache_answers,
        )
        return tenant_view(await store.describe_tenant(session, changed.id, now_ms=act.at_ms))

    _show_tenant(in_session(work), as_machine=as_machine)


@tenants.command("retire", epilog="Example: `tollgate tenants retire acme`")
def tenants_retire(tenant: _Tenant, *, as_machine: Json = False) -> None:
    """Refuse all keys of a tenant from now on. Nothing is deleted."""
    act = act_of_the_user()

    async def work(session: AsyncSession) -> TenantView:
        retired = await store.retire_tenant(session, tenant, act=act)
        return tenant_view(await store.describe_tenant(session, retired.id, now_ms=act.at_ms))

    _show_tenant(in_session(work), as_machine=as_machine)


def _show_tenant(view: TenantView, *, as_machine: bool) -> None:
    print_json(view) if as_machine else print_fields(view)


# ---------------------------------------------------------------------------------------------- projects
_Owner = Annotated[str, typer.Option("--tenant", help="name or id of the tenant that pays")]
_OptionalOwner = Annotated[str | None, typer.Option("--tenant", help="name or id of its tenant")]


@projects.command("create", epilog="Example: `tollgate projects create search --tenant acme`")
def projects_create(name: str, tenant: _Owner, tags: Tags = None, *, as_machine: Json = False) -> None:
    """Make a project."""
    act = act_of_the_user()
    fixed = tags_of(tags)

    async def work(session: AsyncSession) -> ProjectView:
        owner = await store.get_tenant(session, tenant)
        made = await store.create_project(session, owner, name, act=act, tags=fixed)
        return project_view(await store.describe_project(session, made.id))

    made = in_session(work)
    print_json(made) if as_machine else out.print(f"Project {made.name} ({made.id})", markup=False)


@projects.command("list", epilog="Example: `tollgate projects list --tenant acme`")
def projects_list(tenant: _OptionalOwner = None, *, as_machine: Json = False) -> None:
    """Show the projects of a tenant, or all."""

    async def work(session: AsyncSession) -> list[ProjectView]:
        owner = None if tenant is None else await store.get_tenant(session, tenant)
        rows = await all_rows(lambda page: store.page_projects(session, page, tenant=owner))
        return [project_view(record) for record in rows]

    found = in_session(work)
    if as_machine:
        print_json(found)
        return
    print_table(
        ("project", "id", "tenant", "created", "retired"),
        [(one.name, one.id, one.tenant, one.created_at, one.retired_at) for one in found],
    )


@projects.command("show", epilog="Example: `tollgate projects show search --tenant acme`")
def projects_show(project: _Project, tenant: _OptionalOwner = None, *, as_machine: Json = False) -> None:
    """Show one project."""

    async def work(session: AsyncSession) -> ProjectView:
        owner = None if tenant is None else await store.get_tenant(session, tenant)
        return project_view(await store.describe_project(session, project, tenant=owner))

    _show_project(in_session(work), as_machine=as_machine)


@projects.command(
    "update", epilog="Example: `tollgate projects update search --tenant acme --name retrieval`"
)
def projects_update(
    project: _Project,
    name: Annotated[str | None, typer.Option(help="a new name")] = None,
    tenant: _OptionalOwner = None,
    tags: Tags = None,
    *,
    no_tags: NoTags = False,
    as_machine: Json = False,
) -> None:
    """Rename a project, or fix other tags on it; what was spent stays as it is."""
    act = act_of_the_user()
    fixed = {} if no_tags else tags_of(tags)

    async def work(session: AsyncSession) -> ProjectView:
        owner = None if tenant is None else await store.get_tenant(session, tenant)
        found = await store.get_project(session, project, tenant=owner, for_change=True)
        await store.update_project(session, found, act=act, name=name, tags=fixed)
        return project_view(await store.describe_project(session, found.id))

    _show_project(in_session(work), as_machine=as_machine)


@projects.command("retire", epilog="Example: `tollgate projects retire search --tenant acme`")
def projects_retire(project: _Project, tenant: _OptionalOwner = None, *, as_machine: Json = False) -> None:
    """Refuse all keys of a project from now on. Nothing is deleted."""
    act = act_of_the_user()

    async def work(session: AsyncSession) -> ProjectView:
        owner = None if tenant is None else await store.get_tenant(session, tenant)
        found = await store.get_project(session, project, tenant=owner, for_change=True)
        await store.retire_project(session, found, act=act)
        return project_view(await store.describe_project(session, found.id))

    _show_project(in_session(work), as_machine=as_machine)


def _show_project(view: ProjectView, *, as_machine: bool) -> None:
    print_json(view) if as_machine else print_fields(view)
