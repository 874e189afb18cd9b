"""How much of each budget is used up, as far as this process knows?

For rules that look at it, and for nothing else: whether a request can be afforded is decided by slices. Read
from the database at intervals, only while a policy asks for it; what this process has settled since is added
when it is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.clock import Clock
from gateway.db import SessionFactory
from gateway.ledger.buckets import Bucket, Window, window_at
from gateway.ledger.budgets import Holds
from gateway.ledger.tables import BudgetWindow

INTERVAL_S = 1.0
PAGE_ROWS = 2_000
"""Read at once: requests are served between two pages."""
_log = logging.getLogger(__name__)


class Fullest(NamedTuple):
    """A budget, and how much of it is used."""

    name: str
    used_percent: float
    until_ms: int | None
    """When it begins anew; None: never."""


@dataclass(frozen=True, slots=True)
class Levels:
    """What was booked in each bucket."""

    booked: Mapping[Bucket, int] = field(default_factory=dict)


class Taker(Protocol):
    """Who is given them."""

    levels: Levels
    holds: Holds


async def booked_in(
    session: AsyncSession, starts: Sequence[int], *, page_rows: int = PAGE_ROWS
) -> dict[Bucket, int]:
    """What was booked in every bucket whose window begins at one of these instants, nano-USD."""
    start, budget = col(BudgetWindow.window_start_ms), col(BudgetWindow.budget_id)
    found: dict[Bucket, int] = {}
    for start_ms in starts:
        after = ""
        while True:
            rows = await session.execute(
                select(
                    budget,
                    col(BudgetWindow.posted_usd_nanos) + col(BudgetWindow.unattributed_usd_nanos),
                )
                .where(start == start_ms, budget > after)
                .order_by(budget)
                .limit(page_rows)
            )
            page = list(rows)
            found.update((Bucket(budget_id, start_ms), used) for budget_id, used in page)
            if len(page) < page_rows:
                break
            after = page[-1][0]
    return found


class LevelReader:
    """Reads them at intervals."""

    def __init__(self, sessions: SessionFactory, clock: Clock, *, interval_s: float = INTERVAL_S) -> None:
        """Only remembers.

        Args:
            sessions: where they are kept.
            clock: says which windows are under way.
            interval_s: between two looks.
        """
        self._sessions = sessions
        self._clock = clock
        self._taker: Taker | None = None
        self._is_wanted: Callable[[], bool] = bool
        self._interval_s = interval_s
        self._stopping = asyncio.Event()
        self._is_away = False

    def serve(self, taker: Taker, *, is_wanted: Callable[[], bool]) -> None:
        """Give what is read to somebody, as long as it is wanted."""
        self._taker, self._is_wanted = taker, is_wanted

    def stop(self) -> None:
        """Let `run` end after the look under way."""
        self._stopping.set()

    async def refresh(self) -> None:
        """Look once, if anybody wants to know.

        Raises:
            SQLAlchemyError, OSError: the database is away; what is known stays as it is.
        """
        taker = self._taker
        if taker is None:
            return
        holds = taker.holds
        if not self._is_wanted():
            holds.booked_here = None
            return
        if holds.booked_here is None:
            holds.booked_here = {}
        # What is booked while the database is read counts twice until the next look, rather than not at all.
        before = dict(holds.booked_here)
        now_ms = self._clock.epoch_ms()
        starts = sorted({window_at(window, now_ms)[0] for window in Window})
        async with self._sessions() as session:
            booked = await booked_in(session, starts)
        taker.levels = Levels(booked)
        for bucket, amount in before.items():
            left = holds.booked_here[bucket] - amount
            if left:
                holds.booked_here[bucket] = left
            else:
                del holds.booked_here[bucket]

    async def run(self) -> None:
        """Look at intervals until stopped; a database that is away is survived."""
        while not self._stopping.is_set():
            try:
                await self.refresh()
                self._is_away = False
            except (SQLAlchemyError, OSError) as error:
                if not self._is_away:
                    _log.warning(
                        "what budgets have used cannot be read (what is known is used on): %s", error
                    )
                self._is_away = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._interval_s)
