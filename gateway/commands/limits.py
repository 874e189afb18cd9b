"""`tollgate limits`: how fast may a tenant, a project or a key call?"""

from __future__ import annotations

from typing import Annotated

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.views import LimitView, limit_view
from gateway.commands.terminal import (
    Json,
    act_of_the_user,
    all_rows,
    in_session,
    out,
    print_fields,
    print_json,
    print_table,
)
from gateway.identity import limit_store
from gateway.identity.limit_store import Bounds
from gateway.identity.limits import Scope

limits = typer.Typer(help="How fast tenants, projects and keys may call.", no_args_is_help=True)

_Scope = Annotated[Scope, typer.Argument(help="what the limit is on")]
_Owner = Annotated[
    str,
    typer.Argument(
        metavar="NAME|ID",
        help="name or id of a tenant; id of a project, or its name with --tenant; public id of a key",
    ),
]
_Tenant = Annotated[str | None, typer.Option("--tenant", help="name or id of the project's tenant")]


@limits.command("set", epilog="Example: `tollgate limits set project search --tenant acme --concurrent 20`")
def limits_set(
    scope: _Scope,
    owner: _Owner,
    requests_per_minute: Annotated[
        int | None, typer.Option("--requests-per-minute", help="default: any number")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option("--tokens-per-minute", help="input and output; default: any number")
    ] = None,
    concurrent: Annotated[
        int | None, typer.Option("--concurrent", help="requests under way at once; default: any number")
    ] = None,
    *,
    tenant: _Tenant = None,
    as_machine: Json = False,
) -> None:
    """Set a limit to these bounds and no others; a running gateway obeys within two seconds."""
    act = act_of_the_user()
    bounds = Bounds(requests_per_minute, tokens_per_minute, concurrent)

    async def work(session: AsyncSession) -> LimitView:
        found = await limit_store.find_owner(session, scope, owner, tenant=tenant)
        return limit_view(await limit_store.set_limit(session, found, bounds, act=act))

    _show(in_session(work), as_machine=as_machine)


@limits.command("list", epilog="Example: `tollgate limits list --scope key`")
def limits_list(
    scope: Annotated[Scope | None, typer.Option(help="only on tenants, projects or keys")] = None,
    *,
    as_machine: Json = False,
) -> None:
    """Show the limits that hold."""

    async def work(session: AsyncSession) -> list[LimitView]:
        rows = await all_rows(lambda page: limit_store.page_limits(session, page, scope=scope))
        return [limit_view(record) for record in rows]

    found = in_session(work)
    if as_machine:
        print_json(found)
        return
    print_table(
        ("on", "name", "tenant", "id", "requests/min", "tokens/min", "concurrent"),
        [
            (
                one.scope,
                one.name,
                one.tenant,
                one.scope_id,
                one.requests_per_minute,
                one.tokens_per_minute,
                one.concurrent_requests,
            )
            for one in found
        ],
    )


@limits.command("show", epilog="Example: `tollgate limits show key 4f7k2m9q1x`")
def limits_show(scope: _Scope, owner: _Owner, *, tenant: _Tenant = None, as_machine: Json = False) -> None:
    """Show the limit of a tenant, a project or a key."""

    async def work(session: AsyncSession) -> LimitView:
        found = await limit_store.find_owner(session, scope, owner, tenant=tenant)
        return limit_view(await limit_store.get_limit(session, found))

    _show(in_session(work), as_machine=as_machine)


@limits.command("clear", epilog="Example: `tollgate limits clear tenant acme`")
def limits_clear(scope: _Scope, owner: _Owner, *, tenant: _Tenant = None, as_machine: Json = False) -> None:
    """Take a limit away; a running gateway obeys within two seconds."""
    act = act_of_the_user()

    async def work(session: AsyncSession) -> LimitView:
        found = await limit_store.find_owner(session, scope, owner, tenant=tenant)
        return limit_view(await limit_store.end_limit(session, found, act=act))

    ended = in_session(work)
    if as_machine:
        print_json(ended)
    else:
        out.print(f"The {ended.scope} {ended.name!r} has no limit any more.", markup=False, highlight=False)


def _show(view: LimitView, *, as_machine: bool) -> None:
    print_json(view) if as_machine else print_fields(view)
