"""`tollgate period correct`: what is credited or corrected, and who agreed?"""

from __future__ import annotations

from typing import Annotated

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.adjustment_views import (
    AdjustmentRequest,
    AdjustmentView,
    adjustment_view,
    new_adjustment,
)
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
from gateway.ledger.adjustments import decide, list_proposals, propose

__all__ = ["periods"]


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
            f"Proposed. Somebody else approves it: `tollgate period approve {view.id}` as another user, or"
            f" POST /admin/v1/adjustments/{view.id}/approve with another key.",
            markup=False,
            highlight=False,
        )


@periods.command(epilog="Example: `tollgate period approve adj_01…`")
def approve(
    proposal: Annotated[str, typer.Argument(metavar="ID", help="adj_…")], *, as_machine: Json = False
) -> None:
    """Approve what somebody else proposed: it is booked now."""
    _show(decided(proposal, is_approved=True), as_machine=as_machine)


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


def decided(proposal: str, *, is_approved: bool) -> AdjustmentView:
    """What becomes of a proposal that the user of this machine decides."""

    async def work(session: AsyncSession) -> AdjustmentView:
        now_ms = await database_ms(session, Clock())
        act = act_of_the_user()
        return adjustment_view(
            await decide(session, proposal, is_approved=is_approved, act=act, now_ms=now_ms)
        )

    return in_session(work)


def _show(view: AdjustmentView, *, as_machine: bool) -> None:
    print_json(view) if as_machine else print_fields(view)
