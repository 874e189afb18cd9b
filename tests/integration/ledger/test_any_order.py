"""Is any order of steps, crashes included, as exact as an oracle that knows neither slices nor processes?

Two processes share a day's budget and a total one on SQLite. Hypothesis draws the steps; on a failure it
prints the list of them, which is a program to run again, and the journal's end stands beside it.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.errors import BudgetExceeded
from gateway.inference import AttemptState
from gateway.ledger.buckets import Window
from gateway.ledger.budgets import Reservation
from gateway.ledger.settlement import OpenAttempt
from gateway.migrate import upgrade
from gateway.pricing.rates import Price, Rates
from gateway.settings import BudgetSettings
from tests.integration.ledger.accounts import WRONG, balances, check_books, journal_text
from tests.integration.ledger.oracle import MS_PER_DAY, Hold, Oracle
from tests.integration.ledger.site import Process, Site, eventually
from tests.support.clock import ShiftedClock

DAY_S = MS_PER_DAY // 1000
BUDGETS = BudgetSettings(
    look_interval_s=0.005, slice_ttl_s=3 * DAY_S, slice_grace_s=3 * DAY_S, recall_s=10, reserve_s=1
)
NAMES = ("one", "other")
ESTIMATE = 3
AMOUNTS = st.integers(1, 400)
PICKS = st.integers(0, 1_000)
STATES = st.sampled_from(["answered", "answered", "cancelled", "failed"])
T = TypeVar("T")


@dataclass
class Running:
    """The product's side of a hold."""

    reservation: Reservation
    attempt: OpenAttempt | None


class AnyOrder(RuleBasedStateMachine):
    """The product and the oracle, step by step."""

    template: Path
    """A migrated, empty database."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(self.template.parent, f"run-{id(self)}")
        self.folder.mkdir()
        shutil.copy(self.template, self.folder / "books.db")
        self.site = Site(f"sqlite+aiosqlite:///{self.folder / 'books.db'}", self.folder)
        now_ms = ShiftedClock().epoch_ms()
        # At noon, so that no day begins while the test runs but by its own steps.
        self.clock = ShiftedClock((MS_PER_DAY // 2 - now_ms % MS_PER_DAY) / 1000)
        self.live: dict[str, Process] = {}
        self.running: dict[int, Running] = {}
        self.days = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @initialize(day=st.integers(100, 2_000), total=st.integers(100, 4_000))
    def open(self, day: int, total: int) -> None:
        self.oracle = Oracle({"day": day, "total": total})
        for name in NAMES:
            self.run(self.start(name))
        self.run(self.site.budget(day, name="day", window=Window.DAY))
        self.run(self.site.budget(total, name="total", window=Window.TOTAL))

    async def start(self, name: str) -> None:
        self.live[name] = await self.site.process(
            name, clock=self.clock, settings=BUDGETS, does_ship=False, poll_interval_s=0.01
        )

    # --------------------------------------------------------------------------------------- requests
    @rule(pick=PICKS, amount=AMOUNTS, begins=st.booleans())
    def reserve(self, pick: int, amount: int, *, begins: bool) -> None:
        name = sorted(self.live)[pick % len(self.live)]
        process, places = self.live[name], self.oracle.places(self.clock.epoch_ms())
        try:
            reservation = self.run(process.reserve(amount))
        except BudgetExceeded as refusal:
            all_live = len(self.live) == len(NAMES)
            assert not (all_live and self.oracle.must_admit(amount, places)), refusal.caller_detail  # noqa: PT017 - either may be right
            return
        assert self.oracle.may_admit(amount, places), f"{amount} let in, {self.oracle}"
        assert [bucket.window_start_ms for bucket in reservation.counted] == [
            start for _, start in sorted(places, key=lambda place: self.ids()[place[0]])
        ]
        attempt = None
        if begins:
            price = self.oracle.price
            rates = Rates(input=0, cached_input=0, cache_write=0, output=price * 10**6, reasoning=0)
            attempt = process.begin(
                reservation, price=Price(f"price@{price}", rates), estimated_charge_usd_nanos=ESTIMATE
            )
        attempt_id = None if attempt is None else attempt._start.attempt_id
        hold = Hold(name, amount, places, self.oracle.price, attempt_id)
        self.oracle.holds.append(hold)
        self.running[id(hold)] = Running(reservation, attempt)

    def ids(self) -> dict[str, str]:
        records = self.live[min(self.live)].budgets.book._by_scope
        return {record.name: record.id for found in records.values() for record in found}

    @rule(pick=PICKS, share=st.sampled_from([0, 1, 50, 99, 100, 100, 150]), state=STATES)
    def settle(self, pick: int, share: int, state: str) -> None:
        holds = [hold for hold in self.oracle.holds if hold.process in self.live]
        if not holds:  # no precondition: where money was overdrawn it depends on time who is let in
            return
        hold = holds[pick % len(holds)]
        found = self.running.pop(id(hold))
        if found.attempt is None:  # given up before it was sent
            found.reservation.end()
            self.oracle.holds.remove(hold)
            return
        tokens = hold.amount * share // 100 // hold.price
        Process.finish(found.reservation, found.attempt, tokens, AttemptState(state))
        self.oracle.settle(hold, tokens, state)

    @rule(pick=PICKS)
    def flush(self, pick: int) -> None:
        self.run(self.live[sorted(self.live)[pick % len(self.live)]].shipper.drain())

    # ----------------------------------------------------------------------------- the world around it
    @rule(budget=st.sampled_from(["day", "total"]), limit=st.integers(0, 4_000))
    def change_limit(self, budget: str, limit: int) -> None:
        self.run(self.site.change(budget, limit_usd_nanos=limit))
        self.oracle.limits[budget] = limit
        self.run(self.see_what_is_lent(budget, limit))

    async def see_what_is_lent(self, budget: str, limit: int) -> None:
        """A lowered limit binds what is lent from then on: what is lent already may still be spent."""
        names = {budget_id: name for name, budget_id in self.ids().items()}
        for budget_id, start, taken in await self.site.rows(
            "SELECT budget_id, window_start_ms, posted_usd_nanos + leased_usd_nanos + unattributed_usd_nanos"
            " FROM budget_windows"
        ):
            if names[budget_id] == budget:
                self.oracle.lent_beyond[budget, start] = max(0, taken - limit)

    @rule(price=st.integers(1, 5))
    def change_price(self, price: int) -> None:
        self.oracle.price = price

    @precondition(lambda self: self.days < 40)
    @rule(days=st.integers(1, 4))
    def begin_another_day(self, days: int) -> None:
        self.days += days
        self.clock.leap(days * DAY_S)
        self.run(self.renewed())

    async def renewed(self) -> None:
        """Every living process has seen what time it is."""
        for _ in range(2):  # the first may book another's slice as unattributed, which that takes back
            for process in self.live.values():
                await self.have_round(process)

    @staticmethod
    async def have_round(process: Process) -> None:
        lessor = process.lessor
        target = lessor.rounds + 2  # one may be under way that has looked at the clock already

        def has_looked() -> bool:
            lessor._renew_at_s = 0.0
            lessor.refill()
            return lessor.rounds >= target or not lessor.holds.lots

        await eventually(has_looked)
        async with lessor.books:  # until that round is over
            return

    @precondition(lambda self: len(self.live) == len(NAMES))
    @rule(name=st.sampled_from(NAMES), comes_back=st.booleans())
    def crash(self, name: str, *, comes_back: bool) -> None:
        self.run(self.site.vanish(self.live.pop(name)))
        if comes_back:
            self.turn_up()
            return
        self.clock.leap(8 * DAY_S)
        self.run(self.renewed())

    @precondition(lambda self: len(self.live) < len(NAMES))
    @rule()
    def turn_up(self) -> None:
        (name,) = set(NAMES) - set(self.live)
        self.run(self.start(name))
        self.oracle.die(name, ESTIMATE)

    # ----------------------------------------------------------------------------------------- agreement
    @invariant()
    def keeps_the_limits(self) -> None:
        query = WRONG["nothing is lent or booked beyond the highest limit but overage"]
        if hasattr(self, "oracle"):
            found = self.run(self.site.rows(query))
            assert not found, self.run(journal_text(self.site))

    def teardown(self) -> None:
        try:
            if hasattr(self, "oracle"):
                self.run(self.compare())
        finally:
            self.run(self.site.close())
            self.runner.close()
            shutil.rmtree(self.folder)

    async def compare(self) -> None:
        for name in set(NAMES) - set(self.live):
            await self.start(name)
            self.oracle.die(name, ESTIMATE)
        names = {budget_id: name for name, budget_id in self.ids().items()}
        for name, process in self.live.items():
            await self.site.vanish(process)
            await self.start(name)
            self.oracle.die(name, ESTIMATE)
            await self.site.stop(self.live[name])
        rows = await self.site.rows("SELECT attempt_id, state, payer, charge_usd_nanos FROM attempts")
        assert {row[0]: tuple(row[1:]) for row in rows} == self.oracle.rows, await journal_text(self.site)
        windows = await self.site.rows(
            "SELECT budget_id, window_start_ms, posted_usd_nanos, leased_usd_nanos + unattributed_usd_nanos"
            " FROM budget_windows"
        )
        slices = await self.site.rows("SELECT * FROM budget_slices")
        assert not any(row[3] for row in windows), f"lent still: {windows}, {slices}"
        posted = {(names[row[0]], row[1]): row[2] for row in windows if row[2]}
        assert posted == {place: spent for place, spent in self.oracle.spent.items() if spent}
        paid = {
            payer: sum(charge for _, who, charge in self.oracle.rows.values() if who == payer)
            for payer in ("tenant", "platform")
        }
        expected = {
            "tenant:ten_1": paid["tenant"],
            "platform": paid["platform"],
            "usage": -sum(paid.values()),
        }
        assert await balances(self.site) == {
            account: amount for account, amount in expected.items() if amount
        }
        await check_books(self.site)


def test_any_order_of_steps_keeps_limits_and_books(tmp_path: Path) -> None:
    template = tmp_path / "template.db"
    upgrade(f"sqlite+aiosqlite:///{template}")
    machine = type("AnyOrder", (AnyOrder,), {"template": template})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=6,
            phases=(
                Phase.explicit,
                Phase.generate,
            ),  # to shrink takes minutes, for each step is a transaction
            stateful_step_count=25,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
