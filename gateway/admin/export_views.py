"""How do schedules of exports look outside?"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.views import moment, optional_moment
from gateway.ledger.export_schedules import files_of, wanted_text
from gateway.ledger.tables import ExportFile, ExportSchedule
from gateway.money import usd_text

FILES_SHOWN = 12


class ExportFileView(BaseModel):
    """A file that was written."""

    period_start: datetime
    place: str
    rows: int
    bytes: int
    sha256: str
    control_total_usd: str
    ledger_high_water: str | None
    at: datetime
    is_final: bool = Field(description="its period is closed; the others are provisional")


class ScheduleView(BaseModel):
    """An export that is written by the calendar."""

    id: str
    name: str
    every: str = Field(description="day, week or month, in UTC")
    format: str
    what: str
    to: str = Field(description="a folder, or s3://bucket/prefix")
    endpoint_url: str | None
    delay_s: int
    begins: datetime
    created_at: datetime
    removed_at: datetime | None
    files: list[ExportFileView] = Field(description="the last ones, the newest period first")


class SchedulesView(BaseModel):
    """Schedules, the oldest first."""

    schedules: list[ScheduleView]


async def schedule_views(session: AsyncSession, rows: Sequence[ExportSchedule]) -> list[ScheduleView]:
    """Schedules with what they have written."""
    files = await files_of(session, [row.id for row in rows])
    return [schedule_view(row, [each for each in files if each.schedule_id == row.id]) for row in rows]


def schedule_view(row: ExportSchedule, files: Sequence[ExportFile]) -> ScheduleView:
    """A schedule."""
    return ScheduleView(
        id=row.id,
        name=row.name,
        every=row.every,
        format=row.format,
        what=wanted_text(row),
        to=row.target,
        endpoint_url=row.endpoint_url,
        delay_s=row.delay_s,
        begins=moment(row.from_ms),
        created_at=moment(row.created_at_ms),
        removed_at=optional_moment(row.retired_at_ms),
        files=[
            ExportFileView(
                period_start=moment(file.period_start_ms),
                place=file.place,
                rows=file.rows,
                bytes=file.bytes,
                sha256=file.sha256,
                control_total_usd=usd_text(file.control_usd_nanos),
                ledger_high_water=file.high_water,
                at=moment(file.at_ms),
                is_final=file.is_final,
            )
            for file in files[:FILES_SHOWN]
        ],
    )
