"""Which exports are written by the calendar, and which files are there? Their SQL; flushes, never commits.

A schedule writes files of every day, week or month (UTC). Until a period is closed, with its month, its file
is provisional, and its name says so: the first is written a while after the period's first day, so that what
gateways still had in their spools is in it, and after that once a day if something was booked since. When the
period is closed, the final file is written, once. The supply side waits until the last hour of its period is
shared out. What was written is remembered; nothing is written of before the schedule was made unless it says
so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import func, select
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
from gateway.ledger.late_usage import closed_until
from gateway.ledger.period_tables import Adjustment, LateHour
from gateway.ledger.periods import Month, missing_supply
from gateway.ledger.supply import Terms
from gateway.ledger.supply_tables import SupplyHour
from gateway.ledger.tables import ExportFile, ExportSchedule, SpendHour

DELAY_S = 7_200
"""Longer than any spool takes to be shipped that is ever shipped on the same day."""
DELAY_S_MAX = 31 * 86_400
PROVISIONAL = ".provisional"
AGAIN_MS = MS_PER_DAY
"""A provisional file is not written again sooner."""
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
    is_final: bool
    """Its period is closed."""
    booked: int
    """What its period had when it was found to be due; see `ExportFile`."""

    @property
    def file_name(self) -> str:
        """Says what it is of, and whether it may change; the same whenever it is written."""
        period = period_text(self.schedule.every, self.start_ms // MS_PER_DAY)
        word = "week-" if self.schedule.every == "week" else ""
        state = "" if self.is_final else PROVISIONAL
        return f"{self.schedule.name}-{word}{period}{state}{format_of(self.schedule.format).suffix}"

    @property
    def export(self) -> Export:
        """What is in it."""
        return _export_of(self.schedule, start_ms=self.start_ms, end_ms=self.end_ms)


def _export_of(schedule: ExportSchedule, *, start_ms: int, end_ms: int) -> Export:
    wanted = {**schedule.wanted, "format": schedule.format, "start_ms": start_ms, "end_ms": end_ms}
    return msgspec.convert(wanted, Export)


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
    """What they have written, the newest period and its last file first."""
    found = await session.execute(
        select(ExportFile)
        .where(col(ExportFile.schedule_id).in_(schedule_ids))
        .order_by(
            col(ExportFile.period_start_ms).desc(), col(ExportFile.at_ms).desc(), col(ExportFile.schedule_id)
        )
    )
    return list(found.scalars())


async def due_files(
    session: AsyncSession, *, now_ms: int, terms: Mapping[str, Terms] | None = None
) -> list[DueFile]:
    """What is to be written now, the oldest period of each schedule first.

    Args:
        session: where to ask.
        now_ms: the database's clock, epoch ms.
        terms: of the pools whose hours the supply side has to have.
    """
    due: list[DueFile] = []
    closed_ms = await closed_until(session)
    schedules = await list_schedules(session)
    share = max(1, FILES_A_LOOK // max(1, len(schedules)))
    for schedule in schedules:
        found = await session.execute(
            select(ExportFile)
            .where(col(ExportFile.schedule_id) == schedule.id)
            .order_by(col(ExportFile.at_ms))
        )
        written = {file.period_start_ms: file for file in found.scalars()}
        look = _Look(schedule, written, now_ms=now_ms, closed_ms=closed_ms, terms=terms or {})
        # A schedule whose target is away must not keep the others from being written.
        due += (await look.due(session))[:share]
    return due


@dataclass(frozen=True, slots=True, kw_only=True)
class _Period:
    start_ms: int
    end_ms: int


class _Look:
    """One look at one schedule."""

    def __init__(
        self,
        schedule: ExportSchedule,
        written: Mapping[int, ExportFile],
        *,
        now_ms: int,
        closed_ms: int,
        terms: Mapping[str, Terms],
    ) -> None:
        """Takes the newest file of each period."""
        self._schedule, self._written = schedule, written
        self._now_ms, self._closed_ms, self._terms = now_ms, closed_ms, terms
        self._is_supply = _export_of(schedule, start_ms=0, end_ms=1).is_supply

    async def due(self, session: AsyncSession) -> list[DueFile]:
        """What it has to write now."""
        asked = [each for each in self._periods() if self._may_be_due(each)]
        if not asked:
            return []
        booked = await _booked_by_day(session, asked[0].start_ms, is_supply=self._is_supply)
        due = []
        for each in asked:
            days = range(each.start_ms // MS_PER_DAY, each.end_ms // MS_PER_DAY)
            count = sum(booked.get(day, 0) for day in days)
            is_final = self._is_closed(each)
            file = self._written.get(each.start_ms)
            is_known = not is_final and file is not None and file.booked == count
            if not is_known and (is_final or await self._is_shared(session, each)):
                due.append(DueFile(self._schedule, each.start_ms, each.end_ms, is_final, count))
        return due

    def _periods(self) -> Iterator[_Period]:
        """Those that have begun and have no final file."""
        start = moment_of(self._schedule.from_ms)
        while epoch_ms(start) < self._now_ms:
            end = next_start(self._schedule.every, start)
            file = self._written.get(epoch_ms(start))
            if file is None or not file.is_final:
                yield _Period(start_ms=epoch_ms(start), end_ms=epoch_ms(end))
            start = end

    def _is_closed(self, period: _Period) -> bool:
        return period.end_ms <= self._closed_ms

    def _may_be_due(self, period: _Period) -> bool:
        if self._is_closed(period):
            return True
        file = self._written.get(period.start_ms)
        if file is not None and self._now_ms < file.at_ms + AGAIN_MS:
            return False
        # The supply side is written when it is whole; the others as they grow.
        first_ms = period.end_ms if self._is_supply else min(period.start_ms + MS_PER_DAY, period.end_ms)
        return self._now_ms >= first_ms + self._schedule.delay_s * 1000

    async def _is_shared(self, session: AsyncSession, period: _Period) -> bool:
        if not self._is_supply:
            return True
        span = Month("", period.start_ms, period.end_ms)
        return not await missing_supply(session, self._terms, span)


async def _booked_by_day(session: AsyncSession, start_ms: int, *, is_supply: bool) -> dict[int, int]:
    """How much is booked, by the day since 1970 on which it counts: it grows with every booking.

    Of the supply side pool-hours; otherwise adjustments and attempts, those that came late for a closed month
    where they count too.
    """
    columns: list[tuple[Any, Any]] = [(SupplyHour.hour_start_ms, func.count())]
    if not is_supply:
        columns = [
            (SpendHour.hour_start_ms, func.sum(col(SpendHour.attempts))),
            (LateHour.billed_in_ms, func.sum(col(LateHour.attempts))),
            (Adjustment.at_ms, func.count()),
        ]
    booked: Counter[int] = Counter()
    for instant, count in columns:
        day = (col(instant) // MS_PER_DAY).label("day")
        found = await session.execute(select(day, count).where(col(instant) >= start_ms).group_by(day))
        booked.update({int(at_day): int(number) for at_day, number in found})
    return booked


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
        "is_final": due.is_final,
        "booked": due.booked,
    }
    await insert_ignoring_duplicates(session, ExportFile, [row])


def wanted_text(schedule: ExportSchedule) -> str:
    """What a schedule exports, for people."""
    wanted = _export_of(schedule, start_ms=0, end_ms=1)
    by = "attempts" if wanted.rows == "attempts" else f"by {','.join(wanted.group_by) or 'nothing'}"
    return " ".join([by, *(f"where {each}" for each in wanted.filters)])
