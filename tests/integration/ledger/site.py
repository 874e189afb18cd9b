"""Processes that share a database: each has a spool, slices, a lessor and a shipper, and can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from gateway.clock import Clock
from gateway.db import SessionFactory, create_engine, session_factory
from gateway.freshness import ChangeWatcher
from gateway.inference import AttemptState, TokenUsage, new_id
from gateway.ledger.admission import Budgets
from gateway.ledger.buckets import Account, BudgetBook, Scope, Window
from gateway.ledger.budget_store import TOPIC as BUDGETS_TOPIC
from gateway.ledger.budget_store import Owner, create_budget, live_budgets, update_budget
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
from tests.support.clock import ShiftedClock
from tests.support.factories import make_act, make_start

ACCOUNT = Account(tenant_id="ten_1", project_id="prj_1", key_ids=("key1",))
NANO_A_TOKEN = Price(
    "one@1", Rates(input=10**6, cached_input=0, cache_write=0, output=10**6, reasoning=10**6)
)
"""One nano-USD for each token: amounts are counts."""


PATIENCE_S = 60.0


async def eventually(holds: Callable[[], object]) -> None:
    """Wait until it holds; for what other tasks do in their own time.

    Raises:
        TimeoutError: it never did.
    """
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - others' tasks set no event
            await asyncio.sleep(0.01)


class Line:
    """A process's own way to the database, which can be cut."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine(url)
        self.is_cut = False
        event.listen(self.engine.sync_engine, "before_cursor_execute", self._refuse_if_cut)

    def _refuse_if_cut(self, *_: object) -> None:
        if self.is_cut:
            raise OperationalError("any", None, OSError("the line is cut"))


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
        does_ship: bool = True,
        poll_interval_s: float = 0.05,
    ) -> None:
        self.clock = clock or Clock()
        self._does_ship = does_ship
        """Else only when the test says so."""
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
        self.watcher = ChangeWatcher(engine, self.sessions, poll_interval_s=poll_interval_s, clock=self.clock)
        self.watcher.watch(BUDGETS_TOPIC, self._reload)
        self.watcher.watch(SLICES_TOPIC, self.lessor.recalled)
        self._tasks: list[asyncio.Task[Any]] = []

    async def _reload(self, session: AsyncSession) -> None:
        self.budgets.book = BudgetBook(await live_budgets(session))

    async def start(self) -> None:
        await self.shipper.recover()
        await self.watcher.refresh()
        runs = [self.lessor.run(), self.watcher.run()]
        if self._does_ship:
            runs.append(self.shipper.run())
        self._tasks = [asyncio.get_running_loop().create_task(run) for run in runs]

    async def stop(self) -> None:
        """In good order: everything is booked, everything lent is given back."""
        self.lessor.stop()
        self.shipper.stop()
        self.watcher.stop()
        await asyncio.gather(*self._tasks)
        await self.shipper.drain()
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

    async def vanish(self) -> None:
        """Killed between two transactions: nothing is booked, nothing given back."""
        assert not self._does_ship
        self.lessor.stop()
        self.watcher.stop()
        await asyncio.gather(*self._tasks)
        os.close(self.spool._file)

    async def reserve(self, amount: int, account: Account = ACCOUNT) -> Reservation:
        return await self.budgets.reserve(account, UsdNanos(amount))

    def begin(self, reservation: Reservation, *, price: Price = NANO_A_TOKEN, **changes: Any) -> OpenAttempt:
        now_ms = self.clock.epoch_ms()
        start = make_start(
            new_id("att_", now_ms),
            **{
                "request_id": new_id("req_", now_ms),
                "started_at_ms": now_ms,
                "price_version": price.version,
                "hold_usd_nanos": reservation.bound_usd_nanos,
                "buckets": reservation.counted,
                **changes,
            },
        )
        return self.settlement.begin(start, price, reservation)

    def settle(
        self,
        reservation: Reservation,
        spent: int,
        state: AttemptState = AttemptState.ANSWERED,
        **changes: Any,
    ) -> None:
        """Attempt, settle and release."""
        self.finish(reservation, self.begin(reservation, **changes), spent, state)

    @staticmethod
    def finish(
        reservation: Reservation,
        attempt: OpenAttempt,
        spent: int,
        state: AttemptState = AttemptState.ANSWERED,
    ) -> None:
        """Settle and release."""
        attempt.end(Outcome(state=state, usage=TokenUsage(output=spent)))
        reservation.end()


class Site:
    """One database and the processes on it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.engine = engine = create_engine(url)
        self._lines: list[Line] = []
        self.sessions = session_factory(engine)
        self.folder = folder
        self.processes: list[Process] = []

    @staticmethod
    @contextlib.asynccontextmanager
    async def opened(url: str, folder: Path) -> AsyncIterator[Site]:
        site = Site(url, folder)
        try:
            yield site
        finally:
            await site.close()

    async def close(self) -> None:
        """Stop every process, in good order."""
        for process in self.processes:
            await process.stop()
        for engine in (self.engine, *(line.engine for line in self._lines)):
            await engine.dispose()

    def line(self) -> Line:
        """A way to the database for one process alone."""
        self._lines.append(Line(self.url))
        return self._lines[-1]

    async def pass_time(self, seconds: float, *clocks: ShiftedClock) -> None:
        """Let processes and what is lent to them grow older at once."""
        if self.engine.dialect.name == "postgresql":  # whose own clock says what is over
            await self._execute(
                f"UPDATE budget_slices SET expires_at_ms = expires_at_ms - {int(seconds * 1000)}"
            )
        for clock in clocks:
            clock.leap(seconds)

    async def _execute(self, statement: str) -> None:
        async with self.engine.begin() as connection:
            await connection.execute(text(statement))

    async def process(self, spool: str = "spool", *, line: Line | None = None, **options: Any) -> Process:
        process = Process(line.engine if line else self.engine, self.folder / spool, **options)
        await process.start()
        self.processes.append(process)
        return process

    async def kill(self, process: Process) -> None:
        self.processes.remove(process)
        await process.kill()

    async def vanish(self, process: Process) -> None:
        self.processes.remove(process)
        await process.vanish()

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

    async def change(self, name: str, **changes: Any) -> None:
        """Change a budget as finance does, and let every process know."""
        async with self.sessions() as session:
            await update_budget(session, name, act=make_act(), **changes)
            await session.commit()
        for process in self.processes:
            await process.watcher.refresh()

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
