"""Is a limit kept to the nano-dollar by processes that do not ask for each request?"""

from __future__ import annotations

import asyncio
import random

import pytest

from gateway.errors import BudgetExceeded
from gateway.ledger.buckets import Account, Bucket, Scope
from gateway.ledger.budgets import Reservation
from gateway.ledger.slice_store import locked_windows, save_windows
from tests.integration.ledger.site import ACCOUNT, Process, Site


async def attempt(process: Process, amount: int, account: Account = ACCOUNT) -> Reservation | BudgetExceeded:
    try:
        return await process.reserve(amount, account)
    except BudgetExceeded as refusal:
        return refusal


async def test_equal_requests_of_two_processes_fill_a_limit_exactly(site: Site) -> None:
    processes = [await site.process(), await site.process()]
    await site.budget(1_000)
    tries = [attempt(processes[number % 2], 7) for number in range(200)]
    found = await asyncio.gather(*tries)
    admitted = [each for each in found if isinstance(each, Reservation)]
    assert len(admitted) == 1_000 // 7
    assert sum(process.lessor.holds.held_usd_nanos for process in processes) == 994
    window = await site.window()
    assert 994 <= window["leased"] <= 1_000
    for reservation in admitted:
        reservation.end()
    # All of it can be had again, by either process.
    whole = await attempt(processes[0], 1_000)
    assert isinstance(whole, Reservation)
    whole.end()


@pytest.mark.parametrize("seed", [1, 2])
async def test_none_is_refused_while_the_rest_would_cover_it(site: Site, seed: int) -> None:
    draw = random.Random(seed)
    processes = [await site.process(), await site.process()]
    await site.budget(1_000)
    held = 0
    smallest_refused = None
    for number in range(60):
        amounts = [draw.randint(1, 60) for _ in range(2)]
        found = await asyncio.gather(
            *(attempt(processes[(number + index) % 2], amount) for index, amount in enumerate(amounts))
        )
        for amount, each in zip(amounts, found, strict=True):
            if isinstance(each, Reservation):
                held += amount
            else:
                smallest_refused = min(smallest_refused or amount, amount)
        assert held <= 1_000
        if smallest_refused is not None:
            assert smallest_refused > 1_000 - held, "refused although it would have fitted"
    assert smallest_refused is not None


async def test_settling_frees_what_was_not_spent_and_the_books_agree(site: Site) -> None:
    one, other = await site.process(), await site.process()
    await site.budget(1_000)
    for number in range(100):
        process = (one, other)[number % 2]
        reservation = await process.reserve(100 if number < 50 else 10)
        process.settle(reservation, 10 - (number == 99))
    # 999 are spent: a request that may come to 2 must be refused, one of 1 is admitted.
    refusal = await attempt(one, 2)
    assert isinstance(refusal, BudgetExceeded)
    assert "at most 0.000000001 USD left" in refusal.caller_detail
    last = await other.reserve(1)
    other.settle(last, 1)
    await site.stop(one)
    await site.stop(other)
    assert await site.window() == {"posted": 1_000, "leased": 0, "unattributed": 0, "overage": 0}
    assert await site.rows("SELECT count(*) FROM budget_slices") == [(0,)]


async def test_several_budgets_are_held_together_or_not_at_all(site: Site) -> None:
    process = await site.process()
    await site.budget(1_000, name="wide")
    await site.budget(50, name="narrow", scope=Scope.KEY, scope_id="key1")
    assert isinstance(await attempt(process, 40), Reservation)
    refusal = await attempt(process, 40)
    assert isinstance(refusal, BudgetExceeded)
    assert "'narrow'" in refusal.caller_detail
    # The wide one has not lost the refused 40.
    other_key = Account(tenant_id="ten_1", project_id="prj_1", key_ids=("key2",))
    assert isinstance(await attempt(process, 960, other_key), Reservation)
    assert isinstance(await attempt(process, 1, other_key), BudgetExceeded)


@pytest.mark.parametrize("has_reserve", [True, False])
async def test_a_dead_process_gives_back_what_it_did_not_spend(site: Site, *, has_reserve: bool) -> None:
    dead, other = await site.process("shared"), await site.process("elsewhere")
    await site.budget(1_000)
    if has_reserve:  # it spent and is granted more than it holds
        dead.settle(await dead.reserve(100), 100)
    left_open = await dead.reserve(300)
    dead.begin(left_open, estimated_charge_usd_nanos=3)
    await site.kill(dead)
    spent = 100 if has_reserve else 0
    assert isinstance(await attempt(other, 1_000 - spent), BudgetExceeded)
    await site.process("shared")  # recovers the spool: the open attempt is the platform's
    whole = await attempt(other, 1_000 - spent)
    assert isinstance(whole, Reservation)
    whole.end()
    states = await site.rows("SELECT state, payer, charge_usd_nanos FROM attempts ORDER BY state")
    interrupted = ("interrupted", "platform", 3)
    assert states == ([("answered", "tenant", 100)] if has_reserve else []) + [interrupted]


async def test_whoever_looks_at_a_bucket_to_change_it_has_it_alone(site: Site) -> None:
    """Two that look first and write later would each undo what the other has lent or given back."""
    process = await site.process()
    budget = await site.budget(1_000)
    bucket = Bucket(budget.id, 0)
    has_looked, may_write = asyncio.Event(), asyncio.Event()
    async with process.sessions() as session:  # it is there already: making it is a write
        await locked_windows(session, [bucket])
        await session.commit()

    async def lend(amount: int) -> None:
        async with process.sessions() as session:
            windows = await locked_windows(session, [bucket])
            has_looked.set()
            await may_write.wait()
            windows[bucket].leased_usd_nanos += amount
            await save_windows(session, windows)
            await session.commit()

    async with asyncio.TaskGroup() as group:
        group.create_task(lend(7))
        await has_looked.wait()
        other = group.create_task(lend(9))
        await asyncio.sleep(0.3)  # long enough to look, if nothing keeps it from that
        may_write.set()
        await other
    assert (await site.window())["leased"] == 16
