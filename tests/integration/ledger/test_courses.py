"""Do a budget's steps and a bill's course add up to what the books have, on both databases?"""

from __future__ import annotations

from typing import Any

from gateway.ledger.buckets import Window
from gateway.ledger.budget_store import BudgetState
from gateway.ledger.burn_down import MS_PER_DAY, booked_by_step
from gateway.ledger.cuts import MS_PER_HOUR
from gateway.ledger.supply import LineKind
from gateway.ledger.supply_course import supply_course
from gateway.ledger.supply_tables import SupplyLine
from gateway.ledger.tables import BudgetPosting, JournalTransaction
from tests.integration.ledger.site import Site

DAY_MS = 20_000 * MS_PER_DAY


async def test_what_was_booked_is_in_exactly_one_step(site: Site) -> None:
    budget = await site.budget(1_000, window=Window.MONTH)
    bookings = {0: 5, MS_PER_DAY - 1: 7, MS_PER_DAY: 11, 3 * MS_PER_DAY: 13}
    async with site.sessions() as session:
        for offset_ms, amount in bookings.items():
            booking = f"jtx_{DAY_MS + offset_ms:012x}{'0' * 20}"
            session.add(JournalTransaction(id=booking, kind="usage", at_ms=DAY_MS + offset_ms, note="-"))
            await session.flush()
            posting = BudgetPosting(
                transaction_id=booking,
                budget_id=budget.id,
                window_start_ms=DAY_MS,
                owner_id="spool",
                amount_usd_nanos=amount,
            )
            session.add(posting)
        await session.commit()
        state = BudgetState(budget, DAY_MS, DAY_MS + 30 * MS_PER_DAY)
        bounds = [DAY_MS + day * MS_PER_DAY for day in range(5)]
        assert await booked_by_step(session, state, bounds) == [12, 11, 0, 13]
        other = BudgetState(budget, DAY_MS + 30 * MS_PER_DAY, None)
        assert await booked_by_step(session, other, bounds) == [0, 0, 0, 0]


async def test_a_bills_course_is_by_hour_or_day_and_by_pool(site: Site) -> None:
    nobody = dict.fromkeys(("tenant_id", "project_id", "key_id", "model_alias", "task"), "")
    lines = (
        ("plain", 0, "idle", 3),
        ("plain", 1, "idle", 5),
        ("plain", 1, "request", 7),
        ("big", 25, "idle", 11),
    )
    async with site.sessions() as session:
        for pool, hour, line, amount in lines:
            at_ms = DAY_MS + hour * MS_PER_HOUR
            about: dict[str, Any] = {
                "pool": pool,
                "hour_start_ms": at_ms,
                "corrects_hour_ms": at_ms,
                **nobody,
            }
            session.add(SupplyLine(line=line, cost_usd_nanos=amount, **about))
        await session.commit()
        within: dict[str, Any] = {"start_ms": DAY_MS, "end_ms": DAY_MS + 2 * MS_PER_DAY}
        by_day = await supply_course(session, **within, step_ms=MS_PER_DAY)
        assert by_day == {
            DAY_MS: {LineKind.IDLE: 8, LineKind.REQUEST: 7},
            DAY_MS + MS_PER_DAY: {LineKind.IDLE: 11},
        }
        by_hour = await supply_course(session, **within, step_ms=MS_PER_HOUR, pool="plain")
        assert by_hour == {
            DAY_MS: {LineKind.IDLE: 3},
            DAY_MS + MS_PER_HOUR: {LineKind.IDLE: 5, LineKind.REQUEST: 7},
        }
