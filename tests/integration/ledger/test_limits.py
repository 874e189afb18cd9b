"""Do limits bind when they change, soft ones only tell, and is what goes beyond shown?"""

from __future__ import annotations

import pytest

from gateway.errors import BudgetExceeded
from gateway.ledger.buckets import Account, Scope
from tests.integration.ledger.accounts import check_books
from tests.integration.ledger.site import Process, Site, eventually


async def refuses(process: Process, amount: int, account: Account | None = None) -> BudgetExceeded:
    with pytest.raises(BudgetExceeded) as caught:
        await (process.reserve(amount) if account is None else process.reserve(amount, account))
    return caught.value


async def told(site: Site) -> list[tuple[int, int]]:
    rows = await site.rows("SELECT percent, posted_usd_nanos FROM budget_alerts ORDER BY percent")
    return [(percent, posted) for percent, posted in rows]


async def test_a_lowered_limit_binds_at_once_and_a_raised_one_lets_more_in(site: Site) -> None:
    one, other = await site.process(), await site.process()
    await site.budget(1_000)
    held = await one.reserve(300)
    await site.change("budget", limit_usd_nanos=299)
    await refuses(other, 1)
    await refuses(one, 1)
    one.settle(held, 300)  # it was let in and is booked in full, from its slice
    await site.change("budget", limit_usd_nanos=350)
    await refuses(other, 51)
    other.settle(await other.reserve(50), 50)
    await refuses(one, 1)
    await site.change("budget", limit_usd_nanos=351)
    one.settle(await one.reserve(1), 1)
    for process in (one, other):
        await site.stop(process)
    assert await site.window() == {"posted": 351, "leased": 0, "unattributed": 0, "overage": 0}
    await check_books(site)


async def test_a_soft_budget_never_refuses_and_tells_each_share_once(site: Site) -> None:
    process = await site.process(does_ship=False)
    await site.budget(100, is_hard=False)

    async def spend(amount: int) -> list[tuple[int, int]]:
        process.settle(await process.reserve(10_000), amount)
        await process.shipper.drain()
        return await told(site)

    assert await spend(49) == []
    assert await spend(1) == [(50, 50)]
    assert await spend(29) == [(50, 50)]
    assert await spend(30) == [(50, 50), (80, 109), (100, 109)]
    assert process.shipper.alerts == 3
    # A limit that moves makes nobody say the same twice.
    await site.change("budget", limit_usd_nanos=300)
    assert await spend(100) == [(50, 50), (80, 109), (100, 109)]
    assert process.shipper.alerts == 3
    assert await site.window() == {"posted": 209, "leased": 0, "unattributed": 0, "overage": 0}
    await check_books(site)


async def test_a_share_that_a_lowered_limit_made_reached_is_told_with_the_next_booking(site: Site) -> None:
    process = await site.process(does_ship=False)
    await site.budget(1_000)
    process.settle(await process.reserve(90), 90)
    await process.shipper.drain()
    assert await told(site) == []
    await site.change("budget", limit_usd_nanos=110)
    process.settle(await process.reserve(1), 1)
    await process.shipper.drain()
    assert await told(site) == [(50, 91), (80, 91)]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_budget_binds_the_key_that_took_the_place_of_its_key(site: Site) -> None:
    process = await site.process()
    await site.budget(100, scope=Scope.KEY, scope_id="key1")
    rotated = Account(tenant_id="ten_1", project_id="prj_1", key_ids=("key2", "key1"))
    another = Account(tenant_id="ten_1", project_id="prj_1", key_ids=("key3",))
    process.settle(await process.reserve(60), 60)
    await refuses(process, 41, rotated)
    process.settle(await process.reserve(40, rotated), 40, key_id="key2")
    await refuses(process, 1)
    await refuses(process, 1, rotated)
    (await process.reserve(10_000, another)).end()


async def test_a_charge_beyond_its_hold_is_booked_and_shown_as_overage(site: Site) -> None:
    process = await site.process(does_ship=False)
    await site.budget(100)
    process.settle(await process.reserve(100), 130)
    await refuses(process, 1)  # also before it is booked
    await process.shipper.drain()
    assert await site.window() == {"posted": 130, "leased": 0, "unattributed": 0, "overage": 30}
    assert await site.rows("SELECT amount_usd_nanos, overage_usd_nanos FROM budget_postings") == [(130, 30)]
    refusal = await refuses(process, 1)
    assert "0.000000000 USD left" in refusal.caller_detail
    await site.change("budget", limit_usd_nanos=140)
    await refuses(process, 11)
    (await process.reserve(10)).end()
    await eventually(lambda: process.lessor.holds.held_usd_nanos == 0)
    await check_books(site)
