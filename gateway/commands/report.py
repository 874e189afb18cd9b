"""`tollgate report`: what was spent, and on what?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.spend import as_json, change_ratio, period, shares, unit_costs
from gateway.clock import Clock
from gateway.commands.options import with_options
from gateway.commands.terminal import Json, in_session, out, print_json, print_table
from gateway.errors import InvalidRequest
from gateway.ledger.cuts import PERIODS
from gateway.ledger.reports import NOTHING, SpendFigures, SpendReport
from gateway.money import usd_text
from gateway.spend_asked import Asked, make_report

reports = typer.Typer()

BAR_CHARS = 40
MANY_USD = 100
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="DIMENSION=VALUE",
        help="only these, such as pool=plain or tag:team=search; several times",
    ),
]
Since = Annotated[str | None, typer.Option("--from", help="first instant, UTC; default: month start")]
Until = Annotated[str | None, typer.Option("--to", help="first instant that does not count")]


By = Annotated[
    str,
    typer.Option(
        help="comma list: tenant, project, key, end_user, model, pool, task, policy, price, tag:NAME,"
        " day, week, month; empty: the total"
    ),
]


@dataclass(frozen=True, slots=True)
class Selection:
    """What is looked at."""

    by: By = "tenant"
    since: Since = None
    until: Until = None
    where: Where = None

    @property
    def dimensions(self) -> list[str]:
        """The names of the comma list."""
        return [name.strip() for name in self.by.split(",")] if self.by.strip() else []


@dataclass(frozen=True, slots=True)
class Look:
    """How it is shown."""

    order: Annotated[
        str, typer.Option(help="charge, platform, requests, input_tokens, output_tokens, cache_hits, group")
    ] = "charge"
    top: Annotated[int | None, typer.Option(help="rows to show; the others are added up")] = None
    compare: Annotated[bool, typer.Option("--compare", help="with the month, or the time, before")] = False
    units: Annotated[bool, typer.Option("--units", help="unit costs and cached shares")] = False
    end_users: Annotated[bool, typer.Option("--end-users", help="count them too; reads every attempt")] = (
        False
    )
    chart: Annotated[bool, typer.Option("--chart", help="bars instead of columns")] = False


@reports.callback(
    invoke_without_command=True,
    epilog="Example: `tollgate report --by tenant,pool,task --from 2026-11-01 --compare`"
    " (or `tollgate report supply`)",
)
@with_options(selection=Selection, look=Look)
def report(context: typer.Context, *, selection: Selection, look: Look, as_machine: Json = False) -> None:
    """What was spent, and on what.

    Status 1 if the rows do not come to what the ledger has.
    """
    if context.invoked_subcommand is not None:
        if as_machine or selection.since or selection.until:
            raise InvalidRequest(f"Write the options after `{context.invoked_subcommand}`.")
        return
    start, end = period(selection.since, selection.until, Clock().now())
    asked = Asked(
        group_by=selection.dimensions,
        start=start,
        end=end,
        filters=selection.where or (),
        order=look.order,
        top=look.top,
        is_compared=look.compare,
        counts_end_users=look.end_users,
    )

    async def work(session: AsyncSession) -> SpendReport:
        return await make_report(session, asked)

    made = in_session(work)
    if as_machine:
        print_json(as_json(made, generated_at_ms=Clock().epoch_ms()))
    else:
        _say_what_it_is(made)
        _print_chart(made) if look.chart else _print_report(made, units=look.units or look.end_users)
        _say_where_it_is_from(made)
    if not made.is_footed:
        raise typer.Exit(1)


def _say_what_it_is(made: SpendReport) -> None:
    out.print(f"Spend from {made.start:%Y-%m-%d %H:%M} to {made.end:%Y-%m-%d %H:%M} UTC, in USD")
    for each in made.filters:
        shown = " or ".join(value or "none" for value in each.values)
        out.print(f"only {each.name} {shown}", highlight=False, markup=False)
    if made.before is not None:
        first, last = made.before
        out.print(f"compared with {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC", highlight=False)


def _print_report(made: SpendReport, *, units: bool) -> None:
    compared = made.before is not None
    _print_rows(
        made,
        lambda figures, before, _: _cells(figures, before if compared else None),
    )
    if units:
        out.print(
            "What a unit came to: the whole charge by requests, by tokens in, by tokens out", highlight=False
        )
        _print_rows(made, lambda figures, _, users: _unit_cells(figures, users))


_Cells = Callable[[SpendFigures, SpendFigures, int | None], list[tuple[str, str]]]
"""Titles and values of a row, of its figures, those before, and its end users."""


def _print_rows(made: SpendReport, cells: _Cells) -> None:
    """A table with a line for each row, for the others together, and for the total."""
    table = Table(show_footer=True, box=SIMPLE, padding=(0, 0, 0, 1), pad_edge=False)
    for name in made.group_by:
        table.add_column(name, overflow="fold", min_width=8)
    for title, cell in cells(made.total, made.previous_total, made.end_users_total):
        table.add_column(title, justify="right", no_wrap=True, footer=cell)
    if made.group_by:
        table.columns[0].footer = "total"
    for group, figures in made.rows:
        users = None if made.end_users is None else made.end_users.get(group, 0)
        row = cells(figures, made.previous.get(group, NOTHING), users)
        table.add_row(*map(Text, group), *(cell for _, cell in row))  # a name may look like markup
    if made.others_count:
        names = [f"{made.others_count} others", *[""] * (len(made.group_by) - 1)][: len(made.group_by)]
        row = cells(made.others, made.previous_others, None)
        table.add_row(*names, *(cell for _, cell in row), style="dim")
    out.print(table)


def _cells(figures: SpendFigures, previous: SpendFigures | None) -> list[tuple[str, str]]:
    fresh = figures.input_tokens + figures.cache_write_tokens
    charge = ("charge USD", usd_text(figures.charge_usd_nanos))
    if previous is not None:
        ratio = change_ratio(figures.charge_usd_nanos, previous.charge_usd_nanos)
        return [
            ("requests", f"{figures.requests:,}"),
            ("before", f"{previous.requests:,}"),
            charge,
            ("before", usd_text(previous.charge_usd_nanos)),
            ("change", "new" if ratio is None else _percent(ratio, signed=True)),
        ]
    return [
        ("requests", f"{figures.requests:,}"),
        ("input", f"{fresh:,}"),
        ("cached", f"{figures.cached_input_tokens:,}"),
        ("output", f"{figures.output_tokens_all:,}"),
        charge,
    ]


def _unit_cells(figures: SpendFigures, users: int | None) -> list[tuple[str, str]]:
    costs, parts = unit_costs(figures, end_users=users), shares(figures)
    cells = [
        ("a request", _short(costs["usd_per_request"])),
        ("1M in", _short(costs["usd_per_million_input_tokens"])),
        ("1M out", _short(costs["usd_per_million_output_tokens"])),
        ("cache hits", _percent(parts["cache_hit_ratio"])),
        ("cached in", _percent(parts["cached_input_ratio"])),
    ]
    if users is not None:
        cells += [("users", f"{users:,}"), ("a user", _short(costs["usd_per_end_user"]))]
    return cells


def _short(usd: str | None) -> str:
    """To six places, or to cents where it is many."""
    if usd is None:
        return "-"
    amount = Decimal(usd)
    return f"{amount:,.2f}" if abs(amount) >= MANY_USD else f"{amount:.6f}"


def _percent(ratio: str | None, *, signed: bool = False) -> str:
    if ratio is None:
        return "-"
    return f"{float(ratio) * 100:{'+' if signed else ''}.1f} %"


def _print_chart(made: SpendReport) -> None:
    rows = [(" ".join(group), figures.charge_usd_nanos) for group, figures in made.rows]
    if any(name in PERIODS for name in made.group_by):
        rows.sort()
    if made.others_count:
        rows.append((f"{made.others_count} others", made.others.charge_usd_nanos))
    most = max((abs(amount) for _, amount in rows), default=0) or 1
    print_table(
        ("", "", "charge USD"),
        [(name, "█" * round(BAR_CHARS * abs(amount) / most), usd_text(amount)) for name, amount in rows],
    )
    out.print(f"total {usd_text(made.total.charge_usd_nanos)} USD", highlight=False)


def _say_where_it_is_from(made: SpendReport) -> None:
    total = made.total
    if total.failed_attempts or total.platform_usd_nanos:
        out.print(
            f"Not charged to tenants: {total.failed_attempts} failed attempts,"
            f" {usd_text(total.platform_usd_nanos)} USD on the platform's account."
        )
    if total.unpriced_attempts:
        out.print(f"Without a price, and in no amount: {total.unpriced_attempts} attempts.")
    for month, figures in made.corrections.items():
        out.print(
            f"Correction of {month}, which was closed: {figures.requests:,} requests,"
            f" {usd_text(figures.charge_usd_nanos)} USD, in these rows on the period's first day.",
            highlight=False,
        )
    for line in made.adjustments:
        about = f" of {line.charge_month}" if line.charge_month else ""
        out.print(
            f"Beside them: {line.kind}{about} for {line.tenant_id}, {usd_text(line.amount_usd_nanos)} USD.",
            highlight=False,
            markup=False,
        )
    if made.adjustments:
        due = made.total.charge_usd_nanos + made.adjustments_usd_nanos
        out.print(f"Due, all together: {usd_text(due)} USD.", highlight=False)
    facts = made.facts
    if facts is not None and facts.unallocated_usd_nanos:
        out.print(f"Booked on nobody's account yet: {usd_text(facts.unallocated_usd_nanos)} USD.")
    if facts is not None and facts.high_water is not None:
        prices = "prices" if facts.are_prices_used else "prices known by then"
        out.print(
            f"Ledger up to {facts.high_water}; {len(facts.price_versions)} {prices};"
            f" control total {usd_text(made.control.charge_usd_nanos)} USD.",
            style="dim",
            highlight=False,
        )
    if not made.is_footed:
        out.print(
            "These rows do not come to what the ledger has: `tollgate audit` says which book is wrong.",
            style="red",
        )
