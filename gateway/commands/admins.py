"""`tollgate admins` and `tollgate audit log`: who may steer, and who did what?"""

from __future__ import annotations

import json
from typing import Annotated

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.views import (
    AdminKeyView,
    AuditView,
    IssuedAdminKeyView,
    admin_key_view,
    audit_filter,
    audit_view,
    epoch_ms_of,
    instant,
    issued_admin_key_view,
)
from gateway.audit import page_entries
from gateway.clock import Clock
from gateway.commands.keys import Expires, Key, Overlap, seconds_of
from gateway.commands.terminal import (
    Json,
    act_of_the_user,
    all_rows,
    in_session,
    out,
    print_json,
    print_secret,
    print_table,
)
from gateway.identity import admin_store
from gateway.identity.roles import Role

admins = typer.Typer(
    help="Administrators' keys, for the control plane and the console.", no_args_is_help=True
)
audit = typer.Typer(help="What happened, and is it right?")

_ROWS_DEFAULT = 50


@admins.command("create", epilog="Example: `tollgate admins create 'finance report' --role finance`")
def admins_create(
    name: Annotated[str, typer.Argument(help="whose it is")],
    role: Annotated[Role, typer.Option(help="what it may do")],
    expires: Expires = None,
    *,
    as_machine: Json = False,
) -> None:
    """Issue an administrator's key. Its secret is shown once and kept nowhere."""
    act = act_of_the_user()
    expires_at_ms = epoch_ms_of(instant(expires, "--expires"), "--expires")

    async def work(session: AsyncSession) -> IssuedAdminKeyView:
        issued = await admin_store.create_admin_key(session, name, role, act=act, expires_at_ms=expires_at_ms)
        record = await admin_store.get_admin_key(session, issued.id)
        return issued_admin_key_view(record, issued, act.at_ms)

    issued = in_session(work)
    if as_machine:
        print_json(issued)
    else:
        print_secret(
            f"Administrator key {issued.id}, role {issued.role}. Copy it now, it is not shown again:",
            issued.key,
        )


@admins.command("list", epilog="Example: `tollgate admins list`")
def admins_list(*, as_machine: Json = False) -> None:
    """Show administrators' keys, without their secrets. The bootstrap key is a setting, not among them."""
    now_ms = Clock().epoch_ms()

    async def work(session: AsyncSession) -> list[AdminKeyView]:
        rows = await all_rows(lambda page: admin_store.page_admin_keys(session, page))
        return [admin_key_view(record, now_ms) for record in rows]

    found = in_session(work)
    if as_machine:
        print_json(found)
        return
    print_table(
        ("key", "name", "role", "state", "created", "expires"),
        [(one.id, one.name, one.role, one.state, one.created_at, one.expires_at) for one in found],
    )


@admins.command("rotate", epilog="Example: `tollgate admins rotate 4f7k2m9q1x --overlap 1h`")
def admins_rotate(key: Key, overlap: Overlap = "24h", *, as_machine: Json = False) -> None:
    """Issue a key of the same name and role; the old one ends by itself when the overlap is over."""
    act = act_of_the_user()
    overlap_s = seconds_of(overlap)

    async def work(session: AsyncSession) -> IssuedAdminKeyView:
        issued = await admin_store.rotate_admin_key(session, key, act=act, overlap_s=overlap_s)
        record = await admin_store.get_admin_key(session, issued.id)
        return issued_admin_key_view(record, issued, act.at_ms)

    issued = in_session(work)
    if as_machine:
        print_json(issued)
    else:
        print_secret(
            f"Administrator key {issued.id} replaces {issued.rotated_from}."
            " Copy it now, it is not shown again:",
            issued.key,
        )


@admins.command("revoke", epilog="Example: `tollgate admins revoke 4f7k2m9q1x`")
def admins_revoke(key: Key, *, as_machine: Json = False) -> None:
    """Make an administrator's key useless, and the logins made with it."""
    act = act_of_the_user()

    async def work(session: AsyncSession) -> AdminKeyView:
        await admin_store.revoke_admin_key(session, key, act=act)
        return admin_key_view(await admin_store.get_admin_key(session, key), act.at_ms)

    revoked = in_session(work)
    print_json(revoked) if as_machine else out.print(
        f"Administrator key {revoked.id} is revoked.", markup=False
    )


@audit.command("log", epilog="Example: `tollgate audit log --action key --from 2026-11-01`")
def audit_log(
    actor: Annotated[str | None, typer.Option(help="id or name of who did it")] = None,
    action: Annotated[str | None, typer.Option(help="key.rotate, or key for all about keys")] = None,
    affected: Annotated[
        str | None, typer.Option("--object", help="id or name of what it was done to")
    ] = None,
    since: Annotated[str | None, typer.Option("--from", help="first instant, UTC")] = None,
    until: Annotated[str | None, typer.Option("--to", help="first instant that does not count")] = None,
    rows: Annotated[int, typer.Option("--limit", min=1, help="so many of the newest")] = _ROWS_DEFAULT,
    *,
    as_machine: Json = False,
) -> None:
    """Show who changed what, the newest first."""
    wanted = audit_filter(actor=actor, action=action, affected=affected, since=since, until=until)

    async def work(session: AsyncSession) -> list[AuditView]:
        found = await all_rows(lambda page: page_entries(session, wanted, page), at_most=rows)
        return [audit_view(entry) for entry in found]

    entries = in_session(work)
    if as_machine:
        print_json(entries)
        return
    for one in entries:
        out.print("\n".join(_told(one)), markup=False, highlight=False, soft_wrap=True)
    if not entries:
        out.print("Nothing was changed, as far as was asked.", markup=False)


def _told(one: AuditView) -> list[str]:
    """An entry as lines of its own: what changed does not fit into a column."""
    before, after = one.before or {}, one.after or {}
    names = [name for name in {**before, **after} if (before.get(name), after.get(name)) != (None, None)]
    width = max(map(len, names), default=0)
    lines = [
        f"{one.at:%Y-%m-%d %H:%M:%S} UTC  {one.action}  {one.object['name']} ({one.object['id']})",
        f"  by {one.actor['name']} ({one.actor['id']}), {one.actor['role']}, {one.source}",
    ]
    for name in names:
        was = f"{_value(before[name])} → " if name in before else ""
        lines.append(f"  {name:<{width}}  {was}{_value(after[name]) if name in after else 'gone'}")
    return [*lines, ""]


def _value(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
