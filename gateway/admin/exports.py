"""The ledger as a file: GET /admin/v1/exports.

A process of its own reads and writes; this one hands its bytes on, and kills it when the client leaves. What
is wrong with the question is said before anything is sent. If the child fails later, the connection is broken
off, so that half a file is never taken for a whole one.
"""

from __future__ import annotations

from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from gateway.admin.export_views import ScheduleView, schedule_views
from gateway.admin.spend import period
from gateway.admin.usage import Filters, GroupBy, Since, Until, dimensions_of
from gateway.dependencies import ServicesDep, SessionDep
from gateway.errors import GatewayError, InvalidRequest, NotFound, Overloaded
from gateway.jobs.export_child import Errand, Line
from gateway.jobs.scheduled_exports import first_line, start_child
from gateway.ledger.cuts import epoch_ms
from gateway.ledger.export_schedules import list_schedules
from gateway.ledger.exports import FORMATS, About, Export, format_of
from gateway.money import usd_text

PIECE_BYTES = 65_536
AT_ONCE_MAX = 2
"""Exports that one gateway makes at the same time."""
RETRY_AFTER_S = 30


class ExportFailed(RuntimeError):
    """The child ended before the file did: the connection is broken off."""


class Counter:
    """How many exports are made now."""

    def __init__(self) -> None:
        self._count = 0

    def take(self) -> None:
        """One more.

        Raises:
            Overloaded: there are enough.
        """
        if self._count >= AT_ONCE_MAX:
            raise Overloaded(
                f"This gateway makes {AT_ONCE_MAX} exports at a time, and is at it. Try again shortly.",
                retry_after_s=RETRY_AFTER_S,
            )
        self._count += 1

    def give_back(self) -> None:
        """It is over."""
        self._count -= 1


def exports_router() -> APIRouter:
    """The routes, with a count of what is under way."""
    counter = Counter()
    router = APIRouter(prefix="/admin/v1", tags=["exports"])

    @router.get(
        "/exports",
        summary="Spend, or every attempt, as a file",
        response_class=StreamingResponse,
        responses={200: {"content": {each.media_type: {} for each in FORMATS.values()}}},
    )
    async def export(
        services: ServicesDep,
        *,
        file_format: Annotated[
            str, Query(alias="format", description=f"one of {', '.join(FORMATS)}")
        ] = "csv",
        rows: Annotated[
            Literal["groups", "attempts"], Query(description="sums, or every attempt")
        ] = "groups",
        group_by: GroupBy = "tenant",
        since: Since = None,
        until: Until = None,
        filters: Filters = None,
        raw: Annotated[
            bool, Query(description="leave text as it is that a spreadsheet would take for a formula")
        ] = False,
    ) -> StreamingResponse:
        """A file, streamed; its control total is in `x-tollgate-control-total-usd`.

        Raises:
            InvalidRequest: an unknown format, dimension or filter, or an unreadable instant.
            NotFound: a filter names somebody who does not exist.
            Overloaded: too many exports at once.
        """
        start, end = period(since, until, services.clock.now())
        wanted = Export(
            format=file_format,
            start_ms=epoch_ms(start),
            end_ms=epoch_ms(end),
            rows=rows,
            group_by=tuple(dimensions_of(group_by)),
            filters=tuple(filters or ()),
            is_formula_safe=not raw,
        )
        wanted.check()
        counter.take()
        return await _answer(wanted, services.settings.effective_database_url, counter)

    @router.get("/exports/schedules", summary="Exports that are written by the calendar")
    async def schedules(
        session: SessionDep,
        *,
        with_removed: Annotated[bool, Query(description="removed ones too")] = False,
    ) -> list[ScheduleView]:
        """Schedules and the last files that they wrote."""
        return await schedule_views(session, await list_schedules(session, with_retired=with_removed))

    return router


async def _answer(wanted: Export, database_url: str, counter: Counter) -> StreamingResponse:
    child = await start_child(Errand(database_url=database_url, export=wanted))

    async def end() -> None:
        counter.give_back()
        if child.returncode is None:
            child.kill()
        await child.wait()

    about = await _told(child, end)
    file_format = format_of(wanted.format)

    async def body() -> AsyncIterator[bytes]:
        try:
            while child.stdout is not None and (piece := await child.stdout.read(PIECE_BYTES)):
                yield piece
            if await child.wait() != 0:
                raise ExportFailed("the export's process failed; its log says why")
        finally:
            await end()

    headers = {
        "content-disposition": f'attachment; filename="tollgate-{wanted.rows}{file_format.suffix}"',
        "x-tollgate-control-total-usd": usd_text(about.charge_usd_nanos),
        "x-tollgate-platform-total-usd": usd_text(about.platform_usd_nanos),
        "x-tollgate-ledger-high-water": about.high_water or "none",
        "cache-control": "no-store",
    }
    if about.row_count is not None:
        headers["x-tollgate-row-count"] = str(about.row_count)
    return StreamingResponse(body(), headers=headers, media_type=file_format.media_type)


async def _told(child: Process, end: Callable[[], Awaitable[None]]) -> About:
    """What the child is about to write; whatever happens instead, it is ended."""
    about: About | None = None
    try:
        line = await first_line(child)
        about = line.about
    finally:
        if about is None:
            await end()
    if about is None:
        raise _error_of(line)
    return about


def _error_of(line: Line) -> GatewayError:
    message = line.error or "The export could not be begun; the gateway's log says why."
    known: dict[int | None, type[GatewayError]] = {400: InvalidRequest, 404: NotFound}
    return known.get(line.status_code, Overloaded)(message)
