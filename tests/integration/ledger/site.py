"""Processes that share a database: each has a spool, slices, a lessor and a shipper, and can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from gateway.clock import Clock
from gateway.db import SessionFactory, create_engine, session_factory
from gateway.freshness import ChangeWatcher
from gateway.inference import AttemptState, TokenUsage, new_id
from gateway.ledger.admission import Budgets
from gateway.ledger.buckets import Account, BudgetBook, Scope, Window
from gateway.ledger.budget_store import TOPIC as BUDGETS_TOPIC
from gateway.ledger.budget_store import Owner, create_budget, live_budgets
from gateway.ledger.budgets import Holds, Reservation
from gateway.ledger.lessor import TOPIC as SLICES_TOPIC
from gateway.ledger.lessor import Lessor
from gateway.ledger.settlement import OpenAttempt, Outcome, Settlement
from gateway.ledger.shipper import Shipper
from gateway.ledger.spool import Spool
from gateway.ledger.tables import Budget
from gateway.money import UsdNanos
from gateway.pricing.rates import Price, Rates
from gateway.routing.receipts import insert_receipts
from gateway.settings import BudgetSettings, SpoolSettings
from tests.support.factories import make_act, make_start

ACCOUNT = Account(tenant_id="ten_1", project_id="prj_1", key_ids=("key1",))
NANO_A_TOKEN = Price(
    "one@1", Rates(input=10**6, cached_input=0, cache_write=0, output=10**6, reasoning=10**6)
)
"""One nano-USD for each token: amounts are counts."""


class Process:
    """What of a gateway has to do with money."""

    def __init__(
        self,
        engine: AsyncEngine,
        folder: Path,
        *,
        clock: Clock | None = None,
        settings: BudgetSettings | None = None,
        ship_interval_ms: int = 20,
    ) -> None:
        self.clock = clock or Clock()
        self.sessions: SessionFactory = session_factory(engine)
        self.spool = Spool(folder, self.clock, unshipped_max=10_000)
        self.lessor = Lessor(
            Holds(),
            self.sessions,
            owner_id=self.spool.owner_id,
            settings=settings or BudgetSettings(look_interval_s=0.05),
            clock=self.clock,
        )
        self.budgets = Budgets(self.lessor.holds, self.lessor, self.clock)
        self.settlement = Settlement(self.spool, self.clock)
        self.shipper = Shipper(
            self.spool,
            self.sessions,
            SpoolSettings(ship_interval_ms=ship_interval_ms, batch_records_max=200),
            clock=self.clock,
            insert_receipts=insert_receipts,
            holds=self.lessor.holds,
            books=self.lessor.books,
        )
        self.watcher = ChangeWatcher(engine, self.sessions, poll_interval_s=0.05)
        self.watcher.watch(BUDGETS_TOPIC, self._reload)
        self.watcher.watch(SLICES_TOPIC, self.lessor.recalled)
        self._tasks: list[asyncio.Task[Any]] = []

    async def _reload(self, session: AsyncSession) -> None:
        self.budgets.book = BudgetBook(await live_budgets(session))

    async def start(self) -> None:
        await self.shipper.recover()
        await self.watcher.refresh()
        runs = (self.lessor.run(), self.shipper.run(), self.watcher.run())
        self._tasks = [asyncio.get_running_loop().create_task(run) for run in runs]

    async def stop(self) -> None:
        """In good order: everything is booked, everything lent is given back."""
        self.lessor.stop()
        self.shipper.stop()
        self.watcher.stop()
        await asyncio.gather(*self._tasks)
        assert not self.spool.unshipped_count
        if not self.spool.open_count:
            await self.lessor.close()
        self.spool.close()

    async def kill(self) -> None:
        """What is left is the spool's file, without its lock."""
        for task in self._tasks:
            task.cancel()
        # A statement that is cut leaves a transaction that is rolled back, as a dead process's is.
        await asyncio.gather(*self._tasks, return_exceptions=True)
        os.close(self.spool._file)

    async def reserve(self, amount: int, account: Account = ACCOUNT) -> Reservation:
        return await self.budgets.reserve(account, UsdNanos(amount))

    def begin(self, reservation: Reservation, **changes: Any) -> OpenAttempt:
        now_ms = self.clock.epoch_ms()
        start = make_start(
            new_id("att_", now_ms),
            **{
                "request_id": new_id("req_", now_ms),
                "started_at_ms": now_ms,
                "price_version": NANO_A_TOKEN.version,
                "hold_usd_nanos": reservation.bound_usd_nanos,
                "buckets": reservation.counted,
                **changes,
            },
        )
        return self.settlement.begin(start, NANO_A_TOKEN, reservation)

    def settle(
        self,
        reservation: Reservation,
        spent: int,
        state: AttemptState = AttemptState.ANSWERED,
        **changes: Any,
    ) -> None:
        """Attempt, settle and release."""
        self.begin(reservation, **changes).end(Outcome(state=state, usage=TokenUsage(output=spent)))
        reservation.end()


class Site:
    """One database and the processes on it."""

    def __init__(self, engine: AsyncEngine, folder: Path) -> None:
        self.engine = engine
        self.sessions = session_factory(engine)
        self.folder = folder
        self.processes: list[Process] = []

    @staticmethod
    @contextlib.asynccontextmanager
    async def opened(url: str, folder: Path) -> AsyncIterator[Site]:
        engine = create_engine(url)
        site = Site(engine, folder)
        try:
            yield site
        finally:
            for process in site.processes:
                await process.stop()
            await engine.dispose()

    async def process(self, spool: str = "spool", **options: Any) -> Process:
        process = Process(self.engine, self.folder / spool, **options)
        await process.start()
        self.processes.append(process)
        return process

    async def kill(self, process: Process) -> None:
        self.processes.remove(process)
        await process.kill()

    async def stop(self, process: Process) -> None:
        self.processes.remove(process)
        await process.stop()

    async def budget(
        self,
        limit: int,
        *,
        name: str = "budget",
        scope: Scope = Scope.TENANT,
        scope_id: str = "ten_1",
        window: Window = Window.TOTAL,
        is_hard: bool = True,
    ) -> Budget:
        async with self.sessions() as session:
            budget = await create_budget(
                session,
                name,
                owner=Owner(scope, scope_id, None),
                window=window,
                limit_usd_nanos=limit,
                is_hard=is_hard,
                act=make_act(),
            )
            await session.commit()
        for process in self.processes:
            await process.watcher.refresh()
        return budget

    async def rows(self, statement: str) -> Sequence[Any]:
        async with self.engine.connect() as connection:
            return (await connection.execute(text(statement))).all()

    async def window(self) -> dict[str, int]:
        """The only bucket."""
        (row,) = await self.rows(
            "SELECT posted_usd_nanos, leased_usd_nanos, unattributed_usd_nanos, overage_usd_nanos"
            " FROM budget_windows"
        )
        return dict(zip(("posted", "leased", "unattributed", "overage"), row, strict=True))
