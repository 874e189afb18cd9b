"""Does a unit count only for the canary that its request was planned under?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from gateway.attempt_log import AttemptLog
from gateway.db import SessionFactory, create_engine, session_factory
from gateway.errors import BudgetExceeded
from gateway.migrate import upgrade
from gateway.refusals import Refusals
from gateway.routing.receipts import insert_receipts, units_of, with_unit
from gateway.routing.refusal_store import refused_units
from gateway.routing.split import Unit
from tests.support.clock import MovableClock
from tests.unit.gateway.test_attempt_log import make_plan


@pytest.fixture
async def sessions(tmp_path: Path) -> AsyncIterator[SessionFactory]:
    url = f"sqlite+aiosqlite:///{tmp_path / 'books.db'}"
    await asyncio.to_thread(upgrade, url)
    engine = create_engine(url)
    yield session_factory(engine)
    await engine.dispose()


async def test_a_refusal_counts_for_the_canary_of_its_plan_though_another_one_has_begun(
    sessions: SessionFactory,
) -> None:
    clock = MovableClock()
    refusals, is_over = Refusals(clock), asyncio.Event()
    plan = msgspec.structs.replace(make_plan(), unit=Unit(1, 255))
    version = plan.decision.policy_version

    async def reserving() -> AttemptLog:
        await is_over.wait()
        raise BudgetExceeded("used up")

    waiting = asyncio.get_running_loop().create_task(refusals.told(reserving(), plan))
    await asyncio.sleep(0)
    # The first canary ends and another one of the same versions begins, which refuses something of its own.
    refusals.saw("no_target", version=version, tenant_id="ten_1", unit=Unit(2, 7))
    is_over.set()
    with pytest.raises(BudgetExceeded):
        await waiting
    await refusals.write(sessions)
    async with sessions() as session:
        for canary, units in ((1, [f"{255:016x}"]), (2, [f"{7:016x}"])):
            found = await refused_units(session, canary, [version], written_until_ms=clock.epoch_ms())
            assert [one.unit for one in found] == units


async def test_a_shadows_units_are_no_canarys(sessions: SessionFactory) -> None:
    clock = MovableClock()
    refusals = Refusals(clock)
    refusals.saw("no_target", version="a@1", tenant_id="ten_1", unit=Unit(-1, 7))
    await refusals.write(sessions)
    assert refusals.seen == {("a@1", "no_target"): 1}
    async with sessions() as session:
        for number in (1, -1):
            assert await refused_units(session, number, ["a@1"], written_until_ms=clock.epoch_ms()) == []


async def test_an_attempt_counts_for_the_canary_of_its_plan(sessions: SessionFactory) -> None:
    bodies = {
        "req_first": with_unit(b'{"why":1}', Unit(1, 255)),
        "req_second": with_unit(b'{"why":1}', Unit(2, 7)),
        "req_none": b'{"why":1}',
        "req_old": b'{"why":1,"unit":"00000000000000aa"}',  # before receipts named the canary
    }
    async with sessions() as session:
        rows = [
            {"request_id": name, "started_at_ms": 1_000, "tenant_id": "ten_1", "body": body}
            for name, body in bodies.items()
        ]
        await insert_receipts(session, rows)
        requests = [(name, 1_000) for name in bodies]
        assert await units_of(session, requests, split=2) == {
            "req_second": f"{7:016x}",
            "req_old": f"{0xAA:016x}",
        }
        await session.commit()
