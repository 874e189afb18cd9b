"""Is a copy ever sent without the evaluation budget's hold?"""

from typing import Any

import msgspec
import pytest

from gateway.copies import payer_of
from gateway.course import most_of
from gateway.errors import BudgetExceeded, NoEligibleTarget
from gateway.identity.shedding import Shedder
from gateway.ledger.admission import Budgets
from gateway.ledger.buckets import Bucket, BudgetBook, BudgetRecord, Window
from gateway.ledger.budgets import Holds
from gateway.ledger.evaluation import shadow_owner
from gateway.pipeline import Pipeline
from gateway.plan import Plan
from gateway.telemetry import Telemetry
from tests.support.clock import MovableClock
from tests.unit.gateway.test_attempt_log import CALLER, make_plan

OWNER = shadow_owner(1)
BUDGET = BudgetRecord("bud_1", "b", OWNER.scope, OWNER.scope_id, OWNER.tenant_id, Window.TOTAL, 10**9, True)
BUCKET = Bucket(BUDGET.id, 0)
BOUND = most_of(make_plan().bounds)
"""What the hold for all bytes of the request comes to."""


class Site:
    """A pipeline for copies whose budget has too little left for all bytes of a request."""

    def __init__(self, *, left_usd_nanos: int = 0, is_in_force: bool = True) -> None:
        self.registry = None
        self.clock, self.holds = MovableClock(), Holds()
        self.budgets = Budgets(self.holds, self, self.clock)  # type: ignore[arg-type]  # see `obtain`
        self.budgets.book = BudgetBook([BUDGET] if is_in_force else [])
        lot = self.holds.lot(BUCKET)
        lot.granted_usd_nanos, lot.expires_s = left_usd_nanos, 1e9
        self.held_when_sent: list[int] = []
        self.is_stopped_meanwhile = False
        rest: Any = None
        self.pipeline = Pipeline(
            routing=rest,
            dispatcher=self,  # type: ignore[arg-type]  # see `send`
            budgets=self.budgets,
            settlement=rest,
            cache=rest,
            shedder=Shedder(lambda: 1, weights={}),
            telemetry=Telemetry(),
            clock=self.clock,
        )

    def plan(self) -> Plan:
        plan = msgspec.structs.replace(make_plan(), caller=payer_of(CALLER, 1), slot=None)
        return msgspec.structs.replace(plan, held_by=BUDGET.id)

    async def obtain(self, *_: Any) -> None:
        """The lessor: nothing is left anywhere."""
        raise BudgetExceeded("used up")

    async def count_input(self, *_: Any) -> int:
        """An engine counts, and meanwhile the shadow is stopped: its budget is retired."""
        if self.is_stopped_meanwhile:
            self.budgets.book = BudgetBook()
        return 1

    async def send(self, *_: Any, **__: Any) -> Any:
        self.held_when_sent.append(self.holds.lot(BUCKET).held_usd_nanos)
        raise NoEligibleTarget("that will do", removed_by_rules=False)


async def test_a_copy_is_not_sent_when_its_shadow_is_stopped_between_two_holds() -> None:
    site = Site(left_usd_nanos=BOUND - 1)
    site.is_stopped_meanwhile = True
    with pytest.raises(BudgetExceeded):
        await site.pipeline.answer(site.plan())
    assert (site.held_when_sent, site.holds.open_count, site.holds.held_usd_nanos) == ([], 0, 0)


async def test_nor_when_the_budget_has_gone_before_the_first() -> None:
    site = Site(left_usd_nanos=BOUND, is_in_force=False)
    with pytest.raises(BudgetExceeded):
        await site.pipeline.answer(site.plan())
    assert (site.held_when_sent, site.holds.open_count) == ([], 0)


async def test_it_is_sent_while_the_hold_stands() -> None:
    site = Site(left_usd_nanos=BOUND - 1)
    with pytest.raises(NoEligibleTarget):
        await site.pipeline.answer(site.plan())
    (held,) = site.held_when_sent
    assert 0 < held < BOUND
    assert site.holds.open_count == 0
