"""How long did the replicas run, by the word of their drivers and by what this gateway sees?

A driver writes files on its machine (`backends.replica_time`), so every gateway reads those of its own and
puts them into the database, where the same run is the same rows whoever brings it. Servers that someone else
runs are looked at by one gateway at a time: what it finds up twice within `GAP_S` was up in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from backends.pool import ReplicaState
from backends.registry import PoolRegistry
from backends.replica_time import Phase, PhaseChange, Run, read_runs
from gateway.db import SessionFactory
from gateway.inference import new_id
from gateway.ledger.supply_store import extend_run, open_observations, record_runs
from gateway.settings import SupplySettings

GAP_S = 300.0
"""Who looks may be busy with another job, or be replaced by another gateway."""
_UP = frozenset({ReplicaState.READY, ReplicaState.DRAINING})

_log = logging.getLogger(__name__)


class ReplicaTimeKeeper:
    """Brings what drivers wrote on this machine into the database."""

    def __init__(self, state_dir: Path, sessions: SessionFactory, settings: SupplySettings) -> None:
        """Only remembers.

        Args:
            state_dir: the drivers' too.
            sessions: where it is kept.
            settings: how often to look.
        """
        self._state_dir = state_dir
        self._sessions = sessions
        self._interval_s = settings.look_s
        self._kept: dict[str, Run] = {}
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Let `run` end soon, after a last look."""
        self._stopping.set()

    async def run(self) -> None:
        """Look until stopped; a database that is away is survived."""
        while True:
            is_last = self._stopping.is_set()
            try:
                await self.look()
            except (SQLAlchemyError, OSError) as error:
                _log.warning("replica time waits for the database: %s", error)
            if is_last:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._interval_s)

    async def look(self) -> None:
        """Look once.

        Raises:
            SQLAlchemyError, OSError: the database is away.
        """
        found = await asyncio.to_thread(read_runs, self._state_dir)
        news = [run for run in found if self._kept.get(run.id) != run]
        if not news:
            return
        async with self._sessions() as session:
            await record_runs(session, [self._new_of(run) for run in news], source="driver")
            await session.commit()
        self._kept = {run.id: run for run in found}

    def _new_of(self, run: Run) -> Run:
        """Without what is in the database already."""
        kept = self._kept.get(run.id)
        known = 0 if kept is None else len(kept.changes)
        return Run(run.id, run.seen_until_ms, run.is_over, run.changes[known:])


async def observe(session: AsyncSession, registry: PoolRegistry, *, now_ms: int) -> None:
    """Write down which servers of others are up now; for one process at a time."""
    known = await open_observations(session, since_ms=now_ms - int(GAP_S * 1000))
    fresh: list[Run] = []
    for pool in registry.snapshots():
        if pool.spec.driver != "external":
            continue
        for replica in pool.replicas:
            run_id = known.get((pool.spec.name, replica.replica))
            is_up = replica.state in _UP
            if run_id is not None:
                # Of one that is down we know only that it was up at the last look.
                until_ms = now_ms if is_up else 0
                await extend_run(session, run_id, seen_until_ms=until_ms, is_over=not is_up)
            elif is_up:
                up = PhaseChange(1, pool.spec.name, replica.replica, Phase.SERVING, now_ms)
                fresh.append(Run(new_id("obs_", now_ms), now_ms, is_over=False, changes=(up,)))
    if fresh:
        await record_runs(session, fresh, source="observed")
