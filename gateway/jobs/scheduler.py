"""What is due, and who does it? Every process asks; the one that gets the turn works.

Jobs are few and small (the database does the work); they run one after the other in the gateway's own task
group. A job that fails is logged and tried again at the next look; nothing that happens in one ends the
gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from gateway.clock import Clock
from gateway.db import SessionFactory, database_ms
from gateway.jobs.auditor import Auditor, Stopped, Verdict, encoded
from gateway.jobs.leases import LeaseLost, Turn, begin_turn, is_due, job_states
from gateway.ledger.owners import set_unattributed
from gateway.ledger.partitions import ensure_partitions
from gateway.routing.learning_store import forget
from gateway.settings import AuditSettings, BudgetSettings

RECENT = "audit"
WHOLE = "audit_whole"
TURN_S = 60.0
"""A turn is renewed while its job is at work; of a process that died it is over after this."""
RENEWALS_PER_TURN = 3
LOOKS_PER_INTERVAL = 4
DAY_S = 86_400.0
LEARNED_DAYS = 30
"""What nothing was added to for so long has faded to nothing."""

_log = logging.getLogger(__name__)

Work = Callable[[Turn, asyncio.Event], Awaitable[str | None]]
"""Does the job and returns what it found; may break off once the event is set."""


@dataclass(frozen=True, slots=True)
class Job:
    """Something that happens by itself."""

    name: str
    every_s: float
    work: Work


class Scheduler:
    """Does what is due, as long as it runs."""

    def __init__(
        self,
        sessions: SessionFactory,
        clock: Clock,
        jobs: Sequence[Job],
        *,
        holder: str,
        first_after_s: float,
        turn_s: float = TURN_S,
    ) -> None:
        """A scheduler that is not running.

        Args:
            sessions: where the leases are.
            clock: see `begin_turn`.
            jobs: in the order in which they are done.
            holder: what this process is called.
            first_after_s: nothing is done before: a program that has just started has better things to do.
            turn_s: how long a turn lasts unless it is renewed.
        """
        self._sessions = sessions
        self._clock = clock
        self._jobs = jobs
        self._holder = holder
        self._first_after_s = first_after_s
        self._turn_s = turn_s
        self._stopping = asyncio.Event()
        self.verdict = Verdict()

    def stop(self) -> None:
        """Let `run` end soon."""
        self._stopping.set()

    async def run(self) -> None:
        """Look for what is due until stopped."""
        wait_s = self._first_after_s
        while not await self._is_stopped_within(wait_s):
            wait_s = self._first_after_s / LOOKS_PER_INTERVAL
            try:
                await self.look()
            except (SQLAlchemyError, OSError) as error:
                _log.warning("jobs wait for the database: %s", error)

    async def look(self) -> None:
        """Do what is due and nobody else does.

        Raises:
            SQLAlchemyError, OSError: the database is away.
        """
        async with self._sessions() as session:
            states = await job_states(session)
            now_ms = await database_ms(session, self._clock)
        for job in self._jobs:
            if self._stopping.is_set():
                return
            state = states.get(job.name)
            # What was read may be old by the time that the jobs before are done: the turn looks again.
            if state is None or is_due(state.last_success_at_ms, job.every_s, now_ms):
                turn = await begin_turn(
                    self._sessions,
                    self._clock,
                    job.name,
                    holder=self._holder,
                    ttl_s=self._turn_s,
                    every_s=job.every_s,
                )
                if turn is not None:
                    await self._do(job, turn)
        async with self._sessions() as session:
            states = await job_states(session)
        self.verdict.take([states[name].last_result for name in (RECENT, WHOLE) if name in states])

    async def _do(self, job: Job, turn: Turn) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                keeping = group.create_task(self._keep(turn))
                result = await job.work(turn, self._stopping)
                keeping.cancel()
            await turn.end(result)
        except Exception as error:  # noqa: BLE001 - the boundary of a loop that must go on
            group_of = error.exceptions if isinstance(error, ExceptionGroup) else [error]
            for each in group_of:
                if isinstance(each, Stopped):
                    continue  # nothing is wrong
                is_known = isinstance(each, SQLAlchemyError | OSError | LeaseLost)
                _log.warning(
                    "the job %s was not done and is tried again: %s",
                    job.name,
                    each,
                    exc_info=None if is_known else each,
                )

    async def _keep(self, turn: Turn) -> None:
        while True:
            await asyncio.sleep(self._turn_s / RENEWALS_PER_TURN)
            await turn.renew()

    async def _is_stopped_within(self, wait_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), wait_s)
        return self._stopping.is_set()


def jobs_of(
    auditor: Auditor, *, clock: Clock, audit: AuditSettings, budgets: BudgetSettings
) -> tuple[Job, ...]:
    """Everything that happens by itself in a gateway."""

    async def partitions(turn: Turn, stopping: asyncio.Event) -> None:
        del stopping
        async with turn.writing() as session:
            await ensure_partitions(session)

    async def slices(turn: Turn, stopping: asyncio.Event) -> None:
        # Serving processes do so too, while they have slices of their own to renew.
        del stopping
        async with turn.writing() as session:
            now_ms = await database_ms(session, clock)
            before_ms = now_ms - int(budgets.slice_grace_s * 1000)
            await set_unattributed(session, before_ms=before_ms, now_ms=now_ms)

    async def learned(turn: Turn, stopping: asyncio.Event) -> None:
        del stopping
        async with turn.writing() as session:
            now_ms = await database_ms(session, clock)
            await forget(session, before_ms=now_ms - int(LEARNED_DAYS * DAY_S * 1000))

    async def recent(turn: Turn, stopping: asyncio.Event) -> str:
        del turn
        return encoded(await auditor.look(stopping, recent_s=audit.recent_s))

    async def whole(turn: Turn, stopping: asyncio.Event) -> str:
        del turn
        return encoded(await auditor.look(stopping, recent_s=None))

    return (
        Job("partitions", DAY_S, partitions),
        Job("learned", DAY_S, learned),
        Job("slices", audit.interval_s, slices),
        Job(RECENT, audit.interval_s, recent),
        Job(WHOLE, audit.whole_interval_s, whole),
    )
