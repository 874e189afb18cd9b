"""What becomes of money that was lent to a process of which nothing is heard, dead or not?"""

from __future__ import annotations

import pytest

from gateway.errors import BudgetExceeded, Overloaded
from gateway.settings import BudgetSettings
from tests.integration.ledger.accounts import balances, check_books
from tests.integration.ledger.site import Process, Site, eventually
from tests.support.clock import ShiftedClock

SETTINGS = BudgetSettings(look_interval_s=0.02, slice_ttl_s=1_000, slice_grace_s=500)
OVER_S = 1_001.0
GRACE_TOO_S = 600.0


async def until_renewed(process: Process) -> None:
    rounds = process.lessor.rounds
    process.lessor.refill()
    await eventually(lambda: process.lessor.rounds > rounds)
    async with process.lessor.books:  # until that round is over
        return


async def refuses(process: Process, amount: int) -> BudgetExceeded:
    with pytest.raises(BudgetExceeded) as caught:
        await process.reserve(amount)
    return caught.value


async def give_up(site: Site, survivor: Process, *clocks: ShiftedClock) -> None:
    """Time passes until the slices of those who are silent are booked as unattributed."""
    await site.pass_time(OVER_S, *clocks)
    await until_renewed(survivor)
    assert (await site.window())["unattributed"] == 0  # it may still come back
    await site.pass_time(OVER_S + GRACE_TOO_S, *clocks)
    await until_renewed(survivor)


async def test_a_process_without_a_database_spends_its_slices_until_they_are_over(site: Site) -> None:
    clock, line = ShiftedClock(), site.line()
    process = await site.process(line=line, clock=clock, settings=SETTINGS, does_ship=False)
    await site.budget(1_000)
    process.settle(await process.reserve(20), 20)
    await until_renewed(process)  # and has a reserve now
    line.is_cut = True
    process.settle(await process.reserve(20), 20)
    clock.leap(OVER_S)
    with pytest.raises(Overloaded):
        await process.reserve(20)
    line.is_cut = False
    process.settle(await process.reserve(20), 20)
    await site.stop(process)
    assert await site.window() == {"posted": 60, "leased": 0, "unattributed": 0, "overage": 0}
    await check_books(site)


async def test_what_a_lost_process_had_counts_until_its_records_turn_up(site: Site) -> None:
    clock, others_clock = ShiftedClock(), ShiftedClock()
    lost = await site.process("lost", clock=clock, settings=SETTINGS, does_ship=False)
    survivor = await site.process("survivor", clock=others_clock, settings=SETTINGS)
    budget = await site.budget(1_000)
    survivor.settle(await survivor.reserve(10), 10)
    lost.settle(await lost.reserve(100), 100)
    lost.begin(await lost.reserve(300), estimated_charge_usd_nanos=3)
    await site.kill(lost)
    ((had,),) = await site.rows(
        f"SELECT amount_usd_nanos FROM budget_slices WHERE owner_id = '{lost.spool.owner_id}'"
    )
    assert had >= 400
    await give_up(site, survivor, others_clock)
    window = await site.window()
    assert window["unattributed"] == had
    lost_account = {f"unattributed:{budget.id}": had, f"suspense:{budget.id}": -had}
    assert (await balances(site)).items() >= lost_account.items()
    await refuses(survivor, 1_000 - 10 - had + 1)
    (await survivor.reserve(1_000 - 10 - had)).end()
    await check_books(site)

    again = await site.process("lost", clock=others_clock, settings=SETTINGS)
    whole = await survivor.reserve(1_000 - 10 - 100)
    await refuses(again, 1)
    whole.end()
    assert await balances(site) == {"tenant:ten_1": 110, "platform": 3, "usage": -113}
    kinds = await site.rows(
        "SELECT kind, count(*) FROM journal_transactions WHERE kind <> 'usage' GROUP BY kind ORDER BY kind"
    )
    # The survivor's own slice was over too, if only for an instant: each is taken back once.
    assert [row[0] for row in kinds] == ["reversal", "unattributed"]
    assert kinds[0][1] == kinds[1][1]
    await check_books(site)


@pytest.mark.parametrize("books_before_it_renews", [True, False])
async def test_one_that_was_believed_dead_and_lives_keeps_what_it_holds(
    site: Site, *, books_before_it_renews: bool
) -> None:
    clock, line, others_clock = ShiftedClock(), site.line(), ShiftedClock()
    silent = await site.process("silent", line=line, clock=clock, settings=SETTINGS, does_ship=False)
    survivor = await site.process("survivor", clock=others_clock, settings=SETTINGS)
    await site.budget(1_000)
    survivor.settle(await survivor.reserve(10), 10)
    silent.settle(await silent.reserve(100), 100)
    running = await silent.reserve(500)
    attempt = silent.begin(running)
    line.is_cut = True
    await give_up(site, survivor, others_clock)
    assert (await site.window())["unattributed"] >= 600
    line.is_cut = False
    if books_before_it_renews:
        await silent.shipper.drain()
    clock.leap(OVER_S)
    await until_renewed(silent)
    # 110 are spent and 500 held: nobody may be lent what it holds.
    await refuses(survivor, 391)
    rest = await survivor.reserve(390)
    silent.finish(running, attempt, 500)
    survivor.settle(rest, 390)
    await site.stop(silent)
    await site.stop(survivor)
    assert await site.window() == {"posted": 1_000, "leased": 0, "unattributed": 0, "overage": 0}
    assert await balances(site) == {"tenant:ten_1": 1_000, "usage": -1_000}
    await check_books(site)
