"""Are days that an older gateway did not book made again from their attempts, beside gateways that book?"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.clock import Clock
from gateway.closing import Wish, close_period
from gateway.ledger.cuts import MS_PER_DAY
from gateway.ledger.day_sums import Apart, Made, Total, days_apart, days_with_usage, rebuild_day
from gateway.ledger.findings import Extent
from gateway.ledger.invariants import examine, take_snapshot
from gateway.ledger.periods import month_named
from gateway.ledger.posting import book
from gateway.routing.receipts import insert_receipts
from gateway.seals import Signer
from tests.integration.ledger.accounts import check_books
from tests.integration.ledger.site import Site
from tests.support.factories import make_act
from tests.support.spend_rows import attempt_row, ended_of

CLOCK = Clock()
MONTH = "2026-01"
CHARGE = 210
"""Of one attempt, nano-USD."""


def at_ms(day: int, hour: int = 3) -> int:
    return int(datetime.fromisoformat(f"{MONTH}-{day:02}T{hour:02}:00:00Z").timestamp() * 1000)


FIRST = at_ms(1) // MS_PER_DAY
"""The month's first day, since 1970."""


def row(number: int, *, day: int, tenant: str = "ten_1", **values: Any) -> dict[str, Any]:
    started_at_ms = at_ms(day, number % 24) + number
    given = {
        "tenant_id": tenant,
        "started_at_ms": started_at_ms,
        "ended_at_ms": started_at_ms + 50,
        "pool": "plain",
        "price_version": "p@1",
        "input_tokens": 100,
        "output_tokens": 10,
        "cached_input_tokens": 0,
        "charge_usd_nanos": CHARGE,
        "hold_usd_nanos": CHARGE,
    }
    return attempt_row(number, **(given | values))


async def add(session: AsyncSession, *rows: dict[str, Any]) -> None:
    batch = [ended_of(each) for each in rows]
    await book(session, batch, owner_id="test", now_ms=CLOCK.epoch_ms(), insert_receipts=insert_receipts)


async def booked(site: Site, *rows: dict[str, Any]) -> None:
    async with site.sessions() as session:
        await add(session, *rows)
        await session.commit()


async def run(site: Site, statement: str) -> None:
    async with site.sessions() as session:
        await session.execute(text(statement))
        await session.commit()


async def apart(site: Site) -> list[Apart]:
    async with site.sessions() as session:
        await take_snapshot(session)
        days = await days_with_usage(session)
        return [each async for _, found in days_apart(session, days) for each in found]


async def rebuilt(site: Site, day: int, tenant: str = "ten_1") -> Made:
    async with site.sessions() as session:
        made = await rebuild_day(session, day, tenant)
        await session.commit()
        return made


async def is_broken(site: Site, since_ms: int = 0) -> bool:
    async with site.sessions() as session:
        await take_snapshot(session)
        extent = Extent(since_ms=since_ms, now_ms=CLOCK.epoch_ms(), grace_ms=1_200_000)
        found = {finding.id: finding.breaches async for finding in examine(session, extent)}
        return found["I-18"] > 0


async def truth(site: Site) -> list[list[Any]]:
    return [sorted(await site.rows(f"SELECT * FROM {name}")) for name in ("attempts", "spend_hours")]


@pytest.fixture
async def old(site: Site) -> Site:
    """Some days of two tenants, of which an older gateway has booked a part: hours, and no days."""
    rows = [row(number, day=1 + number % 3, tenant=f"ten_{1 + number % 2}") for number in range(24)]
    await booked(site, *rows[:18])
    kept = await site.rows("SELECT * FROM spend_days")
    await booked(site, *rows[18:])
    # What it did not book: the sums are those of before.
    async with site.engine.begin() as connection:
        await connection.execute(text("DELETE FROM spend_days"))
        marks = ", ".join(f":c{index}" for index in range(len(kept[0])))
        for each in kept:
            values = {f"c{index}": value for index, value in enumerate(each)}
            await connection.execute(text(f"INSERT INTO spend_days VALUES ({marks})"), values)
    return site


async def test_days_that_nobody_booked_are_seen_and_made_again_tenant_by_tenant(old: Site) -> None:
    assert await is_broken(old)
    assert await is_broken(old, since_ms=at_ms(3, 20)), "the look at the last hours sees its day too"
    found = await apart(old)
    assert [(each.day - FIRST, each.tenant_id) for each in found] == [
        (day, f"ten_{tenant}") for day in range(3) for tenant in (1, 2)
    ]
    assert {(each.kept, each.really) for each in found} == {(Total(3, 3 * CHARGE), Total(4, 4 * CHARGE))}
    before = await truth(old)
    assert await rebuilt(old, FIRST, "ten_2") is Made.REBUILT
    assert (FIRST, "ten_2") not in {(each.day, each.tenant_id) for each in await apart(old)}
    for each in found:
        expected = Made.RIGHT if (each.day, each.tenant_id) == (FIRST, "ten_2") else Made.REBUILT
        assert await rebuilt(old, each.day, each.tenant_id) is expected
    assert await apart(old) == []
    assert not await is_broken(old)
    await check_books(old)
    assert await truth(old) == before, "the ledger itself is not touched"
    await run(old, "DELETE FROM spend_days")
    assert len(await apart(old)) == 6, "a day without any sum is seen, too"


async def test_what_is_booked_meanwhile_is_in_the_day_once(old: Site) -> None:
    async with asyncio.TaskGroup() as tasks, old.sessions() as booking:
        await add(booking, row(100, day=1))
        rebuilding = tasks.create_task(rebuilt(old, FIRST))
        await asyncio.sleep(0.3)
        assert not rebuilding.done(), "it waits for whoever has booked and not committed"
        await booking.commit()
    assert rebuilding.result() is Made.REBUILT
    await run(old, "UPDATE spend_days SET attempts = attempts - 1 WHERE tenant_id = 'ten_1'")
    async with asyncio.TaskGroup() as tasks, old.sessions() as session:
        assert await rebuild_day(session, FIRST, "ten_1") is Made.REBUILT
        meanwhile = tasks.create_task(booked(old, row(101, day=1)))
        await asyncio.sleep(0.3)
        assert not meanwhile.done(), "bookings wait for it"
        await session.commit()
    for each in await apart(old):
        assert await rebuilt(old, each.day, each.tenant_id) is Made.REBUILT
    await check_books(old)


async def test_a_day_whose_hours_are_wrong_too_is_left_alone(old: Site) -> None:
    await run(old, "UPDATE spend_hours SET charge_usd_nanos = charge_usd_nanos + 1 WHERE tenant_id = 'ten_1'")
    before = sorted(await old.rows("SELECT * FROM spend_days"))
    assert await rebuilt(old, FIRST) is Made.HOURS_WRONG
    assert sorted(await old.rows("SELECT * FROM spend_days")) == before
    assert await rebuilt(old, FIRST, "ten_2") is Made.REBUILT


async def test_a_closed_months_days_come_to_what_was_sealed_or_stay(site: Site) -> None:
    await run(
        site,
        "INSERT INTO price_versions (version, target, input, cached_input, cache_write, output, reasoning,"
        " per_request, first_seen_at_ms) VALUES ('p@1', 'plain', 1500000, 0, 0, 6000000, 0, 0, 1)",
    )
    await booked(site, *(row(number, day=2) for number in range(4)))
    wish = Wish(month=month_named(MONTH), act=make_act(), grace_ms=0)
    await close_period(site.sessions, wish, signer=Signer([b"k" * 32]), clock=CLOCK)
    await booked(site, row(50, day=2))  # late: it counts in the next month, and is a part of its day
    await run(site, "DELETE FROM spend_days")
    assert await rebuilt(site, FIRST + 1) is Made.REBUILT
    await check_books(site)

    async with site.sessions() as session:  # now as if nobody had said that it came late
        if session.get_bind().dialect.name == "sqlite":
            await session.execute(text("DROP TRIGGER tollgate_append_only_late_hours_delete"))
        else:
            await session.execute(text("SET LOCAL session_replication_role = replica"))
        await session.execute(text("DELETE FROM late_hours"))
        await session.execute(text("DELETE FROM spend_days"))
        await session.commit()
    assert await rebuilt(site, FIRST + 1) is Made.SEALED
    assert await site.rows("SELECT * FROM spend_days") == []
