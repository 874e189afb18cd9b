"""`tollgate period correct`: what is credited or corrected, and who agreed?"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.adjustment_views import (
    AdjustmentRequest,
    AdjustmentView,
    adjustment_view,
    new_adjustment,
)
from gateway.audit import Actor, ActorKind
from gateway.clock import Clock
from gateway.commands.periods import periods
from gateway.commands.terminal import (
    Json,
    act_of_the_user,
    in_session,
    out,
    print_fields,
    print_json,
    print_table,
)
from gateway.db import database_ms
from gateway.errors import InvalidRequest, PermissionDenied
from gateway.identity.admin_store import actor_with_secret
from gateway.identity.roles import RULES
from gateway.ledger.adjustments import list_proposals, propose
from gateway.two_people import decide_as

__all__ = ["periods"]
_MAY_APPROVE = RULES["POST", "/admin/v1/adjustments/{adjustment}/approve"]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="of an approval: your administrator key (tga-…); - is standard input; else asked for",
    ),
]


@periods.command(
    epilog='Example: `tollgate period correct --tenant acme --amount -12.50 --reason "Outage of 12 October"'
    " --about 2026-10`"
)
def correct(
    tenant: Annotated[str, typer.Option(help="name or id: whose account")],
    amount: Annotated[str, typer.Option(help="USD with its sign; below zero: the tenant owes less")],
    reason: Annotated[str, typer.Option(help="why; people sign for it")],
    about: Annotated[str | None, typer.Option(help="the month that it is about, such as 2026-10")] = None,
    *,
    kind: Annotated[str, typer.Option(help="credit (goodwill) or correction (of a wrong charge)")] = "credit",
    as_machine: Json = False,
) -> None:
    """Propose a credit or a correction; a second person approves it, and then it is booked."""
    asked = AdjustmentRequest(kind=kind, tenant=tenant, amount_usd=amount, reason=reason, charge_month=about)

    async def work(session: AsyncSession) -> AdjustmentView:
        row = await propose(session, await new_adjustment(session, asked), act=act_of_the_user())
        return adjustment_view(row)

    view = in_session(work)
    _show(view, as_machine=as_machine)
    if not as_machine:
        out.print(
            f"Proposed. Somebody else approves it: `tollgate period approve {view.id}` with their key, or"
            f" POST /admin/v1/adjustments/{view.id}/approve with another key.",
            markup=False,
            highlight=False,
        )


@periods.command(epilog="Example: `tollgate period approve adj_01… --key-file ~/.tollgate-admin-key`")
def approve(
    proposal: Annotated[str, typer.Argument(metavar="ID", help="adj_…")],
    *,
    key_file: KeyFile = None,
    as_machine: Json = False,
) -> None:
    """Approve what somebody else proposed, with your administrator key: it is booked now."""
    _show(decided(proposal, is_approved=True, key_file=key_file), as_machine=as_machine)


@periods.command(epilog="Example: `tollgate period reject adj_01…`")
def reject(
    proposal: Annotated[str, typer.Argument(metavar="ID", help="adj_…")], *, as_machine: Json = False
) -> None:
    """Reject a proposal: nothing is booked."""
    _show(decided(proposal, is_approved=False), as_machine=as_machine)


@periods.command(epilog="Example: `tollgate period adjustments --open`")
def adjustments(
    *,
    only_open: Annotated[bool, typer.Option("--open", help="only what nobody has decided")] = False,
    as_machine: Json = False,
) -> None:
    """Credits and corrections, who proposed them, and who agreed; the newest first."""

    async def work(session: AsyncSession) -> list[AdjustmentView]:
        return [adjustment_view(row) for row in await list_proposals(session, only_open=only_open)]

    views = in_session(work)
    if as_machine:
        print_json(views)
        return
    print_table(
        ("id", "kind", "tenant", "USD", "about", "state", "proposed by", "decided by", "reason"),
        [
            (
                *(each.id, each.kind, each.tenant_id, each.amount_usd, each.charge_month, each.state),
                *(each.proposed_by, each.decided_by, each.reason),
            )
            for each in views
        ],
    )


def decided(proposal: str, *, is_approved: bool, key_file: Path | None = None) -> AdjustmentView:
    """What becomes of a proposal that somebody at this terminal decides; who approves shows a key.

    Raises:
        InvalidRequest: there is no key to approve with.
    """
    secret = _secret(key_file) if is_approved else None

    async def work(session: AsyncSession) -> AdjustmentView:
        now_ms = await database_ms(session, Clock())
        act = user = act_of_the_user()
        if secret is not None:
            record = await actor_with_secret(session, secret, now_ms=act.at_ms)
            if record.role not in _MAY_APPROVE.roles:
                raise PermissionDenied(
                    f"{record.name}'s key has the role {record.role}: it takes {_MAY_APPROVE.roles_text()}."
                )
            actor = Actor(ActorKind.ADMIN_KEY, record.id, record.name, record.role)
            act = replace(user, actor=actor)
        row = await decide_as(
            session,
            proposal,
            is_approved=is_approved,
            act=act,
            now_ms=now_ms,
            terminal_user=user.actor.id,
        )
        return adjustment_view(row)

    return in_session(work)


def _secret(key_file: Path | None) -> str:
    try:
        if key_file is not None:
            return sys.stdin.readline() if str(key_file) == "-" else key_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{key_file}: {error}: give a file with an administrator key.") from None
    if sys.stdin.isatty():
        return str(typer.prompt("Your administrator key (tga-…)", hide_input=True, err=True))
    raise InvalidRequest(
        "An approval names a person: give a file with their administrator key by --key-file, or - and the key"
        " on standard input. `tollgate admins create NAME --role finance` makes one."
    )


def _show(view: AdjustmentView, *, as_machine: bool) -> None:
    print_json(view) if as_machine else print_fields(view)
