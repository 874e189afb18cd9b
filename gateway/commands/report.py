"""`tollgate report`: what was spent, and on what?"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.spend import as_json, names_of, period
from gateway.clock import Clock
from gateway.commands.terminal import Json, in_session, out, print_json
from gateway.errors import InvalidRequest
from gateway.identity.key_store import list_keys
from gateway.ledger.reports import SpendFigures, SpendReport, spend_report
from gateway.money import usd_text

reports = typer.Typer()


@reports.callback(
    invoke_without_command=True,
    epilog="Example: `tollgate report --by tenant,pool,task --from 2026-11-01` (or `tollgate report supply`)",
)
def report(
    context: typer.Context,
    by: Annotated[
        str, typer.Option(help="comma list: tenant, project, key, model, pool, task, day, …")
    ] = "tenant",
    since: Annotated[
        str | None, typer.Option("--from", help="first instant, UTC; default: month start")
    ] = None,
    until: Annotated[str | None, typer.Option("--to", help="first instant that does not count")] = None,
    *,
    as_machine: Json = False,
) -> None:
    """What was spent, and on what."""
    if context.invoked_subcommand is not None:
        if as_machine or since or until:
            raise InvalidRequest(f"Write the options after `{context.invoked_subcommand}`.")
        return
    start, end = period(since, until, Clock().now())

    async def work(session: AsyncSession) -> SpendReport:
        names = names_of(await list_keys(session))
        group_by = [name.strip() for name in by.split(",")]
        return await spend_report(session, group_by=group_by, start=start, end=end, names=names)

    made = in_session(work)
    if as_machine:
        print_json(as_json(made))
    else:
        _print_report(made)


def _print_report(made: SpendReport) -> None:
    table = Table(show_footer=True, box=SIMPLE, padding=(0, 0, 0, 1), pad_edge=False)
    for name in made.group_by:
        table.add_column(name, overflow="fold")
    for index, title in enumerate(("requests", "input", "cached", "output", "charge USD")):
        table.add_column(title, justify="right", no_wrap=True, footer=_cells(made.total)[index])
    if made.group_by:
        table.columns[0].footer = "total"
    for group, figures in made.rows:
        table.add_row(*group, *_cells(figures))
    out.print(f"Spend from {made.start:%Y-%m-%d %H:%M} to {made.end:%Y-%m-%d %H:%M} UTC")
    out.print(table)
    total = made.total
    if total.failed_attempts or total.platform_usd_nanos:
        out.print(
            f"Not charged to tenants: {total.failed_attempts} failed attempts,"
            f" {usd_text(total.platform_usd_nanos)} USD on the platform's account."
        )


def _cells(figures: SpendFigures) -> list[str]:
    output = figures.output_tokens + figures.reasoning_tokens
    tokens = (figures.input_tokens + figures.cache_write_tokens, figures.cached_input_tokens, output)
    return [f"{figures.requests:,}", *(f"{count:,}" for count in tokens), usd_text(figures.charge_usd_nanos)]
