"""Are pool-hours frozen once, do they add up, and does what comes late become a correction?"""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from backends.pool import PoolSpec, ReplicaState
from backends.registry import PoolRegistry
from backends.replica_time import Phase, PhaseChange, Run
from backends.supply_spec import SupplySpec
from gateway.clock import Clock
from gateway.jobs.leases import begin_turn
from gateway.jobs.replica_time import observe
from gateway.jobs.scheduler import Scheduler
from gateway.jobs.supply import SupplyBooks, supply_jobs
from gateway.ledger.findings import Extent, Finding
from gateway.ledger.invariants import examine
from gateway.ledger.periods import Month, missing_supply
from gateway.ledger.posting import book
from gateway.ledger.supply import MS_PER_HOUR, LineKind
from gateway.ledger.supply_begin import first_instants, note_declarations
from gateway.ledger.supply_report import SupplyReport, supply_report
from gateway.ledger.supply_store import open_observations, record_runs
from gateway.ledger.supply_terms import terms_of
from gateway.routing.receipts import insert_receipts
from gateway.settings import SupplySettings
from tests.integration.ledger.site import Site
from tests.support.factories import make_pool_spec
from tests.support.spend_rows import attempt_row, ended_of

CLOCK = Clock()
MINUTE_MS = 60_000
RUN = "a" * 20
NANOS = 120_000_000
"""An hour of the pool's replica: 0.12 USD."""


class Books:
    """Hours that are over, up to the present one."""

    def __init__(self, site: Site, spec: PoolSpec | None = None) -> None:
        self.site = site
        self.terms = terms_of({"plain": spec or make_pool_spec()})
        self.now_ms = CLOCK.epoch_ms()
        self.this_ms = self.now_ms // MS_PER_HOUR * MS_PER_HOUR

    def hour(self, back: int) -> int:
        """The first instant of an hour that is over since so many others."""
        return self.this_ms - back * MS_PER_HOUR

    async def ran(self, start_ms: int, until_ms: int, run: str = RUN, *, is_over: bool = False) -> None:
        """A replica started, was ready after a minute, and ran until then."""
        changes = (
            PhaseChange(1, "plain", "plain-0", Phase.STARTING, start_ms),
            PhaseChange(2, "plain", "plain-0", Phase.SERVING, start_ms + MINUTE_MS),
        )
        async with self.site.sessions() as session:
            await record_runs(session, [Run(run, until_ms, is_over, changes)], source="driver")
            await session.commit()

    async def used(self, number: int, start_ms: int, took_ms: int, *, booked_ms: int, **values: Any) -> None:
        """An attempt ran, and was booked at some time."""
        when = {"started_at_ms": start_ms, "ended_at_ms": start_ms + took_ms}
        row = attempt_row(number, **{"pool": "plain", "replica": "plain-0", **when, **values})
        async with self.site.sessions() as session:
            await book(
                session, [ended_of(row)], owner_id="test", now_ms=booked_ms, insert_receipts=insert_receipts
            )
            await session.commit()

    async def freeze(self, *, grace_s: float = 0) -> None:
        turn = await begin_turn(self.site.sessions, CLOCK, "supply", holder="test", ttl_s=60)
        assert turn is not None
        await SupplyBooks(self.terms, self.site.sessions, CLOCK, grace_s=grace_s).freeze(
            turn, asyncio.Event()
        )
        await turn.end(None)

    async def report(self, *by: str, hours: int = 24) -> SupplyReport:
        end = datetime.fromtimestamp(self.this_ms / 1000, UTC) + timedelta(hours=1)
        async with self.site.sessions() as session:
            return await supply_report(
                session,
                self.terms,
                group_by=by,
                start=end - timedelta(hours=hours + 1),
                end=end,
                now_ms=self.now_ms,
            )

    async def bills(self) -> list[tuple[int, int, int]]:
        """Hours back: of the booking, of what it is about; and the amount."""
        async with self.site.engine.connect() as connection:
            found = await connection.execute(
                text("SELECT hour_start_ms, corrects_hour_ms, bill_usd_nanos FROM supply_hours ORDER BY 1, 2")
            )
            return [
                ((self.this_ms - a) // MS_PER_HOUR, (self.this_ms - b) // MS_PER_HOUR, c) for a, b, c in found
            ]

    async def lines(self, about_back: int, *, booked_back: int | None = None) -> dict[str, int]:
        """What is booked of an hour, by kind of line."""
        booked = "" if booked_back is None else f" AND hour_start_ms = {self.hour(booked_back)}"
        statement = (
            "SELECT line, sum(cost_usd_nanos) FROM supply_lines"
            f" WHERE corrects_hour_ms = {self.hour(about_back)}{booked} GROUP BY line"
        )
        async with self.site.engine.connect() as connection:
            return {line: int(cost) for line, cost in await connection.execute(text(statement))}

    async def finding(self) -> Finding:
        async with self.site.sessions() as session:
            extent = Extent(since_ms=0, now_ms=self.now_ms, grace_ms=0)
            (found,) = [one async for one in examine(session, extent) if one.id == "I-22"]
            return found


async def test_hours_are_frozen_in_order_and_what_is_late_corrects_them(site: Site) -> None:
    books = Books(site)
    old_ms, late_ms = books.now_ms - 10 * MINUTE_MS, books.now_ms - 1000
    await books.ran(books.hour(3), books.now_ms)
    # From the third hour back into the second: a minute before, two after.
    await books.used(1, books.hour(2) - MINUTE_MS, 3 * MINUTE_MS, booked_ms=old_ms)
    await books.freeze(grace_s=3600)
    assert await books.bills() == [(3, 3, NANOS), (2, 2, NANOS)]
    a_minute = NANOS // 60
    assert await books.lines(3) == {"warm_up": a_minute, "request": a_minute, "idle": NANOS - 2 * a_minute}
    assert await books.lines(2) == {"request": 2 * a_minute, "idle": NANOS - 2 * a_minute}
    await books.freeze(grace_s=3600)
    assert len(await books.bills()) == 2, "frozen once"
    before = await books.report("tenant")

    # A spool that is recovered: an attempt of another tenant beside the first, as long and as many tokens.
    await books.used(
        2, books.hour(2) - MINUTE_MS, 3 * MINUTE_MS, booked_ms=late_ms, tenant_id="ten_2", task="code"
    )
    open_hours = await books.report("tenant")
    assert open_hours.rows["ten_1",].usage_usd_nanos == before.rows["ten_1",].usage_usd_nanos
    await books.freeze()
    assert await books.bills() == [(3, 3, NANOS), (2, 2, NANOS), (1, 3, 0), (1, 2, 0), (1, 1, NANOS)]
    assert await books.lines(2, booked_back=2) == {"request": 2 * a_minute, "idle": NANOS - 2 * a_minute}
    after = await books.report("tenant")
    # Both were in together all the time, so each has half.
    assert after.rows["ten_1",].usage_usd_nanos == after.rows["ten_2",].usage_usd_nanos == 3 * a_minute // 2
    assert after.bill_usd_nanos == open_hours.bill_usd_nanos
    finding = await books.finding()
    assert (finding.looked_at, finding.breaches, finding.examples) == (5, 0, [])


async def test_replica_time_that_comes_late_corrects_the_bill(site: Site) -> None:
    books = Books(site)
    await books.ran(books.hour(3), books.hour(2))
    await books.freeze(grace_s=3600)
    assert await books.bills() == [(3, 3, NANOS), (2, 2, 0)]
    # The machine was cut off and had gone on; and another one that nobody knew of.
    await books.ran(books.hour(3), books.hour(2) + 30 * MINUTE_MS, is_over=True)
    await books.ran(books.hour(2), books.hour(2) + 15 * MINUTE_MS, "b" * 20)
    await books.ran(books.hour(3), books.hour(3) + 5, is_over=True)  # an older reading takes nothing back
    await books.freeze()
    assert (1, 2, NANOS * 3 // 4) in await books.bills()
    report = await books.report("pool")
    assert report.bill_usd_nanos == NANOS * 7 // 4
    assert report.pools["plain"].corrections_usd_nanos == NANOS * 3 // 4
    assert (await books.finding()).breaches == 0


async def test_a_report_foots_on_every_cut(site: Site) -> None:
    books = Books(site)
    old_ms = books.now_ms - 10 * MINUTE_MS
    await books.ran(books.hour(2), books.now_ms)
    for number in range(12):
        await books.used(
            number,
            books.hour(2) + (5 + 7 * number) * MINUTE_MS,
            (1 + number) * MINUTE_MS,
            booked_ms=old_ms,
            tenant_id=f"ten_{number % 3}",
            task=("chat", "code")[number % 2],
            queue_ms=float(number * 10),
            output_tokens=10 * number,
            payer="platform" if number == 7 else "tenant",
        )
    await books.used(
        20, books.hour(1), 5, booked_ms=old_ms, tenant_id="platform", task="heartbeat", payer="platform"
    )
    await books.used(
        21, books.hour(1), 5, booked_ms=old_ms, cache="hit", usage_source="none", charge_usd_nanos=0
    )
    await books.used(22, books.hour(1), 5, booked_ms=old_ms, charge_usd_nanos=77, tenant_id="ten_9")
    await books.freeze(grace_s=3600)
    whole = await books.report()
    assert whole.pools["plain"].frozen_hours == 1
    assert whole.pools["plain"].open_hours == 2
    for cut in (
        ("tenant",),
        ("task", "tenant"),
        ("day",),
        ("pool", "month", "key"),
        ("project", "week", "model"),
        (),
    ):
        report = await books.report(*cut)
        # Overhead is shared within a day, week or month: at midnight one may have nobody to share it.
        told = dataclasses.replace(report.total, allocated_usd_nanos=whole.total.allocated_usd_nanos)
        assert (told if {"day", "week", "month"} & {*cut} else report.total) == whole.total, cut
        assert sum(report.lines.values()) == report.bill_usd_nanos == whole.bill_usd_nanos
        unallocated = sum(pool.unallocated_usd_nanos for pool in report.pools.values())
        assert report.total.allocated_usd_nanos + unallocated == report.bill_usd_nanos
        assert report.total.usage_usd_nanos == report.lines[LineKind.REQUEST]
    assert whole.total.charge_usd_nanos == 11 * 1_000_000 + 77
    assert {LineKind.FAILED, LineKind.HEARTBEAT, LineKind.WARM_UP, LineKind.IDLE} < set(whole.lines)
    ratio = whole.pools["plain"].utilisation_ratio
    assert ratio is not None
    assert 0 < ratio < 1


def reserved(**supply: Any) -> PoolSpec:
    """A pool of two GPUs that is paid for whether it runs or not: 5 USD an hour."""
    prices = ({"since": "2026-01-01", "kind": "reserved", "usd_per_gpu_hour": "2.5"},)
    spec = make_pool_spec()
    hardware = spec.hardware.model_copy(update={"gpus_per_replica": 2})
    spec_of_supply = SupplySpec.model_validate({"prices": prices, **supply})
    return spec.model_copy(update={"hardware": hardware, "supply": spec_of_supply})


async def declare(books: Books, back: int) -> None:
    """A gateway read the file so many hours ago."""
    async with books.site.sessions() as session:
        await note_declarations(session, books.terms, now_ms=books.hour(back) + MINUTE_MS)
        await session.commit()


async def test_reserved_hours_are_paid_for_since_they_were_declared_not_since_the_first_request(
    site: Site,
) -> None:
    books = Books(site, reserved())
    await books.used(1, books.hour(9), 5, booked_ms=books.now_ms - 10 * MINUTE_MS, pool="outside")
    await books.freeze()
    assert await books.bills() == [], "a pool that is added owes nothing for what was before"
    async with site.engine.begin() as connection:
        await connection.execute(text("DELETE FROM pool_declarations"))
    await declare(books, 1)
    await books.freeze()
    assert await books.bills() == [(1, 1, 5_000_000_000)]
    assert await books.lines(1) == {"unused": 5_000_000_000}
    report = await books.report("tenant")
    assert report.pools["plain"].unallocated_usd_nanos == report.bill_usd_nanos
    assert reserved().hardware.usd_per_hour == Decimal("0.12")


async def test_a_stated_instant_is_billed_from_but_no_closed_month(site: Site) -> None:
    began = datetime.fromtimestamp(CLOCK.epoch_ms() / 1000, UTC) - timedelta(hours=3)
    books = Books(site, reserved(since=began))
    await close_until(site, books.hour(2))
    await books.freeze()
    assert await books.bills() == [(back, back, 5_000_000_000) for back in (2, 1)]
    async with site.sessions() as session:
        month = Month("closed", books.hour(9), books.hour(2))
        assert await missing_supply(session, books.terms, month) == {}, "closed months miss nothing"


async def test_what_was_seen_in_a_closed_month_is_booked_in_the_open_one(site: Site) -> None:
    books = Books(site)
    await close_until(site, books.hour(2))
    await books.ran(books.hour(4), books.now_ms)
    await books.freeze()
    assert await books.bills() == [(2, 4, NANOS), (2, 3, NANOS), (2, 2, NANOS), (1, 1, NANOS)]
    await books.freeze()
    assert len(await books.bills()) == 4, "once"
    assert (await books.finding()).breaches == 0


async def test_what_was_seen_in_a_closed_month_waits_for_an_hour_that_is_over(site: Site) -> None:
    books = Books(site)
    await close_until(site, books.hour(0))
    await books.ran(books.hour(4), books.now_ms)
    await books.freeze()
    assert await books.bills() == []


async def test_a_pool_that_was_away_is_not_billed_for_that_time(site: Site) -> None:
    books = Books(site, reserved())
    await declare(books, 8)
    async with site.sessions() as session:
        first = await first_instants(session, books.terms)
        assert first == {"plain": books.hour(8) + MINUTE_MS}
        await note_declarations(session, {}, now_ms=books.hour(5))
        await session.commit()
    await declare(books, 2)
    await books.freeze()
    assert [back for back, _, _ in await books.bills()] == [2, 1]


async def close_until(site: Site, end_ms: int) -> None:
    """As if everything before an instant had been closed."""
    async with site.engine.begin() as connection:
        columns = (
            "id, name, start_ms, end_ms, report, report_bytes, report_sha256, seal, seal_sha256, signature"
        )
        numbers = ", charge_usd_nanos, platform_usd_nanos, adjustments_usd_nanos, supply_usd_nanos"
        await connection.execute(
            text(
                f"INSERT INTO closed_periods ({columns}, public_key, closed_at_ms, closed_by{numbers})"
                f" VALUES ('closed', 'closed', 0, {end_ms}, :report, 0, '', '', '', '', '', 0, '',"
                " 0, 0, 0, 0)"
            ),
            {"report": b""},
        )


async def test_what_is_frozen_cannot_be_changed_and_the_audit_sees_what_does_not_add_up(site: Site) -> None:
    books = Books(site)
    await books.ran(books.hour(1), books.now_ms)
    await books.freeze()
    for statement in (
        "UPDATE supply_lines SET cost_usd_nanos = 0",
        "DELETE FROM supply_hours",
        "UPDATE replica_phases SET at_ms = 0",
    ):
        with pytest.raises(DBAPIError, match="append-only"):
            async with site.engine.begin() as connection:
                await connection.execute(text(statement))
    async with site.engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO supply_lines SELECT hour_start_ms, pool, corrects_hour_ms, 'evaluation',"
                " tenant_id, project_id, key_id, model_alias, task, 7, 0, 0 FROM supply_lines"
                " WHERE line = 'idle'"
            )
        )
    finding = await books.finding()
    assert finding.breaches == 1
    assert finding.examples[0]["lines_usd_nanos"] == NANOS + 7


async def test_a_pool_whose_file_is_gone_is_paid_for_as_long_as_it_was_seen(site: Site) -> None:
    books = Books(site)
    await books.ran(books.hour(3), books.hour(2) + 30 * MINUTE_MS, is_over=True)
    await books.freeze(grace_s=2 * 3600)
    assert await books.bills() == [(3, 3, NANOS)]
    books.terms = {}
    await books.freeze()
    await books.freeze()
    assert await books.bills() == [(3, 3, NANOS), (2, 2, NANOS // 2)]


async def test_the_gateways_jobs_freeze_hours_and_see_whose_turn_it_is(site: Site) -> None:
    books = Books(site)
    await books.ran(books.hour(2), books.now_ms)
    registry = PoolRegistry({"plain": make_pool_spec()})
    registry.set_replicas("plain", {"plain-0": "http://127.0.0.1:9"})
    registry.set_state("plain-0", ReplicaState.READY)
    jobs = supply_jobs(
        registry, site.sessions, clock=CLOCK, settings=SupplySettings(grace_s=0, interval_s=1e6, look_s=1e6)
    )
    for holder in ("one", "two"):
        await Scheduler(site.sessions, CLOCK, jobs, holder=holder, first_after_s=1).look()
    assert await books.bills() == [(2, 2, NANOS), (1, 1, NANOS)]
    async with site.engine.connect() as connection:
        seen = await connection.execute(text("SELECT source FROM replica_runs WHERE NOT is_over ORDER BY 1"))
        assert list(seen.scalars()) == ["driver", "observed"]
    registry.set_state("plain-0", ReplicaState.UNHEALTHY)
    async with site.sessions() as session:
        await observe(session, registry, now_ms=books.now_ms)
        await session.commit()
        assert await open_observations(session, since_ms=0) == {}
