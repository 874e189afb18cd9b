"""`tollgate budgets`: how much may be spent, and how much is?"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.budget_owners import detail_of, limit_of, owner_of, scope_id_of, view_of, views_of
from gateway.admin.budget_views import BudgetDetailView, BudgetView
from gateway.clock import Clock
from gateway.commands.burn_down import print_burn_down, read_burn_down
from gateway.commands.terminal import (
    Json,
    act_of_the_user,
    all_rows,
    in_session,
    out,
    print_json,
    print_table,
)
from gateway.errors import InvalidRequest
from gateway.ledger import budget_store
from gateway.ledger.buckets import Scope, Window
from gateway.ledger.budget_store import ALERT_PERCENTS

budgets = typer.Typer(help="Budgets: who may spend how much.", no_args_is_help=True)

BAR_CHARS = 50

_Budget = Annotated[str, typer.Argument(help="name or id")]
_Tenant = Annotated[
    str | None,
    typer.Option(help="name or id; beside --project or --tag: where it is, whose requests count"),
]
_Project = Annotated[str | None, typer.Option(help="a project, by id; by name with --tenant")]
_Key = Annotated[str | None, typer.Option(help="a key, by public id")]
_Tag = Annotated[str | None, typer.Option(help="name=value of a tag that the operator fixed")]
_Alerts = Annotated[
    list[int] | None, typer.Option("--alert", help="percent of the limit at which to tell; several times")
]


@dataclass(frozen=True, slots=True)
class Whose:
    """The options that name an owner."""

    tenant: _Tenant = None
    project: _Project = None
    key: _Key = None
    tag: _Tag = None

    def owner(self) -> tuple[Scope, str, str | None]:
        """Scope, owner and the tenant around it.

        Raises:
            InvalidRequest: none is named, or several that do not go together.
        """
        named = [
            (scope, of)
            for scope, of in ((Scope.PROJECT, self.project), (Scope.KEY, self.key), (Scope.TAG, self.tag))
            if of is not None
        ]
        if not named and self.tenant is not None:
            return Scope.TENANT, self.tenant, None
        if len(named) != 1 or (self.key is not None and self.tenant is not None):
            raise InvalidRequest(
                "Say whose spending it counts: --tenant NAME, --project NAME --tenant NAME, --key ID,"
                " or --tag NAME=VALUE (with --tenant: of that tenant alone)."
            )
        return *named[0], self.tenant


def _with_owner(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Whose`; it gets them as its one argument `whose`."""
    own = inspect.signature(command, eval_str=True)
    options = inspect.signature(Whose, eval_str=True).parameters

    @functools.wraps(command)
    def run(**given: Any) -> None:
        whose = Whose(**{name: given.pop(name) for name in options})
        command(whose=whose, **given)

    kept = [parameter for name, parameter in own.parameters.items() if name != "whose"]
    added = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in options.values()]
    signature = own.replace(parameters=[*kept, *added])
    vars(run).pop("__wrapped__")
    vars(run)["__signature__"] = signature
    run.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return run


@budgets.command(
    "create",
    epilog="Example: `tollgate budgets create search-monthly --tenant acme --window month --limit 100`",
)
@_with_owner
def budgets_create(
    name: Annotated[str, typer.Argument(help="what people call it")],
    window: Annotated[Window, typer.Option(help="how long it lasts until it begins anew, in UTC")],
    limit: Annotated[str, typer.Option(help="USD, such as 100 or 0.25")],
    alerts: _Alerts = None,
    *,
    whose: Whose,
    is_soft: Annotated[bool, typer.Option("--soft", help="only tell, refuse nothing")] = False,
    as_machine: Json = False,
) -> None:
    """Make a budget; a running gateway obeys within two seconds."""
    act = act_of_the_user()
    limit_usd_nanos = limit_of(limit, param="--limit")
    scope, of, within = whose.owner()

    async def work(session: AsyncSession) -> BudgetView:
        made = await budget_store.create_budget(
            session,
            name,
            owner=await owner_of(session, scope, of, tenant=within, is_new=True),
            window=window,
            limit_usd_nanos=limit_usd_nanos,
            is_hard=not is_soft,
            act=act,
            alert_percents=ALERT_PERCENTS if alerts is None else alerts,
        )
        return await view_of(session, made, now_ms=act.at_ms)

    _say(in_session(work), "is made", as_machine=as_machine)


@budgets.command("list", epilog="Example: `tollgate budgets list --tenant acme`")
@_with_owner
def budgets_list(
    scope: Annotated[Scope | None, typer.Option(help="only of this scope")] = None,
    *,
    whose: Whose,
    with_retired: Annotated[bool, typer.Option("--with-retired", help="retired ones too")] = False,
    as_machine: Json = False,
) -> None:
    """Show budgets and how they stand now."""
    now_ms = Clock().epoch_ms()
    wanted: tuple[Scope | None, str | None, str | None] = (scope, None, None)
    if whose != Whose():
        wanted = whose.owner()

    async def work(session: AsyncSession) -> list[BudgetView]:
        scope_id = await scope_id_of(session, wanted[0], wanted[1], tenant=wanted[2])
        rows = await all_rows(
            lambda page: budget_store.page_budgets(
                session,
                page,
                now_ms=now_ms,
                scope=wanted[0],
                scope_id=scope_id,
                with_retired=with_retired,
            )
        )
        return await views_of(session, rows)

    found = in_session(work)
    if as_machine:
        print_json(found)
        return
    print_table(
        ("budget", "of", "window", "limit USD", "booked USD", "lent USD", "left USD", "used", "kind"),
        [
            (
                one.name,
                f"{one.scope} {one.owner}",
                one.window,
                _short(one.limit_usd),
                _short(one.state.posted_usd),
                _short(one.state.lent_usd),
                _short(one.state.left_usd),
                "" if one.state.used_percent is None else f"{one.state.used_percent} %",
                _kind(one),
            )
            for one in found
        ],
    )


@budgets.command("burn-down", epilog="Example: `tollgate budgets burn-down`")
def budgets_burn_down(*, as_machine: Json = False) -> None:
    """When budgets run out at their pace of late, the first one first."""
    views = read_burn_down()
    print_json(views) if as_machine else print_burn_down(views)


@budgets.command("show", epilog="Example: `tollgate budgets show search-monthly`")
def budgets_show(budget: _Budget, *, as_machine: Json = False) -> None:
    """Show one budget: how it stands, what was told of it, and its last windows."""

    async def work(session: AsyncSession) -> BudgetDetailView:
        found = await budget_store.get_budget(session, budget)
        return await detail_of(session, found, now_ms=Clock().epoch_ms())

    shown = in_session(work)
    print_json(shown) if as_machine else _print_budget(shown)


@budgets.command("update", epilog="Example: `tollgate budgets update search-monthly --limit 250`")
def budgets_update(
    budget: _Budget,
    name: Annotated[str | None, typer.Option(help="a new name")] = None,
    limit: Annotated[str | None, typer.Option(help="a new limit, USD")] = None,
    alerts: _Alerts = None,
    *,
    is_hard: Annotated[
        bool | None, typer.Option("--hard/--soft", help="refuse what it cannot hold, or only tell")
    ] = None,
    as_machine: Json = False,
) -> None:
    """Change a budget; a lowered limit binds at once what is lent from now on."""
    act = act_of_the_user()
    limit_usd_nanos = None if limit is None else limit_of(limit, param="--limit")

    async def work(session: AsyncSession) -> BudgetView:
        changed = await budget_store.update_budget(
            session,
            budget,
            act=act,
            name=name,
            limit_usd_nanos=limit_usd_nanos,
            is_hard=is_hard,
            alert_percents=alerts,
        )
        return await view_of(session, changed, now_ms=act.at_ms)

    _say(in_session(work), "is changed", as_machine=as_machine)


@budgets.command("retire", epilog="Example: `tollgate budgets retire search-monthly`")
def budgets_retire(budget: _Budget, *, as_machine: Json = False) -> None:
    """Let a budget bind nobody from now on; what it counted stays."""
    act = act_of_the_user()

    async def work(session: AsyncSession) -> BudgetView:
        retired = await budget_store.retire_budget(session, budget, act=act)
        return await view_of(session, retired, now_ms=act.at_ms)

    _say(in_session(work), "is retired", as_machine=as_machine)


def _say(view: BudgetView, what: str, *, as_machine: bool) -> None:
    if as_machine:
        print_json(view)
        return
    limit = f"{_short(view.limit_usd)} USD ({view.window}, {_kind(view)})"
    out.print(f"Budget {view.name} {what}: {limit} of {view.scope} {view.owner}.", markup=False)


def _print_budget(view: BudgetDetailView) -> None:
    state = view.state
    until = "" if state.window_end is None else f", until {state.window_end:%Y-%m-%d %H:%M} UTC"
    out.print(f"{view.name}: {view.scope} {view.owner}, {_kind(view)}", markup=False, highlight=False)
    out.print(f"{_short(view.limit_usd)} USD a {view.window}{until}\n", highlight=False)
    out.print(f"  {bar_of(view)}\n", markup=False, highlight=False)
    share = "" if state.used_percent is None else f"{state.used_percent} %"
    rows: list[tuple[Any, ...]] = [
        ("█ booked", f"{state.posted_usd} USD", share),
        ("▒ lent", f"{state.lent_usd} USD", "to gateways that serve, and not spent yet"),
        ("░ left", f"{state.left_usd} USD", ""),
    ]
    if Decimal(state.unattributed_usd):
        rows.insert(2, ("▒ unattributed", f"{state.unattributed_usd} USD", "lent to processes that died"))
    if Decimal(state.overage_usd):
        rows.append(("  overage", f"{state.overage_usd} USD", "booked beyond what was lent"))
    print_table(("", "", ""), rows)
    told = {alert.percent: f"told {alert.at:%Y-%m-%d %H:%M} UTC" for alert in view.alerts}
    if view.alert_percents:
        out.print()
        print_table(("alert", ""), [(f"{at} %", told.get(at, "not reached")) for at in view.alert_percents])
    if view.windows:
        out.print()
        print_table(
            ("window", "limit USD", "booked USD", "overage USD"),
            [
                (
                    "all" if one.window_start is None else f"{one.window_start:%Y-%m-%d}",
                    _short(one.limit_usd),
                    one.posted_usd,
                    _short(one.overage_usd),
                )
                for one in view.windows
            ],
        )


def bar_of(view: BudgetView) -> str:
    """Booked, lent and left as parts of a bar; anything above nothing shows."""
    limit = Decimal(view.limit_usd)
    booked = Decimal(view.state.posted_usd)
    lent = Decimal(view.state.lent_usd) + Decimal(view.state.unattributed_usd)
    if not limit:
        return ("█" if booked else "░") * BAR_CHARS
    booked_chars = _chars(booked, limit)
    lent_chars = min(_chars(lent, limit), BAR_CHARS - booked_chars)
    return "█" * booked_chars + "▒" * lent_chars + "░" * (BAR_CHARS - booked_chars - lent_chars)


def _chars(part: Decimal, whole: Decimal) -> int:
    return min(BAR_CHARS, max(int(part * BAR_CHARS / whole), int(part > 0)))


def _kind(view: BudgetView) -> str:
    if view.retired_at is not None:
        return "retired"
    return "hard" if view.is_hard else "soft"


def _short(usd: str) -> str:
    """Without the zeros at the end that say nothing, but with cents."""
    whole, _, fraction = usd.partition(".")
    return f"{whole}.{fraction.rstrip('0').ljust(2, '0')}"
