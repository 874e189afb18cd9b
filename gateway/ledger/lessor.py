"""How does this process get the money that it may spend, and how does it give back what it does not need?

One coroutine does all the talking with the database, in rounds; a round is one transaction. Requests that
find their lots too small wait for the next round; it serves them in their order, all buckets or none, lends a
reserve on top where there is plenty, and gives back what others have called for. A request is refused only
when the limit is used up: what other processes hold idle is recalled first, and waited for, at most a second.

Slices expire by the database's clock and are renewed long before. What a dead process held is given back when
its spool is recovered; if that never happens it is booked as unattributed, which still counts against the
limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.clock import Clock
from gateway.db import SessionFactory, begin_writing, database_ms, note_change
from gateway.errors import GatewayError, Overloaded
from gateway.ledger.buckets import Bucket, BudgetRecord
from gateway.ledger.budgets import Holds, Lot
from gateway.ledger.owners import close_owner, set_unattributed
from gateway.ledger.rounds import Round, Waiter, reserve_of
from gateway.ledger.slice_store import locked_windows, slices_on
from gateway.settings import BudgetSettings

TOPIC = "slices"
"""Raised when a process needs what others hold idle."""
RENEWALS_PER_TTL = 6
_RECALL_LOOK_S = 0.03

_log = logging.getLogger(__name__)


class Lessor:
    """Talks to the database about this process's slices."""

    def __init__(
        self,
        holds: Holds,
        sessions: SessionFactory,
        *,
        owner_id: str,
        settings: BudgetSettings,
        clock: Clock,
    ) -> None:
        self.holds = holds
        self._sessions = sessions
        self._owner_id = owner_id
        self._settings = settings
        self._clock = clock
        self._waiters: list[Waiter] = []
        self._wake = asyncio.Event()
        self._is_stopping = False
        self._is_recalled = False
        self._renew_at_s = 0.0
        self.books = asyncio.Lock()
        """Held by whoever changes slices in the database, until memory knows of it too."""
        self.refused = 0
        self.rounds = 0
        self.recalls = 0

    async def obtain(self, pairs: Sequence[tuple[Bucket, BudgetRecord]], bound: int) -> None:
        """Wait until the lots hold `bound` for this request in each bucket; it is held then.

        Raises:
            BudgetExceeded: a limit is used up.
            Overloaded: the database cannot be asked.
        """
        loop = asyncio.get_running_loop()
        waiter = Waiter(
            needs={bucket: bound for bucket, _ in pairs},
            records=dict(pairs),
            done=loop.create_future(),
            give_up_s=self._clock.monotonic_s() + self._settings.recall_s,
        )
        self._waiters.append(waiter)
        self._wake.set()
        try:
            await waiter.done
        except asyncio.CancelledError:
            if waiter.done.done() and not waiter.done.cancelled() and waiter.done.exception() is None:
                self._unhold(waiter)
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            raise

    def lasts_s(self) -> float:
        """How long requests can go on without the database, at their pace; infinite: nothing is lent."""
        now_s = self._clock.monotonic_s()
        return min(
            (_lasts_s(lot, now_s) for lot in self.holds.lots.values() if not lot.is_empty), default=math.inf
        )

    def refill(self) -> None:
        """Have a round soon: a lot runs low."""
        self._wake.set()

    async def recalled(self, session: AsyncSession) -> None:
        """Somebody needs what we do not use. For the change watcher."""
        del session
        self._is_recalled = True
        self._wake.set()

    def stop(self) -> None:
        """Let `run` end after the round under way."""
        self._is_stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Have a round whenever one is due, until stopped."""
        while not self._is_stopping:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._pause_s())
            self._wake.clear()
            if self._is_stopping:
                break
            self._measure_burn()
            if not self._is_due():
                continue
            try:
                await self._round()
            except (SQLAlchemyError, OSError) as error:
                _log.warning("budgets cannot be asked for (known slices last a while): %s", error)
                self._refuse_all(error)
                self._renew_at_s = self._clock.monotonic_s() + 1
        self._refuse_all(RuntimeError("stopping"))

    async def close(self) -> None:
        """Give everything back; the caller has booked everything that was spent.

        Raises:
            SQLAlchemyError, OSError: the database is away; the slices expire.
        """
        async with self.books, self._sessions() as session:
            await begin_writing(session)
            await close_owner(session, self._owner_id, now_ms=await database_ms(session, self._clock))
            await session.commit()

    # ------------------------------------------------------------------------------------------ when
    def _pause_s(self) -> float:
        if any(waiter.recalls for waiter in self._waiters):
            return _RECALL_LOOK_S
        return self._settings.look_interval_s

    def _is_due(self) -> bool:
        now_s = self._clock.monotonic_s()
        renewal = bool(self.holds.lots) and now_s >= self._renew_at_s
        return (
            bool(self._waiters)
            or self._is_recalled
            or renewal
            or any(map(self._is_low, self.holds.lots.values()))
        )

    def _is_low(self, lot: Lot) -> bool:
        is_scarce = lot.scarce_until_s > self._clock.monotonic_s()
        return not is_scarce and 2 * lot.free_usd_nanos < reserve_of(lot, self._settings.reserve_s)

    def _measure_burn(self) -> None:
        now_s = self._clock.monotonic_s()
        for lot in self.holds.lots.values():
            lot.measure(now_s)

    # ----------------------------------------------------------------------------------------- a round
    async def _round(self) -> None:
        """One transaction: serve whoever waits, lend a reserve, give back what is called for, renew."""
        self.rounds += 1
        now_s = self._clock.monotonic_s()
        is_renewing = now_s >= self._renew_at_s
        waiters = list(self._waiters)
        wanted = {bucket for waiter in waiters for bucket in waiter.needs}
        if is_renewing or self._is_recalled:
            wanted |= set(self.holds.lots)
        else:
            wanted |= {bucket for bucket, lot in self.holds.lots.items() if self._is_low(lot)}
        self._is_recalled = False
        settings = self._settings
        async with self.books, self._sessions() as session:
            await begin_writing(session)
            now_ms = await database_ms(session, self._clock)
            if is_renewing:
                await set_unattributed(
                    session, before_ms=now_ms - int(settings.slice_grace_s * 1000), now_ms=now_ms
                )
            windows = await locked_windows(session, wanted)
            slices = await slices_on(session, wanted)
            plan = Round(self.holds, windows, slices, owner_id=self._owner_id, now_s=now_s, now_ms=now_ms)
            await plan.revive(session)
            try:
                plan.serve(waiters)
                plan.keep_reserves(settings.reserve_s, is_renewing=is_renewing)
                plan.renew(now_ms + int(settings.slice_ttl_s * 1000))
                await plan.save(session)
                if plan.has_recalled:
                    self.recalls += 1
                    await note_change(session, TOPIC)
                await session.commit()
            except BaseException:
                plan.undo()
                raise
            plan.apply(expires_s=now_s + settings.slice_ttl_s)
        if is_renewing:
            self._renew_at_s = now_s + settings.slice_ttl_s / RENEWALS_PER_TTL
            self._forget_old_lots()
        for waiter, refusal in plan.answers:
            self._answer(waiter, refusal)

    def _answer(self, waiter: Waiter, refusal: GatewayError | None) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        if waiter.done.done():  # its client left during the round
            if refusal is None:
                self._unhold(waiter)
        elif refusal is None:
            waiter.done.set_result(None)
        else:
            self.refused += 1
            waiter.done.set_exception(refusal)

    def _unhold(self, waiter: Waiter) -> None:
        for bucket, amount in waiter.needs.items():
            self.holds.lot(bucket).held_usd_nanos -= amount

    def _refuse_all(self, error: Exception) -> None:
        for waiter in list(self._waiters):
            refusal = Overloaded(
                "Budgets cannot be checked at the moment. Try again shortly.",
                retry_after_s=2,
                operator_detail=f"no slice of {sorted(waiter.needs)}: {error}",
            )
            self._answer(waiter, refusal)

    def _forget_old_lots(self) -> None:
        lots = self.holds.lots
        for bucket in [bucket for bucket, lot in lots.items() if lot.is_empty]:
            del lots[bucket]


def _lasts_s(lot: Lot, now_s: float) -> float:
    valid_s = max(lot.expires_s - now_s, 0.0)
    if not lot.burn_usd_nanos_per_s:
        return valid_s
    return min(valid_s, max(lot.free_usd_nanos, 0) / lot.burn_usd_nanos_per_s)
