"""`tollgate audit days`: is every day the sum of its attempts, and how is it made again?"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.audit_views import DayApartView, DaysView, day_apart_view
from gateway.admin.views import epoch_ms_of, instant
from gateway.commands.terminal import Json, in_session, out, print_json, print_table
from gateway.errors import InvalidRequest
from gateway.ledger.cuts import MS_PER_DAY, period_text
from gateway.ledger.day_sums import Apart, Made, days_apart, days_with_usage, rebuild_day
from gateway.ledger.invariants import take_snapshot

EXAMPLE = "Example: `tollgate audit days --from 2026-11-01`, then `tollgate audit days --rebuild`"
_APART = "apart"
_LEFT_ALONE = {
    Made.HOURS_WRONG: "hours wrong: left alone, its hours are not the sums of its attempts either; see"
    " `tollgate audit`.",
    Made.SEALED: "sealed: left alone, its month is closed with other figures; see `tollgate period verify`.",
}


def audit_days(
    since: Annotated[
        str | None, typer.Option("--from", help="first day, UTC; default: the first one")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--to", help="first day that is not looked at; default: none")
    ] = None,
    *,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="make again, from its attempts, every day that is not their sum")
    ] = False,
    as_machine: Json = False,
) -> None:
    """Compare the daily sums with the attempts; status 1 if a day stays apart.

    A gateway from before migration 0018 books no days: stop it, then --rebuild. Gateways may go on booking.
    """
    first, end = _day_of(since, "--from"), _day_of(until, "--to")
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:

        async def work(session: AsyncSession) -> DaysView:
            await take_snapshot(session)
            known = await days_with_usage(session)
            days = range(
                known.start if first is None else max(first, known.start),
                known.stop if end is None else min(end, known.stop),
            )
            apart = await _look(session, days, progress=progress)
            await session.commit()
            if rebuild:
                outcomes = await _rebuild(session, apart, progress=progress)
            else:
                outcomes = [day_apart_view(each, _APART) for each in apart]
            return _view(days, outcomes)

        view = in_session(work)
    print_json(view) if as_machine else _print(view, is_rebuilding=rebuild)
    if not view.is_right:
        raise typer.Exit(1)


def _day_of(text: str | None, name: str) -> int | None:
    """A day since 1970.

    Raises:
        InvalidRequest: it is none.
    """
    moment = instant(text, name)
    if moment is None:
        return None
    moment = moment.astimezone(UTC)
    if moment != datetime(moment.year, moment.month, moment.day, tzinfo=UTC):
        raise InvalidRequest(f"{name} takes a day, such as 2026-11-01, not {text!r}.", param=name)
    return (epoch_ms_of(moment, name) or 0) // MS_PER_DAY


async def _look(session: AsyncSession, days: range, *, progress: Progress) -> list[Apart]:
    task = progress.add_task("Comparing days with their attempts", total=len(days))
    found: list[Apart] = []
    async for _, apart in days_apart(session, days):
        found += apart
        progress.advance(task)
    return found


async def _rebuild(session: AsyncSession, apart: list[Apart], *, progress: Progress) -> list[DayApartView]:
    task = progress.add_task("Making days again", total=len(apart))
    outcomes: list[DayApartView] = []
    for each in apart:
        made = await rebuild_day(session, each.day, each.tenant_id)
        await session.commit()
        outcomes.append(day_apart_view(each, made.value))
        progress.advance(task)
    return outcomes


def _view(days: range, outcomes: list[DayApartView]) -> DaysView:
    return DaysView(
        first_day=period_text("day", days.start) if days else None,
        last_day=period_text("day", days.stop - 1) if days else None,
        days=len(days),
        is_right=all(one.outcome != _APART and Made(one.outcome).is_right for one in outcomes),
        apart=outcomes,
    )


def _print(view: DaysView, *, is_rebuilding: bool) -> None:
    extent = f"{view.first_day} to {view.last_day}" if view.days else "none: there is no usage"
    out.print(f"Days {extent}, {view.days} in all", highlight=False)
    if view.apart:
        print_table(
            ("day", "tenant", "attempts kept", "attempts", "USD kept", "USD", "now"),
            [
                (
                    *(one.day, one.tenant_id, f"{one.attempts_kept:,}", f"{one.attempts:,}"),
                    *(one.charge_kept_usd, one.charge_usd, one.outcome.replace("_", " ")),
                )
                for one in view.apart
            ],
        )
    for outcome in sorted({one.outcome for one in view.apart} & set(_LEFT_ALONE)):
        out.print(_LEFT_ALONE[Made(outcome)], markup=False)
    if view.is_right:
        out.print("Every day is the sum of its attempts.")
    elif not is_rebuilding:
        out.print(
            "Stop gateways from before migration 0018, which book no days; then"
            " `tollgate audit days --rebuild` makes these again.",
            markup=False,
        )
