"""Who writes the exports that are due, and what if it dies on the way?

One process at a time, by its turn at the job. The work is done by a child process, so that nothing heavy runs
where requests are served; the turn is renewed meanwhile. A file that was written and not noted is written
again under the same name, but for a final one, which is noted as it is.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping

import msgspec

from backends.pool import PoolSpec
from gateway.clock import Clock
from gateway.db import SessionFactory, database_ms
from gateway.errors import ConfigurationError
from gateway.jobs.export_child import Errand, Line
from gateway.jobs.export_targets import Delivery
from gateway.jobs.leases import Turn
from gateway.jobs.scheduler import Job, Scheduler
from gateway.ledger.export_schedules import DueFile, due_files, note_file
from gateway.ledger.exports import Footing
from gateway.ledger.supply import Terms
from gateway.ledger.supply_terms import terms_of

EXPORTS = "exports"
EVERY_S = 300.0
FIRST_AFTER_S = 120.0
CHILD = "gateway.jobs.export_child"
LINE_BYTES_MAX = 1 << 20

_log = logging.getLogger(__name__)


def exports_scheduler(
    sessions: SessionFactory,
    clock: Clock,
    *,
    database_url: str,
    specs: Mapping[str, PoolSpec],
    holder: str,
    every_s: float = EVERY_S,
) -> Scheduler:
    """What writes exports by the calendar, apart from the other jobs: it may take long.

    Raises:
        ConfigurationError: see `terms_of`.
    """
    job = Job(EXPORTS, every_s, Desk(sessions, clock, database_url, terms=terms_of(specs)).work)
    return Scheduler(sessions, clock, [job], holder=holder, first_after_s=FIRST_AFTER_S)


class Desk:
    """Does what is due."""

    def __init__(
        self, sessions: SessionFactory, clock: Clock, database_url: str, *, terms: Mapping[str, Terms]
    ) -> None:
        self._sessions = sessions
        self._terms = terms
        self._clock = clock
        self._database_url = database_url

    async def work(self, turn: Turn, stopping: asyncio.Event) -> str:
        """Write all files that are due; what fails is told, and tried again next time."""
        async with self._sessions() as session:
            now_ms = await database_ms(session, self._clock)
            due = await due_files(session, now_ms=now_ms, terms=self._terms)
        done, failed = 0, []
        for each in due:
            if stopping.is_set():
                break
            try:
                footing = await self._written(each, stopping)
            except ConfigurationError as error:
                _log.error("the export %s was not written: %s", each.file_name, error)
                failed.append(f"{each.file_name}: {error}")
                continue
            if footing is None:
                break
            async with turn.writing() as session:
                await note_file(session, each, footing, now_ms=await database_ms(session, self._clock))
            done += 1
        return msgspec.json.encode({"written": done, "failed": failed}).decode()

    async def _written(self, due: DueFile, stopping: asyncio.Event) -> Footing | None:
        """None: the program stops."""
        errand = Errand(
            database_url=self._database_url,
            export=due.export,
            delivery=Delivery(
                target=due.schedule.target,
                name=due.file_name,
                endpoint_url=due.schedule.endpoint_url,
                is_final=due.is_final,
            ),
        )
        child = await start_child(errand)
        try:
            async with asyncio.TaskGroup() as group:
                stop = group.create_task(stopping.wait())
                answer = group.create_task(_line_of(child))
                await asyncio.wait({stop, answer}, return_when=asyncio.FIRST_COMPLETED)
                stop.cancel()
                if not answer.done():
                    answer.cancel()
                    return None
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        line = answer.result()
        if line.footing is None:
            raise ConfigurationError(line.error or "its process ended without a word; its log may say why")
        return line.footing


async def start_child(errand: Errand) -> asyncio.subprocess.Process:
    """A process that exports; it is told by its standard input, and what it logs goes where ours does."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        CHILD,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_BYTES_MAX,
    )
    if child.stdin is not None:
        child.stdin.write(msgspec.json.encode(errand))
        child.stdin.close()
    return child


async def first_line(child: asyncio.subprocess.Process) -> Line:
    """What a child says first."""
    if child.stdout is None:
        return Line()
    text = await child.stdout.readline()
    return msgspec.json.decode(text, type=Line) if text.endswith(b"\n") else Line()


async def _line_of(child: asyncio.subprocess.Process) -> Line:
    line = await first_line(child)
    await child.wait()
    return line
