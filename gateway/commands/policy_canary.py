"""`tollgate policy canary …`: a candidate beside the active policy; how does it fare, what becomes of it?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy.ext.asyncio import AsyncSession
from typer.core import TyperGroup

from gateway.admin.canary_views import CanaryStatusView, CanaryView, canary_view, newest_canary
from gateway.admin.policy_views import outcome_view
from gateway.commands.policy_life import KeysElsewhere, Message, policy, policy_file, supply_here
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
from gateway.policy_canary import (
    UNITS_DEFAULT,
    Order,
    promote_canary,
    start_canary,
    stop_canary,
)
from gateway.policy_life import Outcome, Proposal
from gateway.routing.canaries import Canary, How, page_canaries
from gateway.routing.split import Stickiness

__all__ = ["policy"]

_ROWS_DEFAULT = 20
_START = "start"
Number = Annotated[
    int | None, typer.Option("--number", metavar="N", help="do nothing unless this canary is under way")
]


class _Canary(TyperGroup):
    """`canary FILE …` is `canary start FILE …`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """What the first argument names."""
        known = args and (args[0] in self.commands or args[0].startswith("-"))
        return super().resolve_command(ctx, args if known else [_START, *args])


canary = typer.Typer(
    cls=_Canary,
    help="A candidate beside the active policy takes a part of the traffic; a guard takes a bad one back.",
    no_args_is_help=True,
)
policy.add_typer(canary, name="canary")


@canary.command(
    _START,
    epilog="Example: `tollgate policy canary policies/next.yaml --percent 5 -m 'creative work to plain'`",
)
def canary_start(
    candidate: Annotated[str, typer.Argument(help="a file, name@hash, or the beginning of the hash")],
    percent: Annotated[float, typer.Option(help="of the units that follow it, at most 50")],
    message: Message = None,
    *,
    sticky: Annotated[
        Stickiness,
        typer.Option(
            help="what stays with one version; with key the guard's error bound needs keys that send alike"
        ),
    ] = Stickiness.CONVERSATION,
    match: Annotated[
        list[str] | None,
        typer.Option(
            metavar="tenant=NAME|model=ALIAS", help="only these tenants' or aliases' requests; several times"
        ),
    ] = None,
    requests: Annotated[
        int, typer.Option(help="units of the candidate after which a good one is told to be so")
    ] = UNITS_DEFAULT,
    auto_promote: Annotated[
        bool, typer.Option("--auto-promote", help="activate it once no harm was found in --requests")
    ] = False,
    as_machine: Json = False,
) -> None:
    """Let a part of the requests follow a candidate; running gateways do so within two seconds.

    A gateway that lacks a pool or a key of it lets nobody follow it, and says so. It ends after a day
    whatever was found. Its guard compares failures, latency and cost with the
    control's and takes a candidate that does harm back by itself.
    """
    supply, act = supply_here(keys_elsewhere=True), act_of_the_user()
    wanted: str | Proposal = candidate
    if Path(candidate).exists():
        path, text = policy_file(Path(candidate))
        wanted = Proposal(text, str(path), message)
    order = Order(
        percent=percent,
        stickiness=sticky,
        tenants=matched(match, "tenant"),
        models=matched(match, "model"),
        units=requests,
        auto_promote=auto_promote,
        message=message,
    )

    async def work(session: AsyncSession) -> Canary:
        return await start_canary(session, wanted, order, act=act, supply=supply)

    view = canary_view(in_session(work))
    if as_machine:
        print_json(view)
        return
    _say(
        f"Canary {view.number}: {view.percent:g} % of {_units(view)} follow {view.version}, all others"
        f" {view.control}.",
        "How it fares: tollgate policy canary status; end it: tollgate policy canary stop",
    )


def matched(pairs: list[str] | None, name: str) -> list[str]:
    """The values of one name.

    Raises:
        InvalidRequest: a pair is of neither.
    """
    for pair in pairs or ():
        if not pair.startswith(("tenant=", "model=")) or pair.endswith("="):
            raise InvalidRequest(f"--match takes tenant=NAME or model=ALIAS, not {pair[:80]!r}.")
    return [pair.partition("=")[2] for pair in pairs or () if pair.startswith(f"{name}=")]


@canary.command("status", epilog="Example: `tollgate policy canary status`")
def canary_status(*, as_machine: Json = False) -> None:
    """Show the newest canary, and what its guard has seen; status 1 if it was rolled back."""
    view = in_session(newest_canary)
    if view is None:
        raise NotFound("There never was a canary: `tollgate policy canary FILE --percent 5` starts one.")
    if as_machine:
        print_json(view)
    else:
        _print(view)
    if view.end is not None and view.end.how is How.ROLLED_BACK:
        raise typer.Exit(1)


@canary.command("history", epilog="Example: `tollgate policy canary history --limit 5`")
def canary_history(
    rows: Annotated[int, typer.Option("--limit", min=1, help="so many of the newest")] = _ROWS_DEFAULT,
    *,
    as_machine: Json = False,
) -> None:
    """Show which candidates were tried and how that ended, the newest first."""
    found = in_session(lambda session: all_rows(lambda page: page_canaries(session, page), at_most=rows))
    views = [canary_view(one) for one in found]
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


@canary.command("promote", epilog="Example: `tollgate policy canary promote -m 'no harm in 2,000 requests'`")
def canary_promote(
    message: Message = None,
    number: Number = None,
    *,
    keys_elsewhere: KeysElsewhere = False,
    as_machine: Json = False,
) -> None:
    """Let every request follow the candidate, if the version beside it is still the active one."""
    supply, act = supply_here(keys_elsewhere=keys_elsewhere), act_of_the_user()

    async def work(session: AsyncSession) -> Outcome:
        return await promote_canary(session, act=act, supply=supply, number=number, message=message)

    view = outcome_view(in_session(work))
    if as_machine:
        print_json(view)
        return
    _say(
        f"{view.active.version} is active, number {view.active.number}.",
        f"Back to {view.before}: tollgate policy rollback",
    )


@canary.command("stop", epilog="Example: `tollgate policy canary stop -m 'answers are too short'`")
def canary_stop(message: Message = None, number: Number = None, *, as_machine: Json = False) -> None:
    """Let every request follow the active version again."""
    act = act_of_the_user()

    async def work(session: AsyncSession) -> CanaryStatusView | None:
        await stop_canary(session, act=act, reason=message or "stopped", number=number)
        return await newest_canary(session)

    view = in_session(work)
    if view is None:
        raise NotFound("There never was a canary.")
    if as_machine:
        print_json(view)
        return
    _say(f"Canary {view.number} is stopped: all requests follow {view.control} within two seconds.")


# ------------------------------------------------------------------------------------------------ showing
def _say(*lines: str) -> None:
    for line in lines:
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def _units(view: CanaryView) -> str:
    of = f" of {', '.join(view.tenants)}" if view.tenants else ""
    to = f" to {', '.join(view.models)}" if view.models else ""
    return f"{view.stickiness}s{of}{to}"


def _print(view: CanaryStatusView) -> None:
    _say(
        f"Canary {view.number}: {view.percent:g} % of {_units(view)} follow {view.version}, all others"
        f" {view.control}",
        f"started {view.started_at:%Y-%m-%d %H:%M:%S} UTC by {view.actor}, until"
        f" {view.until:%Y-%m-%d %H:%M} UTC" + (f": {view.message}" if view.message else ""),
    )
    end = view.end
    if end is not None:
        when = "" if end.at is None else f" {end.at:%Y-%m-%d %H:%M:%S} UTC"
        _say(f"{end.how.replace('_', ' ')}{when}" + (f" by {end.actor}" if end.actor else ""), end.reason)
    elif view.verdict is not None:
        _say(f"under way; {view.verdict}. To follow it: tollgate policy canary promote")
    else:
        _say(f"under way; no verdict yet (wanted: {view.units} units of the candidate)")
    seen = (end.evidence if end is not None else None) or view.seen
    if seen is None:
        _say("its guard has not looked yet")
        return
    _say(f"seen: {seen['units']} units of the candidate, {seen['control_units']} of the control")
    print_table(
        ("measure", "candidate", "control", "units", "control's", "log evidence of harm"),
        [
            (name, one["mean"], one["control_mean"], one["units"], one["control_units"], one["log_e"])
            for name, one in seen["measures"].items()
        ],
    )
