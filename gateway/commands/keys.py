"""`tollgate keys`: who may call, and what?"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.views import (
    IssuedKeyView,
    KeyView,
    epoch_ms_of,
    instant,
    issued_key_view,
    key_view,
)
from gateway.clock import Clock
from gateway.commands.terminal import (
    Json,
    NoTags,
    Tags,
    act_of_the_user,
    all_rows,
    in_session,
    load_pool_files,
    out,
    print_fields,
    print_json,
    print_secret,
    print_table,
    tags_of,
)
from gateway.errors import InvalidRequest
from gateway.identity import key_store, store
from gateway.identity.key_store import KeyState, Permissions
from gateway.policy_life import active_policy
from gateway.settings import load_settings

keys = typer.Typer(help="API keys.", no_args_is_help=True)

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

Key = Annotated[str, typer.Argument(help="public id, or the whole key")]
Overlap = Annotated[
    str, typer.Option("--overlap", help="how long the old key keeps working: 0, 90m, 24h, 7d (at most 30d)")
]
_Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="a model alias that it may ask for; several times for several"),
]
_Classes = Annotated[
    list[str] | None,
    typer.Option("--class", help="a latency class: priority, default or flex; several times"),
]
Expires = Annotated[
    str | None, typer.Option("--expires", help="an instant such as 2027-06-30, UTC; default: never")
]


@keys.command("create", epilog="Example: `tollgate keys create --tenant acme --project search --name ci`")
def keys_create(
    tenant: Annotated[str, typer.Option(help="name or id of the tenant that pays")],
    project: Annotated[str, typer.Option(help="project of the tenant; made if it is new")] = "default",
    name: Annotated[str, typer.Option(help="what people call the key")] = "default",
    models: _Models = None,
    classes: _Classes = None,
    expires: Expires = None,
    tags: Tags = None,
    *,
    as_machine: Json = False,
) -> None:
    """Issue a key. Its secret is shown once and kept nowhere."""
    act = act_of_the_user()
    permissions = _permissions(models, classes)
    fixed = tags_of(tags)
    expires_at_ms = epoch_ms_of(instant(expires, "--expires"), "--expires")

    async def work(session: AsyncSession) -> IssuedKeyView:
        owner = await store.get_tenant(session, tenant)
        unit = await store.ensure_project(session, owner, project, act=act)
        issued = await key_store.create_key(
            session, unit, name, act=act, permissions=permissions, expires_at_ms=expires_at_ms, tags=fixed
        )
        return issued_key_view(await key_store.get_key(session, issued.id), issued, act.at_ms)

    issued = in_session(work)
    if as_machine:
        print_json(issued)
    else:
        print_secret(f"Key {issued.id}. Copy it now, it is not shown again:", issued.key)


@keys.command("list", epilog="Example: `tollgate keys list --tenant acme --state active`")
def keys_list(
    tenant: Annotated[str | None, typer.Option(help="only of this tenant")] = None,
    project: Annotated[
        str | None, typer.Option(help="only of this project, by id; by name too with --tenant")
    ] = None,
    state: Annotated[KeyState | None, typer.Option(help="only in this state")] = None,
    *,
    as_machine: Json = False,
) -> None:
    """Show keys, without their secrets."""
    now_ms = Clock().epoch_ms()

    async def work(session: AsyncSession) -> list[KeyView]:
        owner = None if tenant is None else await store.get_tenant(session, tenant)
        unit = None if project is None else await store.get_project(session, project, tenant=owner)
        rows = await all_rows(
            lambda page: key_store.page_keys(
                session, page, now_ms=now_ms, tenant=owner, project=unit, state=state
            )
        )
        return [key_view(record, now_ms) for record in rows]

    found = in_session(work)
    if as_machine:
        print_json(found)
        return
    print_table(
        ("key", "name", "tenant", "project", "state", "created", "expires"),
        [
            (one.id, one.name, one.tenant, one.project, one.state, one.created_at, one.expires_at)
            for one in found
        ],
    )


@keys.command("show", epilog="Example: `tollgate keys show 4f7k2m9q1x`")
def keys_show(key: Key, *, as_machine: Json = False) -> None:
    """Show one key, without its secret."""

    async def work(session: AsyncSession) -> KeyView:
        return key_view(await key_store.get_key(session, key), Clock().epoch_ms())

    _show(in_session(work), as_machine=as_machine)


@keys.command("update", epilog="Example: `tollgate keys update 4f7k2m9q1x --model fast --all-classes`")
def keys_update(
    key: Key,
    name: Annotated[str | None, typer.Option(help="a new name")] = None,
    models: _Models = None,
    classes: _Classes = None,
    tags: Tags = None,
    *,
    all_models: Annotated[bool, typer.Option("--all-models", help="lift the limit on models")] = False,
    all_classes: Annotated[bool, typer.Option("--all-classes", help="lift the limit on classes")] = False,
    no_tags: NoTags = False,
    as_machine: Json = False,
) -> None:
    """Rename a key, or change what it allows; a running gateway obeys within two seconds."""
    act = act_of_the_user()
    permissions = _permissions([] if all_models else models, [] if all_classes else classes)
    fixed = {} if no_tags else tags_of(tags)

    async def work(session: AsyncSession) -> KeyView:
        await key_store.update_key(session, key, act=act, name=name, permissions=permissions, tags=fixed)
        return key_view(await key_store.get_key(session, key), act.at_ms)

    _show(in_session(work), as_machine=as_machine)


@keys.command("rotate", epilog="Example: `tollgate keys rotate 4f7k2m9q1x --overlap 7d`")
def keys_rotate(
    key: Key, overlap: Overlap = "24h", expires: Expires = None, *, as_machine: Json = False
) -> None:
    """Issue a key with the same permissions; the old one ends by itself when the overlap is over."""
    act = act_of_the_user()
    overlap_s = seconds_of(overlap)
    expires_at_ms = epoch_ms_of(instant(expires, "--expires"), "--expires")

    async def work(session: AsyncSession) -> tuple[IssuedKeyView, KeyView]:
        issued = await key_store.rotate_key(
            session, key, act=act, overlap_s=overlap_s, expires_at_ms=expires_at_ms
        )
        record = await key_store.get_key(session, issued.id)
        old = await key_store.get_key(session, key)
        return issued_key_view(record, issued, act.at_ms), key_view(old, act.at_ms)

    issued, old = in_session(work)
    if as_machine:
        print_json(issued)
        return
    ends = f"{old.expires_at:%Y-%m-%d %H:%M} UTC"
    print_secret(
        f"Key {issued.id} replaces {old.id}, which works until {ends}. Copy it now, it is not shown again:",
        issued.key,
    )


@keys.command("revoke", epilog="Example: `tollgate keys revoke 4f7k2m9q1x`")
def keys_revoke(key: Key, *, as_machine: Json = False) -> None:
    """Make a key useless; a running gateway refuses it within two seconds."""
    act = act_of_the_user()

    async def work(session: AsyncSession) -> KeyView:
        await key_store.revoke_key(session, key, act=act)
        return key_view(await key_store.get_key(session, key), act.at_ms)

    revoked = in_session(work)
    print_json(revoked) if as_machine else out.print(f"Key {revoked.id} is revoked.", markup=False)


def seconds_of(text: str) -> int:
    """A span of time as people write it: `0`, `90m`, `24h`, `7d`.

    Raises:
        InvalidRequest: it is none.
    """
    found = re.fullmatch(r"(\d{1,9})([smhd]?)", text.strip())
    if found is None:
        raise InvalidRequest(f"--overlap must be a span such as 0, 90m, 24h or 7d, not {text[:32]!r}.")
    return int(timedelta(**{_UNITS[found[2] or "s"]: int(found[1])}).total_seconds())


def _permissions(models: list[str] | None, classes: list[str] | None) -> Permissions:
    if not models:
        return Permissions(models=models, classes=classes)
    # Only then: whoever issues a plain key needs no policy.
    settings = load_settings()
    pools = load_pool_files(settings)
    policy = in_session(lambda session: active_policy(session, settings, pools), settings)
    return Permissions(models=models, classes=classes, known_models=policy.models)


def _show(view: KeyView, *, as_machine: bool) -> None:
    print_json(view) if as_machine else print_fields(view)
