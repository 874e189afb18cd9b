"""Do processes whose machines disagree about the time agree about the window?"""

from __future__ import annotations

import pytest

from gateway.db import database_ms
from gateway.ledger.buckets import Window, window_at
from tests.integration.ledger.accounts import check_books
from tests.integration.ledger.site import ACCOUNT, Site
from tests.support.clock import ShiftedClock

MINUTES_5 = 300.0


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_clocks_that_differ_by_ten_minutes_share_a_window_and_an_hour(site: Site) -> None:
    clocks = [ShiftedClock(-MINUTES_5), ShiftedClock(MINUTES_5)]
    assert clocks[1].epoch_ms() - clocks[0].epoch_ms() >= 599_000
    processes = [await site.process(str(number), clock=clock) for number, clock in enumerate(clocks)]
    budgets = {window: await site.budget(1_000, name=window.value, window=window) for window in Window}
    async with site.sessions() as session:
        before_ms = await database_ms(session, clocks[0])
    for process in processes:
        process.settle(await process.reserve(30), 30)
    for process in processes:
        await site.stop(process)
    async with site.sessions() as session:
        after_ms = await database_ms(session, clocks[0])
    for window, budget in budgets.items():
        found = await site.rows(
            f"SELECT window_start_ms, posted_usd_nanos FROM budget_windows WHERE budget_id = '{budget.id}'"
        )
        starts = {window_at(window, before_ms)[0], window_at(window, after_ms)[0]}
        assert {row[0] for row in found} <= starts  # two only if a border was passed just now
        assert sum(row[1] for row in found) == 60
    for (started_at_ms,) in await site.rows("SELECT started_at_ms FROM attempts"):
        assert before_ms - 200 <= started_at_ms <= after_ms + 200
    await check_books(site)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_request_that_ends_in_the_next_month_counts_in_the_one_in_which_it_began(site: Site) -> None:
    clock = ShiftedClock()
    process = await site.process(clock=clock)
    await site.budget(1_000, window=Window.MONTH)
    start_ms, end_ms = window_at(Window.MONTH, clock.epoch_ms())
    assert end_ms is not None
    long = await process.reserve(900)
    attempt = process.begin(long)
    clock.leap((end_ms - clock.epoch_ms()) / 1000)
    assert process.budgets.book.binding(ACCOUNT, clock.epoch_ms()).counted[0].window_start_ms == end_ms
    fresh = await process.reserve(950)  # the new month has its whole limit
    process.settle(fresh, 11)
    process.finish(long, attempt, 500)
    await site.stop(process)
    found = await site.rows(
        "SELECT window_start_ms, posted_usd_nanos, leased_usd_nanos, overage_usd_nanos FROM budget_windows"
        " ORDER BY 1"
    )
    assert [tuple(row) for row in found] == [(start_ms, 500, 0, 0), (end_ms, 11, 0, 0)]
    await check_books(site)
