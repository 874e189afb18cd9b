"""What becomes of what is lent when a budget is softened, retired or made hard again?"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from gateway.clock import Clock
from gateway.db import database_ms
from gateway.ledger.budget_store import retire_budget, update_budget
from gateway.ledger.findings import Extent
from gateway.ledger.invariants import examine
from gateway.settings import BudgetSettings
from tests.integration.gateway.rig import PATIENCE_S, eventually
from tests.integration.ledger.site import Process, Site
from tests.support.factories import make_act

OFTEN = BudgetSettings(look_interval_s=0.02, slice_ttl_s=2)
"""Slices are renewed every third of a second."""


async def change(site: Site, **changes: Any) -> None:
    async with site.sessions() as session:
        if changes:
            await update_budget(session, "budget", act=make_act(), **changes)
        else:
            await retire_budget(session, "budget", act=make_act())
        await session.commit()
    for process in site.processes:
        await process.watcher.refresh()


async def until_lent(site: Site, amount: int) -> dict[str, int]:
    deadline_s = time.monotonic() + PATIENCE_S
    while (window := await site.window())["leased"] != amount:
        assert time.monotonic() < deadline_s, window
        await asyncio.sleep(0.02)
    return window


async def broken(site: Site, process: Process) -> list[str]:
    async with site.sessions() as session:
        extent = Extent(since_ms=0, now_ms=await database_ms(session, Clock()), grace_ms=10**6)
        found = [finding async for finding in examine(session, extent)]
    # The prices of this site are nowhere written down.
    return [finding.id for finding in found if finding.breaches and finding.id != "I-14"]


@pytest.mark.parametrize("end", ["softened", "retired"])
async def test_what_is_lent_on_a_budget_that_binds_nobody_is_given_back(site: Site, end: str) -> None:
    process = await site.process(settings=OFTEN)
    await site.budget(100_000)
    for _ in range(20):  # it has a pace, and keeps a reserve for it
        process.settle(await process.reserve(100), 50)
    under_way = await process.reserve(100)
    await change(site, **({"is_hard": False} if end == "softened" else {}))
    await until_lent(site, 100)
    process.settle(under_way, 60)
    window = await until_lent(site, 0)
    assert window == {"posted": 1_060, "leased": 0, "unattributed": 0, "overage": 0}
    await eventually(lambda: not process.lessor.holds.lots)
    rounds = process.lessor.rounds
    after = await process.reserve(10**9)
    process.settle(after, 10)
    assert process.lessor.rounds == rounds, "nobody is asked any more"
    assert await broken(site, process) == []


async def test_what_was_under_way_while_a_budget_was_soft_counts_once_it_is_hard(site: Site) -> None:
    process = await site.process(settings=OFTEN)
    await site.budget(1_000, is_hard=False)
    process.settle(await process.reserve(5_000), 1_200)
    await eventually(lambda: not process.spool.unshipped_count)
    under_way = await process.reserve(400)
    await change(site, is_hard=True, limit_usd_nanos=2_000)
    assert await broken(site, process) == []
    held = await process.reserve(700)  # 2,000 - 1,200, without what is under way
    process.settle(under_way, 300)
    await eventually(lambda: not process.spool.unshipped_count)
    # The soft one's 300 were taken from what is lent: nothing is left of it to be held twice.
    (lot,) = process.lessor.holds.lots.values()
    assert lot.spent_usd_nanos == 0
    process.settle(held, 650)
    await eventually(lambda: not process.spool.unshipped_count)
    window = await site.window()
    assert window["posted"] == 2_150
    assert window["overage"] >= 2_150 - 2_000
    assert await broken(site, process) == []
