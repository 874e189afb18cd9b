"""`tollgate alerts`: what were people told, and does telling work?"""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.alert_views import AlertView, alert_view
from gateway.alerts.channels import PURPOSE, Channel, NotTaken, channels_of
from gateway.alerts.outbox import Alert, Due, due, note, post, recent
from gateway.clock import Clock
from gateway.commands.terminal import (
    Json,
    act_of_the_user,
    in_session,
    out,
    print_json,
    print_secret,
    print_table,
)
from gateway.db import database_ms
from gateway.errors import ConfigurationError, InvalidRequest
from gateway.identity.root_key import derive, load_root_key
from gateway.settings import Settings, load_settings

alerts = typer.Typer(help="What people are told of budgets and unusual spend.", no_args_is_help=True)

LIMIT_MAX = 500
UNSET = (
    "No channel is set up: set TOLLGATE_ALERTS__WEBHOOK_URLS (a JSON list), or TOLLGATE_ALERTS__SMTP_HOST"
    " with TOLLGATE_ALERTS__MAIL_FROM and TOLLGATE_ALERTS__MAIL_TO."
)


def _key(settings: Settings) -> bytes:
    return derive(load_root_key(settings), PURPOSE)


@alerts.command("list", epilog="Example: `tollgate alerts list --limit 20`")
def list_(
    limit: Annotated[int, typer.Option(help="the newest so many")] = 50, *, as_machine: Json = False
) -> None:
    """Show messages and how far they got, the newest first."""
    if not 1 <= limit <= LIMIT_MAX:
        raise InvalidRequest(f"--limit is 1 to {LIMIT_MAX}.")

    async def work(session: AsyncSession) -> list[AlertView]:
        return [alert_view(*each) for each in await recent(session, limit=limit)]

    views = in_session(work)
    if as_machine:
        print_json(views)
        return
    if not views:
        out.print("Nobody was told anything yet.")
        return
    print_table(("at", "kind", "what", "told", "id"), [_row(view) for view in views])


def _row(view: AlertView) -> tuple[str, ...]:
    told = [f"{each.channel} {each.state.replace('_', ' ')}" for each in view.deliveries]
    return (view.at, view.kind, view.subject, "; ".join(told) or "nobody: no channel was set up", view.id)


@alerts.command("test", epilog="Example: `tollgate alerts test`")
def try_(*, as_machine: Json = False) -> None:
    """Send a test message by every channel now; status 1 if one did not take it.

    What is not taken is tried again by a running gateway.
    """
    settings, clock = load_settings(), Clock()
    channels = channels_of(settings.alerts, key=_key(settings), clock=clock)
    if not channels:
        raise ConfigurationError(UNSET)
    by = act_of_the_user().actor.name

    async def begin(session: AsyncSession) -> str:
        now_ms = await database_ms(session, clock)
        alert = Alert(
            "test", f"test/{now_ms}/{by}", "A test of Tollgate's alerts", {"sent_by": by, "says": "it works"}
        )
        message_id = await post(session, alert, [each.name for each in channels], now_ms=now_ms)
        if message_id is None:
            raise InvalidRequest("A test was sent this very moment: try again.")
        return message_id

    message_id = in_session(begin, settings)

    async def send(session: AsyncSession) -> AlertView:
        now_ms = await database_ms(session, clock)
        waiting = await due(session, [each.name for each in channels], now_ms=now_ms)
        mine = [each for each in waiting if each.message.id == message_id]
        await session.commit()  # nobody waits for the database while others are slow
        errors = await asyncio.gather(*(_sent(channels, each) for each in mine))
        for each, error in zip(mine, errors, strict=True):
            await note(session, each, error=error, now_ms=await database_ms(session, clock))
        (found,) = await recent(session, limit=1, message_id=message_id)
        return alert_view(*found)

    view = in_session(send, settings)
    if as_machine:
        print_json(view)
    else:
        for each in view.deliveries:
            said = "took it" if each.state == "delivered" else f"did not take it: {each.last_error}"
            out.print(f"{each.channel} {said}", highlight=False, markup=False)
    if any(each.state != "delivered" for each in view.deliveries):
        raise typer.Exit(1)


async def _sent(channels: tuple[Channel, ...], each: Due) -> str | None:
    (channel,) = (one for one in channels if one.name == each.channel)
    try:
        await channel.send(each.message)
    except NotTaken as problem:
        return str(problem)
    return None


@alerts.command("key", epilog="Example: `tollgate alerts key`")
def key(*, as_machine: Json = False) -> None:
    """Show the key that webhooks are signed with, for whoever checks the signature."""
    shown = _key(load_settings()).hex()
    if as_machine:
        print_json({"key_hex": shown})
    else:
        print_secret("HMAC-SHA-256 of `<X-Tollgate-Timestamp>.<body>` under this key (hex):", shown)
