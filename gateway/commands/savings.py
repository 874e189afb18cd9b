"""`tollgate report savings`: what was saved, and how sure is that?"""

from __future__ import annotations

from typing import Annotated

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.savings_views import NOTE, savings_view
from gateway.admin.spend import period
from gateway.clock import Clock
from gateway.commands.supply import reports
from gateway.commands.terminal import Json, in_session, load_pool_files, out, print_json, print_table
from gateway.db import database_ms
from gateway.ledger.savings import Comparison, Line
from gateway.money import usd_text
from gateway.policy_life import active_policy
from gateway.savings import SavingsReport, savings_report
from gateway.settings import load_settings

__all__ = ["reports"]


@reports.command(epilog="Example: `tollgate report savings --from 2026-11-01 --to 2026-12-01`")
def savings(
    since: Annotated[
        str | None, typer.Option("--from", help="first instant, UTC, a whole hour; default: month start")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--to", help="first instant that does not count, a whole hour")
    ] = None,
    *,
    as_machine: Json = False,
) -> None:
    """What was saved against the baselines that the policy declares, and how sure that is."""
    settings, clock = load_settings(), Clock()
    specs = load_pool_files(settings)
    start, end = period(since, until, clock.now())

    async def work(session: AsyncSession) -> SavingsReport:
        policy = await active_policy(session, settings, specs)
        now_ms = await database_ms(session, clock)
        return await savings_report(session, policy, specs, start=start, end=end, now_ms=now_ms)

    made = in_session(work, settings)
    print_json(savings_view(made)) if as_machine else _print(made)


def _print(made: SavingsReport) -> None:
    span = f"{made.start:%Y-%m-%d %H:%M} to {made.end:%Y-%m-%d %H:%M} UTC"
    out.print(f"Savings from {span}, policy {made.policy_version}", highlight=False)
    for each in made.comparisons:
        _print_one(each)
    if not made.comparisons:
        out.print("Nothing is claimed: the policy declares no `baselines`.")
    out.print(NOTE, highlight=False)


def _print_one(made: Comparison) -> None:
    out.print(f"\nAgainst {made.name}: {made.method}", highlight=False)
    rows = [(line.what.value, usd_text(line.usd_nanos), _interval(line)) for line in made.lines]
    saved = usd_text(made.baseline_usd_nanos - made.actual_usd_nanos)
    print_table(
        ("", "saved USD", "between"),
        [
            ("baseline", usd_text(made.baseline_usd_nanos), ""),
            *rows,
            ("saved in all", saved, ""),
            ("actual", usd_text(made.actual_usd_nanos), made.actual_is),
        ],
    )
    for line in made.lines:
        why = f" Not claimed: {line.why_not}." if line.why_not else ""
        out.print(
            f"  {line.what.value}: measured: {line.measured or 'nothing'};"
            f" modelled: {line.modelled or 'nothing'}.{why}",
            highlight=False,
            markup=False,
        )


def _interval(line: Line) -> str:
    if not line.is_claimed:
        return "not claimed"
    if line.low_usd_nanos is None or line.high_usd_nanos is None:
        return "unknown: nobody said how sure the constants are"
    return f"{usd_text(line.low_usd_nanos)} and {usd_text(line.high_usd_nanos)}"
