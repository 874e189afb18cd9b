"""`tollgate report supply`: what did supply cost, who used it, and was it recovered?"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.spend import period
from gateway.admin.supply_views import supply_view
from gateway.clock import Clock, instant_text
from gateway.commands.report import reports
from gateway.commands.terminal import Json, in_session, load_pool_files, out, print_json
from gateway.db import database_ms
from gateway.ledger.supply import LineKind
from gateway.ledger.supply_report import PoolSupply, SupplyFigures, SupplyReport, supply_report
from gateway.ledger.supply_terms import terms_of
from gateway.money import usd_text
from gateway.settings import load_settings
from gateway.spend_names import read_names

__all__ = ["reports"]

_MS_PER_HOUR = 3_600_000
_KINDS = {
    LineKind.REQUEST: "requests",
    LineKind.FAILED: "failed attempts",
    LineKind.WARM_UP: "starts and warm-ups",
    LineKind.HEARTBEAT: "heartbeats",
    LineKind.EVALUATION: "evaluations",
    LineKind.IDLE: "idle",
    LineKind.ASLEEP: "asleep",
    LineKind.BROKEN: "hung, crashed",
    LineKind.UNUSED: "reserved, unused",
}


@reports.command(epilog="Example: `tollgate report supply --by tenant,pool --from 2026-11-01`")
def supply(
    by: Annotated[
        str, typer.Option(help="comma list: tenant, project, key, model, pool, task, day, week, month")
    ] = "pool",
    since: Annotated[
        str | None, typer.Option("--from", help="first instant, UTC, a whole hour; default: month start")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--to", help="first instant that does not count, a whole hour")
    ] = None,
    *,
    as_machine: Json = False,
) -> None:
    """What supply cost, who used it, and what charges recovered of it."""
    settings, clock = load_settings(), Clock()
    terms = terms_of(load_pool_files(settings))
    start, end = period(since, until, clock.now())

    async def work(session: AsyncSession) -> SupplyReport:
        return await supply_report(
            session,
            terms,
            group_by=[name.strip() for name in by.split(",")],
            start=start,
            end=end,
            now_ms=await database_ms(session, clock),
            names=await read_names(session),
        )

    made = in_session(work, settings)
    print_json(supply_view(made)) if as_machine else _print(made)


def _print(made: SupplyReport) -> None:
    out.print(f"Supply from {made.start:%Y-%m-%d %H:%M} to {made.end:%Y-%m-%d %H:%M} UTC")
    out.print(_bridge(made))
    out.print(_bills(made))
    for pool in made.pools.values():
        out.print(_about(pool), highlight=False)
    total = made.total
    recovery = total.charge_usd_nanos - made.bill_usd_nanos
    word = "over" if recovery >= 0 else "under"
    out.print(
        f"Charged {usd_text(total.charge_usd_nanos)} for a bill of {usd_text(made.bill_usd_nanos)} USD:"
        f" {word}-recovery of {usd_text(abs(recovery))}.",
        highlight=False,
    )
    if made.outside_charge_usd_nanos:
        out.print(
            f"Not here: {usd_text(made.outside_charge_usd_nanos)} USD charged for targets outside,"
            " whose cost is their provider's invoice.",
            highlight=False,
        )


def _table(titles: tuple[str, ...], *, right_from: int) -> Table:
    table = Table(show_footer=True, box=SIMPLE, padding=(0, 0, 0, 1), pad_edge=False)
    for index, title in enumerate(titles):
        table.add_column(title, justify="left" if index < right_from else "right", no_wrap=True)
    return table


def _bridge(made: SupplyReport) -> Table:
    titles = ("engine s", "tokens", "cost: usage", "cost: allocated", "charge", "over/under", "$/M tokens")
    table = _table((*made.group_by, *titles), right_from=len(made.group_by))
    for group, figures in made.rows.items():
        table.add_row(*group, *_cells(figures))
    cells = ["total", *[""] * (len(made.group_by) - 1), *_cells(made.total)]
    for column, cell in zip(table.columns, cells, strict=True):
        column.footer = cell
    return table


def _cells(figures: SupplyFigures) -> list[str]:
    per_million = figures.usd_nanos_per_million()
    return [
        f"{figures.engine_us / 1e6:,.3f}",
        f"{figures.tokens:,}",
        usd_text(figures.usage_usd_nanos),
        usd_text(figures.allocated_usd_nanos),
        usd_text(figures.charge_usd_nanos),
        usd_text(figures.recovery_usd_nanos),
        "" if per_million is None else usd_text(per_million),
    ]


def _bills(made: SupplyReport) -> Table:
    table = _table(("bill by use, USD", *made.pools, "all"), right_from=1)
    for kind, amount in made.lines.items():
        table.add_row(
            _KINDS[kind], *(usd_text(pool.lines[kind]) for pool in made.pools.values()), usd_text(amount)
        )
    bills = [usd_text(pool.bill_usd_nanos) for pool in made.pools.values()]
    for column, cell in zip(table.columns, ["bill", *bills, usd_text(made.bill_usd_nanos)], strict=True):
        column.footer = cell
    return table


def _about(pool: PoolSupply) -> str:
    hours = pool.time.billed_ms / _MS_PER_HOUR
    ratio = pool.utilisation_ratio
    used = "nothing paid for" if ratio is None else f"{100 * ratio:.1f} % of it busy"
    prices = "; ".join(
        f"{usd_text(nanos)} USD/h {kind.replace('_', ' ')}"
        + (f" since {instant_text(since_ms)}" if since_ms else "")
        for since_ms, kind, nanos in sorted(pool.prices)
    )
    gpus = "" if not pool.gpus_per_replica else f" ({hours * pool.gpus_per_replica:,.4f} GPU-hours)"
    late = "" if not pool.corrections_usd_nanos else f"; corrections {usd_text(pool.corrections_usd_nanos)}"
    return (
        f"{pool.pool}: {hours:,.4f} replica-hours{gpus} by {pool.time_source}, {used}; {prices};"
        f" {pool.frozen_hours} hours frozen, {pool.open_hours} open{late}"
    )
