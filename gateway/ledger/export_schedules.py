"""Which exports are written by the calendar, and which files are there? Their SQL; flushes, never commits.

A schedule writes a file for every day, week or month (UTC) that is over, a while after its end, so that what
gateways still had in their spools is in it. What was written is remembered: a period is written once, and
nothing of before the schedule was made unless it says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway import audit
from gateway.audit import Act
from gateway.db import insert_ignoring_duplicates
from gateway.errors import Conflict, InvalidRequest, NotFound
from gateway.inference import new_id
from gateway.ledger.cuts import (
    MS_PER_DAY,
    PERIODS,
    epoch_ms,
    moment_of,
    next_start,
    period_bounds,
    period_text,
)
from gateway.ledger.exports import Export, Footing, format_of
from gateway.ledger.focus_terms import FocusTerms
from gateway.ledger.tables import ExportFile, ExportSchedule

DELAY_S = 7_200
"""Longer than any spool takes to be shipped that is ever shipped on the same day."""
DELAY_S_MAX = 31 * 86_400
FILES_A_LOOK = 400
"""A year of days."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class NewSchedule:
    """A schedule to be made."""

    name: str
    every: str
    wanted: Export
    """Its bounds do not matter."""
    target: str
    endpoint_url: str | None = None
    delay_s: int = DELAY_S
    since_ms: int | None = None
    """The first period that it writes is the one around this instant; None: around now."""


@dataclass(frozen=True, slots=True)
class DueFile:
    """A file that is to be written."""

    schedule: ExportSchedule
    start_ms: int
    end_ms: int

    @property
    def file_name(self) -> str:
        """Says what it is of; the same whenever it is written."""
        period = period_text(self.schedule.every, self.start_ms // MS_PER_DAY)
        word = "week-" if self.schedule.every == "week" else ""
        return f"{self.schedule.name}-{word}{period}{format_of(self.schedule.format).suffix}"

    @property
    def export(self) -> Export:
        """What is in it."""
        return Export(
            format=self.schedule.format,
            start_ms=self.start_ms,
            end_ms=self.end_ms,
            **{
                **self.schedule.wanted,
                "group_by": tuple(self.schedule.wanted["group_by"]),
                "focus": msgspec.convert(self.schedule.wanted.get("focus", {}), FocusTerms),
            },
        )


async def create_schedule(session: AsyncSession, new: NewSchedule, *, act: Act) -> ExportSchedule:
    """A new schedule.

    Raises:
        InvalidRequest: a name, period, format, dimension or filter that is none.
        Conflict: the name is taken.
    """
    if not _NAME.fullmatch(new.name):
        raise InvalidRequest(
            "A schedule's name becomes the name of files: 1 to 64 letters, digits, dots, dashes or"
            f" underscores, not {new.name[:80]!r}.",
            param="name",
        )
    if new.every not in PERIODS:
        raise InvalidRequest(f"`every` is {', '.join(PERIODS)}, not {new.every[:40]!r}.", param="every")
    if not 0 <= new.delay_s <= DELAY_S_MAX:
        raise InvalidRequest("The delay is 0 seconds to 31 days.", param="delay")
    new.wanted.check()
    taken = await session.execute(select(col(ExportSchedule.id)).where(col(ExportSchedule.name) == new.name))
    conflict = (
        f"There is an export schedule {new.name!r} already, perhaps a removed one; choose another name."
    )
    if taken.first() is not None:
        raise Conflict(conflict)
    since_ms = act.at_ms if new.since_ms is None else new.since_ms
    row = ExportSchedule(
        id=new_id("exp_", act.at_ms),
        name=new.name,
        every=new.every,
        format=new.wanted.format,
        wanted={
            "rows": new.wanted.rows,
            "group_by": list(new.wanted.group_by),
            "filters": list(new.wanted.filters),
            "is_formula_safe": new.wanted.is_formula_safe,
            "focus": msgspec.to_builtins(new.wanted.focus),
        },
        target=new.target,
        endpoint_url=new.endpoint_url,
        delay_s=new.delay_s,
        from_ms=period_bounds(new.every, period_text(new.every, since_ms // MS_PER_DAY))[0],
        created_at_ms=act.at_ms,
    )
    await audit.write(session, act, "export_schedule.create", row=row, conflict=conflict)
    return row


async def retire_schedule(session: AsyncSession, name_or_id: str, *, act: Act) -> ExportSchedule:
    """Let it write nothing any more; its files stay. Retiring twice keeps the first instant.

    Raises:
        NotFound: no such schedule.
    """
    found = await session.execute(
        select(ExportSchedule)
        .where((col(ExportSchedule.name) == name_or_id) | (col(ExportSchedule.id) == name_or_id))
        .with_for_update()
    )
    row = found.scalars().first()
    if row is None:
        raise NotFound(
            f"No export schedule {name_or_id[:128]!r}; `tollgate export schedule list` shows the known ones."
        )
    if row.retired_at_ms is None:
        changes = {"retired_at_ms": act.at_ms}
        await audit.write(session, act, "export_schedule.retire", row=row, changes=changes)
    return row


async def list_schedules(session: AsyncSession, *, with_retired: bool = False) -> list[ExportSchedule]:
    """Schedules, the oldest first."""
    statement = select(ExportSchedule).order_by(col(ExportSchedule.created_at_ms), col(ExportSchedule.id))
    if not with_retired:
        statement = statement.where(col(ExportSchedule.retired_at_ms).is_(None))
    return list((await session.execute(statement)).scalars())


async def files_of(session: AsyncSession, schedule_ids: Sequence[str]) -> list[ExportFile]:
    """What they have written, the newest period first."""
    found = await session.execute(
        select(ExportFile)
        .where(col(ExportFile.schedule_id).in_(schedule_ids))
        .order_by(col(ExportFile.period_start_ms).desc(), col(ExportFile.schedule_id))
    )
    return list(found.scalars())


async def due_files(session: AsyncSession, *, now_ms: int) -> list[DueFile]:
    """What is to be written now, the oldest period of each schedule first."""
    due: list[DueFile] = []
    for schedule in await list_schedules(session):
        found = await session.execute(
            select(col(ExportFile.period_start_ms)).where(col(ExportFile.schedule_id) == schedule.id)
        )
        written = set(found.scalars())
        start = moment_of(schedule.from_ms)
        limit = moment_of(now_ms) - timedelta(seconds=schedule.delay_s)
        while (end := next_start(schedule.every, start)) <= limit and len(due) < FILES_A_LOOK:
            if epoch_ms(start) not in written:
                due.append(DueFile(schedule, epoch_ms(start), epoch_ms(end)))
            start = end
    return due


async def note_file(session: AsyncSession, due: DueFile, footing: Footing, *, now_ms: int) -> None:
    """Remember that a file is there; saying it twice changes nothing."""
    row = {
        "schedule_id": due.schedule.id,
        "period_start_ms": due.start_ms,
        "place": footing.place or "",
        "rows": footing.rows,
        "bytes": footing.bytes or 0,
        "sha256": footing.sha256 or "",
        "control_usd_nanos": footing.amounts.total_usd_nanos,
        "high_water": footing.high_water,
        "at_ms": now_ms,
    }
    await insert_ignoring_duplicates(session, ExportFile, [row])


def wanted_text(schedule: ExportSchedule) -> str:
    """What a schedule exports, for people."""
    wanted = msgspec.convert(
        {**schedule.wanted, "format": schedule.format, "start_ms": 0, "end_ms": 1}, Export
    )
    by = "attempts" if wanted.rows == "attempts" else f"by {','.join(wanted.group_by) or 'nothing'}"
    return " ".join([by, *(f"where {each}" for each in wanted.filters)])
