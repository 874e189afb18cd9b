"""Which hours are over, what did they cost, and who used them? They are frozen, and then they stay.

An hour is frozen `grace_s` after its end, pool by pool and in order. What comes to be known of a frozen hour
later (attempts of a recovered spool, replica time of a machine that was cut off) is found at the next hour
and booked there, as a correction that names its hour: what the whole hour, counted again at the terms that it
was frozen with, differs by from what is booked of it. Nothing is booked in a closed month: what was seen in
one of a pool that nobody knew of is booked in the first open hour, as a correction too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sqlalchemy.ext.asyncio import AsyncSession

from backends.registry import PoolRegistry
from backends.supply_spec import Count
from gateway.clock import Clock
from gateway.db import SessionFactory, database_ms
from gateway.jobs.leases import Turn
from gateway.jobs.replica_time import observe
from gateway.jobs.scheduler import Job
from gateway.ledger.late_usage import closed_until, lock_periods
from gateway.ledger.supply import MS_PER_HOUR, PoolHour, ReplicaMs, Terms, difference, pool_hour
from gateway.ledger.supply_begin import are_declarations_noted, first_instants, note_declarations, returns
from gateway.ledger.supply_count import counted
from gateway.ledger.supply_store import (
    Booked,
    book_hour,
    booked_of,
    frontiers,
    hours_of_late,
    last_seen,
    spans_of,
    terms_of_gone,
)
from gateway.ledger.supply_terms import terms_of
from gateway.settings import SupplySettings

SETTLED_MS = 300_000
"""An attempt is booked at the instant that its transaction began with: after so long all of them are seen."""
TIME_LOOKED_AT = 48
"""So many frozen hours are looked at again for replica time that came late."""
FREEZE = "supply"
OBSERVE = "replica_time"


@dataclass(frozen=True, slots=True)
class _Extent:
    """Which attempts a pass of a pool knows of, and the hour in which it books."""

    hour_ms: int
    booked_from_ms: int
    booked_before_ms: int


class SupplyBooks:
    """Freezes hours."""

    def __init__(
        self, terms: Mapping[str, Terms], sessions: SessionFactory, clock: Clock, *, grace_s: float
    ) -> None:
        """Only remembers."""
        self._terms = terms
        self._sessions = sessions
        self._clock = clock
        self._grace_ms = int(grace_s * 1000)

    async def freeze(self, turn: Turn, stopping: asyncio.Event) -> None:
        """Freeze every hour that is due, each in a transaction of its own.

        Raises:
            LeaseLost: somebody else does it.
        """
        await self._note(turn)
        async with self._sessions() as session:
            now_ms = await database_ms(session, self._clock)
            known = await frontiers(session)
            firsts = await first_instants(session, self._terms)
            again = await returns(session, self._terms)
            seen = await last_seen(session)
            gone = await terms_of_gone(session, [pool for pool in seen if pool not in self._terms])
        due_ms = (now_ms - self._grace_ms) // MS_PER_HOUR * MS_PER_HOUR
        for pool, terms in {**self._terms, **gone}.items():
            if pool not in firsts and pool not in gone:
                continue
            # A pool whose file is gone is paid for as long as its replicas were seen.
            until_ms = min(due_ms, seen[pool]) if pool in gone else due_ms
            hour_ms, since_ms = firsts.get(pool, 0) // MS_PER_HOUR * MS_PER_HOUR, 0
            if pool in known:
                hour_ms, since_ms = known[pool][0] + MS_PER_HOUR, known[pool][1]
                hour_ms = max(hour_ms, again.get(pool, 0))
            bounds = (hour_ms, until_ms, due_ms)
            await self._freeze_until(turn, terms, bounds, booked_from_ms=since_ms, stopping=stopping)

    async def _note(self, turn: Turn) -> None:
        async with self._sessions() as session:
            if await are_declarations_noted(session, self._terms):
                return
        async with turn.writing() as session:
            await note_declarations(session, self._terms, now_ms=await database_ms(session, self._clock))

    async def _freeze_until(
        self,
        turn: Turn,
        terms: Terms,
        bounds: tuple[int, int, int],
        *,
        booked_from_ms: int,
        stopping: asyncio.Event,
    ) -> None:
        """Every hour of a pool; those of closed months in the first open one, once that is due.

        Args:
            turn: ours.
            terms: of the pool.
            bounds: its next hour, until when there is anything to pay for, and until when hours are due.
            booked_from_ms: which attempts are known.
            stopping: set: no further hour.
        """
        hour_ms, until_ms, due_ms = bounds
        async with self._sessions() as session:
            open_ms = await closed_until(session)
        missed = range(hour_ms, min(open_ms, max(hour_ms, until_ms)), MS_PER_HOUR)
        hour_ms = max(hour_ms, open_ms)
        while not stopping.is_set() and (hour_ms < until_ms or (missed and hour_ms < due_ms)):
            extent = await self._freeze(turn, terms, hour_ms, booked_from_ms=booked_from_ms, missed=missed)
            if extent is None:
                return
            booked_from_ms, missed = extent, range(0)
            hour_ms += MS_PER_HOUR

    async def _freeze(
        self, turn: Turn, terms: Terms, hour_ms: int, *, booked_from_ms: int, missed: range
    ) -> int | None:
        """One hour, and what was found of earlier ones.

        Returns:
            Which attempts are known from then on, epoch ms; None: its month was closed meanwhile.
        """
        async with self._sessions() as session:
            now_ms = await database_ms(session, self._clock)
            # Never back: what an earlier pass knew of is known.
            before_ms = max(booked_from_ms, now_ms - min(SETTLED_MS, self._grace_ms))
            extent = _Extent(hour_ms, booked_from_ms, before_ms)
            bills = [(terms, await counted(session, terms, hour_ms, booked_before_ms=before_ms))]
            bills += await _corrections(session, terms, extent)
            bills += await _missed(session, terms, missed, booked_before_ms=before_ms)
        # Counting takes a while; nobody waits for the lock of SQLite meanwhile.
        async with turn.writing() as session:
            await lock_periods(session, exclusively=False)
            if await closed_until(session) > hour_ms:
                return None
            for under, bill in bills:
                await book_hour(
                    session, under, bill, booked_in_ms=hour_ms, booked_before_ms=before_ms, now_ms=now_ms
                )
        return before_ms


async def _missed(
    session: AsyncSession, terms: Terms, hours: range, *, booked_before_ms: int
) -> list[tuple[Terms, PoolHour]]:
    """What was seen of a pool in closed months that never had a bill of it; nothing unseen is paid for."""
    seen = replace(terms, replicas=(), count=Count.SEEN)
    found = []
    for hour_ms in hours:
        hour = await counted(session, seen, hour_ms, booked_before_ms=booked_before_ms)
        if hour.bill_usd_nanos or hour.attempts:
            found.append((seen, hour))
    return found


async def _corrections(session: AsyncSession, terms: Terms, extent: _Extent) -> list[tuple[Terms, PoolHour]]:
    """What frozen hours differ by from what is known of them now, at the terms that they were frozen with."""
    looked_at = [extent.hour_ms - back * MS_PER_HOUR for back in range(1, TIME_LOOKED_AT + 1)]
    late = await hours_of_late(
        session,
        terms.pool,
        booked_from_ms=extent.booked_from_ms,
        booked_before_ms=extent.booked_before_ms,
        before_ms=extent.hour_ms,
    )
    booked = await booked_of(session, terms, sorted({*late, *looked_at}))
    spans = (await spans_of(session, start_ms=looked_at[-1], end_ms=extent.hour_ms)).get(terms.pool, [])
    late |= {
        hour_ms
        for hour_ms in looked_at
        if hour_ms in booked
        and _is_other_time(pool_hour(booked[hour_ms].terms, hour_ms, spans), booked[hour_ms])
    }
    found = []
    for hour_ms in sorted(late & set(booked)):
        before = booked[hour_ms]
        now = await counted(session, before.terms, hour_ms, booked_before_ms=extent.booked_before_ms)
        changed = difference(now.lines, before.lines)
        if changed or now.bill_usd_nanos != before.bill_usd_nanos:
            attempts = sum(line.attempts for line in changed.values())
            found.append(
                (
                    before.terms,
                    replace(
                        now,
                        bill_usd_nanos=now.bill_usd_nanos - before.bill_usd_nanos,
                        time=now.time - before.time,
                        lines=changed,
                        attempts=attempts,
                    ),
                )
            )
    return found


def _is_other_time(now: PoolHour, before: Booked) -> bool:
    """Replicas ran for longer or shorter than what is booked; who used them is not asked."""
    return replace(now.time - before.time, busy_ms=0) != ReplicaMs()


def supply_jobs(
    registry: PoolRegistry,
    sessions: SessionFactory,
    *,
    clock: Clock,
    settings: SupplySettings,
) -> tuple[Job, ...]:
    """What happens by itself for the sake of what supply costs.

    Raises:
        ConfigurationError: see `terms_of`.
    """
    books = SupplyBooks(terms_of(registry.specs), sessions, clock, grace_s=settings.grace_s)

    async def look(turn: Turn, stopping: asyncio.Event) -> None:
        del stopping
        async with turn.writing() as session:
            await observe(session, registry, now_ms=await database_ms(session, clock))

    async def freeze(turn: Turn, stopping: asyncio.Event) -> None:
        await books.freeze(turn, stopping)

    return (Job(OBSERVE, settings.look_s, look), Job(FREEZE, settings.interval_s, freeze))
