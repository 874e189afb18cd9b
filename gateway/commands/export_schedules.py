"""`tollgate export schedule`: which files are written by the calendar?"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.export_views import ScheduleView, schedule_view, schedule_views
from gateway.admin.views import epoch_ms_of, instant
from gateway.clock import Clock
from gateway.commands.export_focus import Focus, Side, Version, terms_of_focus
from gateway.commands.options import with_options
from gateway.commands.report import By, Where
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
from gateway.errors import InvalidRequest
from gateway.jobs.export_targets import check_target
from gateway.jobs.scheduled_exports import exports_scheduler
from gateway.ledger.export_schedules import (
    DELAY_S,
    NewSchedule,
    create_schedule,
    due_files,
    list_schedules,
    retire_schedule,
)
from gateway.ledger.exports import FORMATS, Export
from gateway.ledger.supply_terms import terms_of
from gateway.schema import require_current
from gateway.settings import load_settings

schedules = typer.Typer(help="Exports that are written by the calendar.", no_args_is_help=True)


@dataclass(frozen=True, slots=True)
class Content:
    """What is in the files."""

    file_format: Annotated[str, typer.Option("--format", help=f"one of {', '.join(FORMATS)}")] = "csv"
    by: By = "tenant"
    rows: Annotated[str, typer.Option(help="groups, or attempts")] = "groups"
    where: Where = None
    raw: Annotated[bool, typer.Option("--raw", help="leave text that looks like a formula")] = False
    focus_version: Version = "1.2"
    side: Side = "demand"

    @property
    def export(self) -> Export:
        """Of any period.

        Raises:
            InvalidRequest: there are no such rows.
        """
        if self.rows not in {"attempts", "groups"}:
            raise InvalidRequest(f"--rows is groups or attempts, not {self.rows[:40]!r}.")
        return Export(
            format=self.file_format,
            start_ms=0,
            end_ms=1,
            rows="attempts" if self.rows == "attempts" else "groups",
            group_by=tuple(each.strip() for each in self.by.split(",")) if self.by.strip() else (),
            filters=tuple(self.where or ()),
            is_formula_safe=not self.raw,
            focus=terms_of_focus(Focus(self.focus_version, self.side), self.file_format),
        )


@schedules.command(
    "add",
    epilog="Example: `tollgate export schedule add finance --every month --format xlsx --by tenant,model"
    " --to /srv/exports`",
)
@with_options(content=Content)
def add(
    name: Annotated[str, typer.Argument(help="what people call it; begins the names of its files")],
    every: Annotated[str, typer.Option(help="day, week or month, in UTC")],
    to: Annotated[str, typer.Option(help="a folder, or s3://bucket/prefix")],
    *,
    content: Content,
    since: Annotated[
        str | None, typer.Option("--from", help="begin with the period around this instant; default: now")
    ] = None,
    delay_s: Annotated[int, typer.Option("--delay", help="seconds after a period's end")] = DELAY_S,
    endpoint_url: Annotated[
        str | None, typer.Option("--endpoint-url", help="of S3-compatible storage that is not AWS's")
    ] = None,
    as_machine: Json = False,
) -> None:
    """Write a file of every day, week or month; credentials are boto3's (AWS_ACCESS_KEY_ID and so on).

    Until its month is closed a file is NAME-PERIOD.provisional and written again once a day if something was
    booked; then it is NAME-PERIOD, once and for ever. NAME.about.json beside it says what it is of.
    """
    act = act_of_the_user()
    check_target(to, endpoint_url)
    new = NewSchedule(
        name=name,
        every=every,
        wanted=content.export,
        target=to,
        endpoint_url=endpoint_url,
        delay_s=delay_s,
        since_ms=epoch_ms_of(instant(since, "--from"), "--from"),
    )

    async def work(session: AsyncSession) -> ScheduleView:
        return schedule_view(await create_schedule(session, new, act=act), [])

    view = in_session(work)
    print_json(view) if as_machine else print_fields(view)


@schedules.command("list", epilog="Example: `tollgate export schedule list`")
def list_all(
    *,
    with_removed: Annotated[bool, typer.Option("--with-removed", help="removed ones too")] = False,
    as_machine: Json = False,
) -> None:
    """Show schedules and the last files that they wrote."""

    async def work(session: AsyncSession) -> list[ScheduleView]:
        return await schedule_views(session, await list_schedules(session, with_retired=with_removed))

    views = in_session(work)
    if as_machine:
        print_json(views)
        return
    rows: list[tuple[Any, ...]] = []
    for view in views:
        last = view.files[0] if view.files else None
        rows.append(
            (
                view.name,
                view.every if view.removed_at is None else f"{view.every}, removed",
                view.format,
                view.what,
                view.to,
                "" if last is None else last.place,
                "" if last is None else last.at,
            )
        )
    print_table(("name", "every", "format", "what", "to", "last file", "written"), rows)


@schedules.command("remove", epilog="Example: `tollgate export schedule remove finance`")
def remove(name: Annotated[str, typer.Argument(help="name or id")], *, as_machine: Json = False) -> None:
    """Let a schedule write nothing any more; its files stay."""
    act = act_of_the_user()

    async def work(session: AsyncSession) -> ScheduleView:
        row = await retire_schedule(session, name, act=act)
        return (await schedule_views(session, [row]))[0]

    view = in_session(work)
    print_json(view) if as_machine else out.print(f"{view.name} writes nothing any more.")


@schedules.command("run", epilog="Example: `tollgate export schedule run`")
def run(*, as_machine: Json = False) -> None:
    """Write what is due now, as a running gateway does by itself; status 1 if something is left."""
    settings = load_settings()
    url, clock = settings.effective_database_url, Clock()
    specs = load_pool_files(settings)
    terms = terms_of(specs)

    async def names_of_due(sessions: SessionFactory) -> list[str]:
        async with sessions() as session:
            due = await due_files(session, now_ms=await database_ms(session, clock), terms=terms)
        return [each.file_name for each in due]

    async def work() -> tuple[list[str], list[str]]:
        engine = create_engine(url)
        try:
            await require_current(engine)
            sessions = session_factory(engine)
            before = await names_of_due(sessions)
            if before:
                holder = f"cli-{act_of_the_user().actor.name}"
                desk = exports_scheduler(
                    sessions, clock, database_url=url, specs=specs, holder=holder, every_s=0
                )
                await desk.look()
            left = await names_of_due(sessions)
        finally:
            await engine.dispose()
        return [name for name in before if name not in left], left

    written, left = asyncio.run(work())
    if as_machine:
        print_json({"written": written, "left": left, "at": clock.now()})
    else:
        for name in written:
            out.print(f"{name} is written.", highlight=False)
        for name in left:
            out.print(f"{name} is not written: another process is at it, or see the line above.")
        if not written and not left:
            out.print("Nothing is due.")
    if left:
        raise typer.Exit(1)
