"""Whose turn is it? One process at a time does a job, and one that lost its turn cannot write.

A turn ends by the database's clock. Each turn has a number that grows; whoever writes for a job locks its
row first and shows that the number is still its own, so that a process that slept through the end of its
turn finds out before it writes, and nobody else can begin a turn while one writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.clock import Clock
from gateway.db import SessionFactory, begin_writing, database_ms, insert_ignoring_duplicates
from gateway.jobs.tables import JobLease


class LeaseLost(Exception):
    """The turn is over: somebody else may have begun one. Nothing was written."""


@dataclass(frozen=True, slots=True)
class JobState:
    """What is known of a job."""

    last_success_at_ms: int | None
    last_result: str | None


class Turn:
    """This process's turn at a job."""

    def __init__(
        self, sessions: SessionFactory, clock: Clock, *, name: str, token: int, ttl_s: float
    ) -> None:
        self._sessions = sessions
        self._clock = clock
        self._ttl_ms = int(ttl_s * 1000)
        self.name = name
        self.token = token

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """A transaction that is this turn's; committed at the end.

        Raises:
            LeaseLost: the turn is over.
        """
        async with self._sessions() as session:
            await begin_writing(session)
            await self._confirm(session)
            yield session
            await session.commit()

    async def renew(self) -> None:
        """Keep the turn for as long again.

        Raises:
            LeaseLost: it is over.
        """
        async with self.writing() as session:
            now_ms = await database_ms(session, self._clock)
            await self._set(session, expires_at_ms=now_ms + self._ttl_ms)

    async def end(self, result: str | None) -> None:
        """The job is done; the next turn may begin.

        Raises:
            LeaseLost: it was not ours any more.
        """
        async with self.writing() as session:
            now_ms = await database_ms(session, self._clock)
            await self._set(session, expires_at_ms=0, last_success_at_ms=now_ms, last_result=result)

    async def _confirm(self, session: AsyncSession) -> None:
        found = await session.execute(
            select(col(JobLease.fencing_token), col(JobLease.expires_at_ms))
            .where(col(JobLease.name) == self.name)
            .with_for_update()
        )
        token, expires_at_ms = found.one()
        if token != self.token or expires_at_ms <= await database_ms(session, self._clock):
            raise LeaseLost(f"the turn {self.token} at the job {self.name!r} is over")

    async def _set(self, session: AsyncSession, **values: int | str | None) -> None:
        await session.execute(update(JobLease).where(col(JobLease.name) == self.name).values(**values))


async def begin_turn(
    sessions: SessionFactory, clock: Clock, name: str, *, holder: str, ttl_s: float, every_s: float = 0
) -> Turn | None:
    """A turn at a job; None: it is somebody else's, or somebody else has just done it.

    Args:
        sessions: where the leases are.
        clock: for SQLite, which has none of its own.
        name: the job.
        holder: this process.
        ttl_s: how long the turn lasts unless it is renewed, seconds.
        every_s: how long after a success the job is due again, seconds.
    """
    async with sessions() as session:
        await begin_writing(session)
        new = {"name": name, "holder": holder, "fencing_token": 0, "expires_at_ms": 0}
        await insert_ignoring_duplicates(session, JobLease, [new])
        # Whoever holds the row at this moment is at work: it is not waited for.
        found = await session.execute(
            select(col(JobLease.fencing_token), col(JobLease.expires_at_ms), col(JobLease.last_success_at_ms))
            .where(col(JobLease.name) == name)
            .with_for_update(skip_locked=True)
        )
        row = found.first()
        now_ms = await database_ms(session, clock)
        if row is None or row[1] > now_ms or not is_due(row[2], every_s, now_ms):
            await session.commit()
            return None
        token = row[0] + 1
        expires_at_ms = now_ms + int(ttl_s * 1000)
        await session.execute(
            update(JobLease)
            .where(col(JobLease.name) == name)
            .values(holder=holder, fencing_token=token, expires_at_ms=expires_at_ms)
        )
        await session.commit()
    return Turn(sessions, clock, name=name, token=token, ttl_s=ttl_s)


def is_due(last_success_at_ms: int | None, every_s: float, now_ms: int) -> bool:
    """A job is to be done again."""
    return last_success_at_ms is None or now_ms - last_success_at_ms >= every_s * 1000


async def job_states(session: AsyncSession) -> dict[str, JobState]:
    """What is known of every job that ever had a turn, by name."""
    found = await session.execute(
        select(col(JobLease.name), col(JobLease.last_success_at_ms), col(JobLease.last_result))
    )
    return {name: JobState(at_ms, result) for name, at_ms, result in found}
