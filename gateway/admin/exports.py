"""The ledger as a file: GET /admin/v1/exports.

A process of its own reads and writes; this one hands its bytes on, and kills it when the client leaves. What
is wrong with the question is said before anything is sent. If the child fails later, the connection is broken
off, so that half a file is never taken for a whole one.
"""

from __future__ import annotations

from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from gateway.admin.export_views import SchedulesView, schedule_views
from gateway.admin.spend import period
from gateway.admin.usage import Filters, GroupBy, Since, Until, dimensions_of
from gateway.dependencies import ServicesDep, SessionDep
from gateway.errors import GatewayError, InvalidRequest, NotFound, Overloaded
from gateway.focus_names import focus_names
from gateway.jobs.export_child import Errand, Line
from gateway.jobs.scheduled_exports import first_line, start_child
from gateway.ledger.cuts import epoch_ms
from gateway.ledger.export_schedules import list_schedules
from gateway.ledger.exports import FORMATS, About, Export, format_of
from gateway.ledger.focus_terms import FocusTerms, focus_terms
from gateway.money import usd_text

router = APIRouter(prefix="/admin/v1", tags=["exports"])

PIECE_BYTES = 65_536
AT_ONCE_MAX = 2
"""Exports that one gateway makes at the same time."""
RETRY_AFTER_S = 30


class ExportFailed(RuntimeError):
    """The child ended before the file did: the connection is broken off."""


class Counter:
    """How many exports are made now."""

    def __init__(self) -> None:
        self.count = 0

    def take(self) -> None:
        """One more.

        Raises:
            Overloaded: there are enough.
        """
        if self.count >= AT_ONCE_MAX:
            raise Overloaded(
                f"This gateway makes {AT_ONCE_MAX} exports at a time, and is at it. Try again shortly.",
                retry_after_s=RETRY_AFTER_S,
            )
        self.count += 1

    def give_back(self) -> None:
        """It is over."""
        self.count -= 1


def _counter(request: Request) -> Counter:
    """The app's own."""
    state = request.app.state
    if not hasattr(state, "exports"):
        state.exports = Counter()
    found: Counter = state.exports
    return found


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a file is asked for in a query."""

    file_format: Annotated[str, Query(alias="format", description=f"one of {', '.join(FORMATS)}")] = "csv"
    rows: Annotated[Literal["groups", "attempts"], Query(description="sums, or every attempt")] = "groups"
    group_by: GroupBy = "tenant"
    since: Since = None
    until: Until = None
    filters: Filters = None
    raw: Annotated[
        bool, Query(description="leave text as it is that a spreadsheet would take for a formula")
    ] = False
    focus_version: Annotated[
        Literal["1.2", "1.4"], Query(description="of format=focus; 1.4 was not checked by machine rules")
    ] = "1.2"
    side: Annotated[
        Literal["demand", "supply"], Query(description="of format=focus: tenants' charges, or pool-hours")
    ] = "demand"


@router.get(
    "/exports",
    summary="Spend, or every attempt, as a file",
    response_class=StreamingResponse,
    responses={200: {"content": {each.media_type: {} for each in FORMATS.values()}}},
)
async def export(
    services: ServicesDep,
    counter: Annotated[Counter, Depends(_counter)],
    asked: Annotated[Wanted, Depends()],
) -> StreamingResponse:
    """A file, streamed; its control total is in `x-tollgate-control-total-usd`.

    Raises:
        InvalidRequest: an unknown format, dimension or filter, or an unreadable instant.
        NotFound: a filter names somebody who does not exist.
        Overloaded: too many exports at once.
    """
    start, end = period(asked.since, asked.until, services.clock.now())
    wanted = Export(
        format=asked.file_format,
        start_ms=epoch_ms(start),
        end_ms=epoch_ms(end),
        rows=asked.rows,
        group_by=tuple(dimensions_of(asked.group_by)),
        filters=tuple(asked.filters or ()),
        is_formula_safe=not asked.raw,
        focus=_focus(asked, services),
    )
    wanted.check()
    counter.take()
    return await _answer(wanted, services.settings.effective_database_url, counter)


@router.get("/exports/schedules", summary="Exports that are written by the calendar")
async def schedules(
    session: SessionDep,
    *,
    with_removed: Annotated[bool, Query(description="removed ones too")] = False,
) -> SchedulesView:
    """Schedules and the last files that they wrote."""
    rows = await list_schedules(session, with_retired=with_removed)
    return SchedulesView(schedules=await schedule_views(session, rows))


def _focus(asked: Wanted, services: ServicesDep) -> FocusTerms:
    """What stands in a FOCUS file; others do not look at it."""
    policy = services.pipeline.routing.policy
    names = focus_names(services.settings.finance, policy.external)
    return focus_terms(asked.focus_version, asked.side, names=names)


class Work:
    """A child process and its place in the count."""

    def __init__(self, child: Process, counter: Counter) -> None:
        self.child = child
        self._counter = counter
        self._is_over = False

    async def end(self) -> None:
        """Nothing is wanted of it any more; again and again without harm."""
        if not self._is_over:
            self._is_over = True
            self._counter.give_back()
        if self.child.returncode is None:
            self.child.kill()
        await self.child.wait()

    async def pieces(self) -> AsyncIterator[bytes]:
        """What it writes.

        Raises:
            ExportFailed: it ended before the file did.
        """
        while self.child.stdout is not None and (piece := await self.child.stdout.read(PIECE_BYTES)):
            yield piece
        if await self.child.wait() != 0:
            raise ExportFailed("the export's process failed; its log says why")


class FileResponse(StreamingResponse):
    """The response that owns the child: it ends with it, begun or not."""

    def __init__(self, work: Work, *, headers: dict[str, str], media_type: str) -> None:
        super().__init__(work.pieces(), headers=headers, media_type=media_type)
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._work.end()


async def _answer(wanted: Export, database_url: str, counter: Counter) -> FileResponse:
    try:
        child = await start_child(Errand(database_url=database_url, export=wanted))
    except OSError as error:
        counter.give_back()
        raise Overloaded("No process could be started for the export.", operator_detail=str(error)) from None
    work = Work(child, counter)
    about = await _told(work)
    file_format = format_of(wanted.format)
    headers = {
        "content-disposition": f'attachment; filename="tollgate-{wanted.rows}{file_format.suffix}"',
        "x-tollgate-control-total-usd": usd_text(about.amounts.charge_usd_nanos),
        "x-tollgate-platform-total-usd": usd_text(about.amounts.platform_usd_nanos),
        "x-tollgate-adjustments-total-usd": usd_text(about.amounts.adjustments_usd_nanos),
        "x-tollgate-platform-adjustments-total-usd": usd_text(about.amounts.platform_adjustments_usd_nanos),
        "x-tollgate-period-state": about.period_state,
        "x-tollgate-ledger-high-water": about.high_water or "none",
        "cache-control": "no-store",
    }
    if about.row_count is not None:
        headers["x-tollgate-row-count"] = str(about.row_count)
    return FileResponse(work, headers=headers, media_type=file_format.media_type)


async def _told(work: Work) -> About:
    """What the child is about to write; whatever happens instead, it is ended."""
    about: About | None = None
    try:
        line = await first_line(work.child)
        about = line.about
    finally:
        if about is None:
            await work.end()
    if about is None:
        raise _error_of(line)
    return about


def _error_of(line: Line) -> GatewayError:
    message = line.error or "The export could not be begun; the gateway's log says why."
    known: dict[int | None, type[GatewayError]] = {400: InvalidRequest, 404: NotFound}
    return known.get(line.status_code, Overloaded)(message)
