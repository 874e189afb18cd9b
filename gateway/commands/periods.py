"""`tollgate period`: which months are closed, and are they what they were?"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.period_views import (
    PeriodView,
    closed_view,
    closing_view,
    period_view,
    verification_view,
)
from gateway.clock import Clock
from gateway.closing import BooksAreWrong, Check, Closing, Wish, close_period, report_of, verify_period
from gateway.commands.terminal import (
    Json,
    act_of_the_user,
    in_session,
    load_pool_files,
    out,
    print_fields,
    print_json,
    print_table,
)
from gateway.db import SessionFactory, create_engine, database_ms, session_factory
from gateway.errors import Conflict
from gateway.identity.root_key import load_root_keys
from gateway.ledger.period_tables import ClosedPeriod
from gateway.ledger.periods import list_periods, month_named, require_closed
from gateway.ledger.spool_look import attempts_in_spools
from gateway.ledger.supply_terms import terms_of
from gateway.schema import require_current
from gateway.seals import Signer
from gateway.settings import load_settings

periods = typer.Typer(help="Months that are closed for ever.", no_args_is_help=True)
Period = Annotated[str, typer.Argument(metavar="MONTH", help="a UTC month, such as 2026-10")]
T = TypeVar("T")
_SHA_CHARS = 16


def with_sessions(work: Callable[[SessionFactory], Awaitable[T]]) -> T:
    """Run work that needs several transactions."""

    async def run() -> T:
        engine = create_engine(load_settings().effective_database_url)
        try:
            await require_current(engine)
            return await work(session_factory(engine))
        finally:
            await engine.dispose()

    return asyncio.run(run())


@periods.command(epilog="Example: `tollgate period close 2026-10`")
def close(
    period: Period,
    *,
    now: Annotated[
        bool, typer.Option("--now", help="although usage may still arrive: it becomes a correction")
    ] = False,
    as_machine: Json = False,
) -> None:
    """Close a month for ever: checks the books, freezes, hashes and signs; status 1 if it may not be."""
    settings, month = load_settings(), month_named(period)
    wish = Wish(
        month,
        act_of_the_user(),
        grace_ms=int(settings.periods.grace_s * 1000),
        is_early=now,
        terms=terms_of(load_pool_files(settings)),
        in_spools=frozenset(attempts_in_spools(settings.state_dir / "spool", before_ms=month.end_ms)),
        slice_grace_ms=int(settings.budgets.slice_grace_s * 1000),
    )
    signer = Signer(load_root_keys(settings))

    async def work(sessions: SessionFactory) -> Closing:
        return await close_period(sessions, wish, signer=signer, clock=Clock())

    try:
        made = with_sessions(work)
    except (Conflict, BooksAreWrong) as error:
        sys.stderr.write(f"tollgate: {error}\n")
        raise typer.Exit(1) from None
    view = closing_view(made)
    if as_machine:
        print_json(view)
        return
    for warning in made.warnings:
        out.print(f"Warning: {warning}.", markup=False, highlight=False)
    out.print(f"{period} {'is closed' if made.is_new else 'was closed already'}.", highlight=False)
    print_fields(_short(closed_view(made.period)))


def _short(view: PeriodView) -> PeriodView:
    return view.model_copy(update={"seal": None})


@periods.command("list", epilog="Example: `tollgate period list`")
def list_all(*, as_machine: Json = False) -> None:
    """Every month since the first one with usage, and how it stands."""
    settings, clock = load_settings(), Clock()
    grace_ms = int(settings.periods.grace_s * 1000)

    async def work(session: AsyncSession) -> list[PeriodView]:
        now_ms = await database_ms(session, clock)
        return [period_view(each) for each in await list_periods(session, now_ms=now_ms, grace_ms=grace_ms)]

    views = in_session(work, settings)
    if as_machine:
        print_json(views)
        return
    print_table(
        ("period", "state", "closed at", "by", "charge USD", "adjustments", "supply USD", "report's SHA-256"),
        [
            (
                *(each.period, each.state, each.closed_at, each.closed_by, each.charge_usd),
                *(each.adjustments_usd, each.supply_usd, (each.report_sha256 or "")[:_SHA_CHARS]),
            )
            for each in views
        ],
    )


@periods.command(epilog="Example: `tollgate period show 2026-10 --report > 2026-10.json`")
def show(
    period: Period,
    *,
    report: Annotated[bool, typer.Option("--report", help="the closed report, byte for byte")] = False,
    as_machine: Json = False,
) -> None:
    """A closed month: totals, hashes and signature."""
    month = month_named(period)

    async def work(session: AsyncSession) -> ClosedPeriod:
        return await require_closed(session, month)

    closed = in_session(work)
    if report:
        sys.stdout.buffer.write(report_of(closed))
        sys.stdout.buffer.flush()
        return
    view = closed_view(closed)
    print_json(view) if as_machine else print_fields(view)


@periods.command(epilog="Example: `tollgate period verify 2026-10`")
def verify(period: Period, *, as_machine: Json = False) -> None:
    """Read a closed month again from the attempts, and check hash, seal, signature and chain."""
    month, signer = month_named(period), Signer(load_root_keys(load_settings()))

    async def work(session: AsyncSession) -> list[Check]:
        return await verify_period(session, month, signer)

    view = verification_view(month, in_session(work))
    if as_machine:
        print_json(view)
    else:
        print_table(
            ("", "what must hold", ""),
            [("✓" if one.holds else "✗", one.what, one.why) for one in view.checks],
        )
        out.print(f"{period} is {'what it was' if view.is_right else 'not what it was'}.", highlight=False)
    if not view.is_right:
        raise typer.Exit(1)


@periods.command(epilog="Example: `tollgate period reopen 2026-10` (status 1: it is refused)")
def reopen(period: Period) -> None:
    """Refused: a closed month stays closed; corrections are made in the open one."""
    month = month_named(period)

    async def work(session: AsyncSession) -> ClosedPeriod:
        return await require_closed(session, month)

    in_session(work)
    sys.stderr.write(
        f"tollgate: {month.id} is closed for ever. What is wrong in it is corrected in the open period:"
        " `tollgate period correct --help`.\n"
    )
    raise typer.Exit(1)
