"""`tollgate policy shadow`: how would a candidate do, if it were asked too and nobody got its answers?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.budget_owners import limit_of
from gateway.admin.shadow_views import (
    DifferenceView,
    ShadowStatusView,
    ShadowView,
    SideView,
    newest_status,
    shadow_view,
)
from gateway.clock import Clock
from gateway.commands.policy_canary import matched, policy
from gateway.commands.policy_life import Message, policy_file, supply_here
from gateway.commands.terminal import (
    Json,
    act_of_the_user,
    all_rows,
    in_session,
    out,
    print_json,
    print_table,
)
from gateway.errors import InvalidRequest, NotFound
from gateway.ledger.buckets import Window
from gateway.policy_life import Proposal
from gateway.policy_shadow import HOURS_DEFAULT, Order, start_shadow, stop_shadow
from gateway.routing.shadows import Shadow, page_shadows
from gateway.routing.split import Stickiness

__all__ = ["policy"]

_ROWS_DEFAULT = 20
Number = Annotated[
    int | None, typer.Option("--number", metavar="N", help="do nothing unless this shadow is under way")
]

shadow = typer.Typer(
    help="A candidate is asked for copies of requests, at the platform's expense; nobody gets its answers.",
    no_args_is_help=True,
)
policy.add_typer(shadow, name="shadow")


@shadow.command(
    "start",
    epilog="Example: `tollgate policy shadow start policies/next.yaml --percent 10 --budget 2 -m 'one pool'`",
)
def shadow_start(
    candidate: Annotated[str, typer.Argument(help="a file, name@hash, or the beginning of the hash")],
    percent: Annotated[float, typer.Option(help="of the units whose requests are copied")],
    budget: Annotated[
        str,
        typer.Option(
            metavar="USD[/day|/month]",
            help="the most that copies may come to in a UTC day (or a month), such as 2 or 40/month",
        ),
    ],
    message: Message = None,
    *,
    sticky: Annotated[
        Stickiness, typer.Option(help="what is copied as a whole or not at all")
    ] = Stickiness.CONVERSATION,
    match: Annotated[
        list[str] | None,
        typer.Option(
            metavar="tenant=NAME|model=ALIAS", help="only these tenants' or aliases' requests; several times"
        ),
    ] = None,
    hours: Annotated[float, typer.Option(help="after which it ends")] = HOURS_DEFAULT,
    as_machine: Json = False,
) -> None:
    """Copy a part of the requests to a candidate; running gateways do so within two seconds.

    Tenants get the active version's answers and pay for those alone. A copy is made once its original is
    over, while the gateway and the candidate's pool have room to spare, and only of tenants that have opted
    in (`tollgate tenants update NAME --external-allowed`). When the budget is used up nothing is copied until
    its next window.
    """
    supply, act = supply_here(keys_elsewhere=True), act_of_the_user()
    wanted: str | Proposal = candidate
    if Path(candidate).exists():
        path, text = policy_file(Path(candidate))
        wanted = Proposal(text, str(path), message)
    amount, _, window = budget.partition("/")
    if window not in {"", Window.DAY, Window.MONTH}:
        raise InvalidRequest(
            f"A budget is USD, USD/day or USD/month, such as 40/month, not {budget!r}.", param="budget"
        )
    order = Order(
        percent=percent,
        budget_usd_nanos=limit_of(amount, param="--budget"),
        window=Window(window or Window.DAY),
        stickiness=sticky,
        tenants=matched(match, "tenant"),
        models=matched(match, "model"),
        hours=hours,
        message=message,
    )

    async def work(session: AsyncSession) -> Shadow:
        return await start_shadow(session, wanted, order, act=act, supply=supply)

    view = shadow_view(in_session(work))
    if as_machine:
        print_json(view)
        return
    _say(
        f"Shadow {view.number}: copies of {view.percent:g} % of {_units(view)} go to {view.version}, for at"
        f" most {amount} USD a {order.window}; {view.control} answers.",
        "How it compares: tollgate policy shadow status; end it: tollgate policy shadow stop",
    )


@shadow.command("status", epilog="Example: `tollgate policy shadow status --json`")
def shadow_status(*, as_machine: Json = False) -> None:
    """Show the newest shadow: what was copied and how it fared on both sides."""
    view = _newest()
    print_json(view) if as_machine else _print(view)


@shadow.command("history", epilog="Example: `tollgate policy shadow history --limit 5`")
def shadow_history(
    rows: Annotated[int, typer.Option("--limit", min=1, help="so many of the newest")] = _ROWS_DEFAULT,
    *,
    as_machine: Json = False,
) -> None:
    """Show which candidates were shadowed and how that ended, the newest first."""
    now_ms = Clock().epoch_ms()
    found = in_session(
        lambda session: all_rows(lambda page: page_shadows(session, page, now_ms=now_ms), at_most=rows)
    )
    views = [shadow_view(one) for one in found]
    if as_machine:
        print_json(views)
        return
    print_table(
        ("number", "candidate", "beside", "percent", "from", "by", "ended", "how", "by", "why"),
        [
            (
                one.number,
                one.version,
                one.control,
                f"{one.percent:g}",
                one.started_at,
                one.actor,
                *(
                    ("", "under way", "", "")
                    if one.end is None
                    else (one.end.at, one.end.how, one.end.actor, one.end.reason)
                ),
            )
            for one in views
        ],
    )


@shadow.command("stop", epilog="Example: `tollgate policy shadow stop -m 'seen enough'`")
def shadow_stop(message: Message = None, number: Number = None, *, as_machine: Json = False) -> None:
    """Copy nothing any more; copies under way end as they began."""
    act = act_of_the_user()

    async def work(session: AsyncSession) -> Shadow:
        return await stop_shadow(session, act=act, reason=message or "stopped", number=number)

    in_session(work)
    view = _newest()
    if as_machine:
        print_json(view)
        return
    _say(
        f"Shadow {view.number} is stopped: nothing is copied to {view.version} within two seconds."
        f" {view.candidate.requests} requests were; tollgate policy shadow status shows how they compare."
    )


# ------------------------------------------------------------------------------------------------ showing
def _newest() -> ShadowStatusView:
    now_ms = Clock().epoch_ms()
    view = in_session(lambda session: newest_status(session, now_ms=now_ms))
    if view is None:
        raise NotFound(
            "There never was a shadow; to start one:"
            " `tollgate policy shadow start FILE --percent 10 --budget 2`."
        )
    return view


def _say(*lines: str) -> None:
    for line in lines:
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def _units(view: ShadowView) -> str:
    of = f" of {', '.join(view.tenants)}" if view.tenants else ""
    to = f" to {', '.join(view.models)}" if view.models else ""
    return f"{view.stickiness}s{of}{to}"


def _print(view: ShadowStatusView) -> None:
    _say(
        f"Shadow {view.number}: copies of {view.percent:g} % of {_units(view)} go to {view.version};"
        f" {view.control} answers",
        f"started {view.started_at:%Y-%m-%d %H:%M:%S} UTC by {view.actor}, until"
        f" {view.until:%Y-%m-%d %H:%M} UTC" + (f": {view.message}" if view.message else ""),
    )
    if view.end is None:
        _say("under way")
    else:
        when = "" if view.end.at is None else f" {view.end.at:%Y-%m-%d %H:%M:%S} UTC"
        by = f" by {view.end.actor}" if view.end.actor else ""
        _say(f"{view.end.how}{when}{by}: {view.end.reason}")
    budget = view.budget
    _say(
        f"budget: {budget.posted_usd} of {budget.limit_usd} USD booked this {budget.window}"
        f" (UTC), {budget.left_usd} left"
    )
    if view.skips:
        skips = ", ".join(f"{reason} {count}" for reason, count in view.skips.items())
        _say(f"not copied: {skips}")
    if not view.candidate.requests:
        _say("no copy is booked yet")
        return
    print_table(("requests that were copied", "active", "candidate"), _sides(view.active, view.candidate))
    print_table(
        ("candidate less active, per request", "mean", "from", "to (95 %)", "pairs", "units"),
        [_difference(one) for one in view.differences if one.pairs],
    )


def _sides(active: SideView, candidate: SideView) -> list[tuple[Any, ...]]:
    rows = [("requests", active.requests, candidate.requests), ("errors", active.errors, candidate.errors)]
    for name, title in (
        ("ttft_p50_ms", "first token P50, ms"),
        ("ttft_p95_ms", "first token P95, ms"),
        ("total_p50_ms", "whole answer P50, ms"),
        ("total_p95_ms", "whole answer P95, ms"),
        ("charge_usd_mean", "cost per request, USD"),
        ("input_tokens_mean", "input tokens"),
        ("output_tokens_mean", "output tokens"),
        ("acceptance", "accepted of drafted"),
    ):
        rows.append((title, getattr(active, name), getattr(candidate, name)))
    targets = [
        ", ".join(f"{name} {count}" for name, count in side.targets.items()) for side in (active, candidate)
    ]
    return [*rows, ("targets", *targets)]


def _difference(one: DifferenceView) -> tuple[Any, ...]:
    claim = ("too few units", "") if one.low is None else (one.low, one.high)
    return one.measure, one.mean, *claim, one.pairs, one.units
