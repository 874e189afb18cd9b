"""Are months closed for ever, and do all of them come to what the ledger has, whatever comes late?"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from backends.replica_time import Phase, PhaseChange, Run
from gateway.audit import Act
from gateway.clock import Clock
from gateway.closing import BooksAreWrong, Closing, Wish, close_period, report_of, verify_period
from gateway.db import database_ms
from gateway.errors import Conflict, InvalidRequest, NotFound, PermissionDenied
from gateway.ledger.adjustments import NewAdjustment, decide, propose
from gateway.ledger.cuts import moment_of
from gateway.ledger.findings import Extent
from gateway.ledger.invariants import examine, take_snapshot
from gateway.ledger.periods import list_periods, month_named
from gateway.ledger.posting import book
from gateway.ledger.reports import SpendReport, spend_report
from gateway.ledger.supply import MS_PER_HOUR
from gateway.ledger.supply_count import counted
from gateway.ledger.supply_store import book_hour, record_runs
from gateway.ledger.supply_terms import terms_of
from gateway.money import usd_text
from gateway.routing.receipts import insert_receipts
from gateway.seals import Signer
from tests.integration.ledger.accounts import check_books
from tests.integration.ledger.site import Site
from tests.support.factories import make_act, make_pool_spec
from tests.support.spend_rows import attempt_row, ended_of

CLOCK = Clock()
MONTHS = ("2026-01", "2026-02", "2026-03", "2026-04")
"""All over, whenever this runs: PostgreSQL's clock is its own."""
SIGNER = Signer([b"k" * 32])
INPUT_NANOS, OUTPUT_NANOS = 150, 600
"""A token's price."""


def second_person() -> Act:
    act = make_act()
    return dataclasses.replace(act, actor=dataclasses.replace(act.actor, id="cli:other"))


class Year:
    """Some months of one installation."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.count = 0

    async def price(self) -> None:
        async with self.site.sessions() as session:
            await session.execute(
                text(
                    "INSERT INTO price_versions (version, target, input, cached_input, cache_write, output,"
                    " reasoning, per_request, first_seen_at_ms)"
                    f" VALUES ('p@1', 'plain', {INPUT_NANOS}000000, 0, 0, {OUTPUT_NANOS}000000, 0, 0, 1)"
                )
            )
            await session.commit()

    def row(self, month: str, **values: Any) -> dict[str, Any]:
        self.count += 1
        at_ms = int(datetime.fromisoformat(f"{month}-02T03:00:00Z").timestamp() * 1000) + self.count
        tokens = {"input_tokens": 100 + self.count % 7, "output_tokens": 10}
        charge = tokens["input_tokens"] * INPUT_NANOS + tokens["output_tokens"] * OUTPUT_NANOS
        made = {"started_at_ms": at_ms, "ended_at_ms": at_ms + 50, "pool": "plain", "price_version": "p@1"}
        return attempt_row(
            self.count, **{**made, **tokens, "charge_usd_nanos": charge, "hold_usd_nanos": charge, **values}
        )

    async def book(self, *rows: dict[str, Any]) -> None:
        async with self.site.sessions() as session:
            batch = [ended_of(row) for row in rows]
            now_ms = CLOCK.epoch_ms()
            await book(session, batch, owner_id="test", now_ms=now_ms, insert_receipts=insert_receipts)
            await session.commit()

    async def close(self, month: str, **changes: Any) -> Closing:
        wish = Wish(**{"month": month_named(month), "act": make_act(), "grace_ms": 0, **changes})
        return await close_period(self.site.sessions, wish, signer=SIGNER, clock=CLOCK)

    async def adjust(self, amount: int, tenant: str = "ten_1") -> None:
        new = NewAdjustment("correction", tenant, amount, "agreed", charge_month="2026-01")
        async with self.site.sessions() as session:
            row = await propose(session, new, act=make_act())
            await session.commit()
        async with self.site.sessions() as session:
            now_ms = CLOCK.epoch_ms()
            await decide(session, row.id, is_approved=True, act=second_person(), now_ms=now_ms)
            await session.commit()

    async def report(self, month: str, *by: str) -> SpendReport:
        span = month_named(month)
        async with self.site.sessions() as session:
            await take_snapshot(session)
            return await spend_report(
                session, group_by=by, start=moment_of(span.start_ms), end=moment_of(span.end_ms)
            )

    async def is_right(self, month: str, signer: Signer = SIGNER) -> dict[str, str]:
        """What does not hold of a closed month, and why."""
        async with self.site.sessions() as session:
            checks = await verify_period(session, month_named(month), signer)
            return {check.what: check.why for check in checks if not check.holds}

    async def journal_total(self) -> int:
        rows = await self.site.rows(
            "SELECT coalesce(sum(amount_usd_nanos), 0) FROM journal_entries"
            " WHERE account LIKE 'tenant:%' OR account = 'platform'"
        )
        return int(rows[0][0])


@pytest.fixture
async def year(site: Site) -> Year:
    made = Year(site)
    await made.price()
    return made


async def _foots(year: Year, now: str) -> None:
    """Every month together, closed or open, is what the journal has; by hours and by attempts."""
    for by in ((), ("pool", "day"), ("price", "month"), ("tag:x",)):
        total = 0
        for month in (*MONTHS, "2026-05", now):  # the one after the last closed has what came late
            report = await year.report(month, *by)
            assert report.is_footed, (month, by)
            total += report.total.charge_usd_nanos + report.total.platform_usd_nanos
            total += sum(line.amount_usd_nanos for line in report.adjustments)
        assert total == await year.journal_total(), by


@pytest.mark.parametrize("seed", [1, 2])
async def test_closed_and_open_months_come_to_the_ledger_whatever_comes_late(year: Year, seed: int) -> None:
    dice, kept = random.Random(seed), dict[str, bytes]()
    now = f"{CLOCK.now():%Y-%m}"
    payers: tuple[dict[str, Any], ...] = (
        {},
        {"payer": "platform", "state": "failed"},
        {"pool": "other", "tags": {"x": "y"}},
    )
    await year.book(year.row("2026-01"))
    for month in MONTHS:
        for _ in range(dice.randint(1, 3)):
            await year.book(*(year.row(dice.choice(MONTHS), **dice.choice(payers)) for _ in range(4)))
        await year.adjust(dice.choice((-5_000, 7_001)), dice.choice(("ten_1", "platform")))
        closed = (await year.close(month)).period
        kept[month] = report_of(closed)
        late = year.row(dice.choice(sorted(kept)), **dice.choice(payers))
        await year.book(late, year.row(now))
        await _foots(year, now)
        for earlier, body in kept.items():
            again = await year.close(earlier)
            assert not again.is_new
            assert report_of(again.period) == body
            assert await year.is_right(earlier) == {}
            report = await year.report(earlier, "tenant")
            said = msgspec.json.decode(body)["ledger"]["totals"]
            assert said["charge_usd"] == usd_text(report.total.charge_usd_nanos)
            assert said["platform_usd"] == usd_text(report.total.platform_usd_nanos)
    await check_books(year.site)


async def test_late_usage_is_a_line_of_the_open_period_that_names_its_own_month(year: Year) -> None:
    await year.book(year.row("2026-01"))
    await year.close("2026-01")
    late = year.row("2026-01", tags={"x": "y"})
    await year.book(late)
    before, after = await year.report("2026-01", "day"), await year.report("2026-02", "day")
    assert (before.total.requests, before.corrections) == (1, {})
    assert [group for group, _ in after.rows] == [("2026-02-01",)]
    assert after.corrections["2026-01"].charge_usd_nanos == late["charge_usd_nanos"]
    await year.close("2026-02")
    (row,) = msgspec.json.decode(report_of((await year.close("2026-02")).period))["ledger"]["corrections"][
        "rows"
    ]
    assert (row[0], row[-1]) == ("2026-01-02", usd_text(late["charge_usd_nanos"]))


async def test_closing_and_booking_at_once_leave_nothing_in_both_or_in_neither(year: Year) -> None:
    await year.book(year.row("2026-01"))
    rows = [year.row("2026-01") for _ in range(12)]
    await asyncio.gather(*(year.book(row) for row in rows[:6]), year.close("2026-01"))
    await asyncio.gather(*(year.book(row) for row in rows[6:]))
    assert await year.is_right("2026-01") == {}
    closed, following = await year.report("2026-01"), await year.report("2026-02")
    assert closed.total.requests + following.total.requests == 13
    assert following.total.requests >= 6


async def test_what_may_not_be_closed_says_why(year: Year) -> None:
    await year.book(year.row("2026-02"))
    for month, changes, said in (
        (f"{CLOCK.now():%Y-%m}", {}, "ends at"),
        ("2026-03", {}, "2026-02 comes first"),
        ("2026-02", {"grace_ms": 10**12}, "usage may still arrive until"),
        ("2026-02", {"in_spools": frozenset({"att_lost"})}, "1 attempts wait in spools"),
    ):
        with pytest.raises(Conflict, match=said):
            await year.close(month, **changes)
    with pytest.raises(InvalidRequest, match="written 2026-10"):
        month_named("October")
    with pytest.raises(NotFound, match="is not closed"):
        await year.is_right("2026-02")
    made = await year.close("2026-02", is_early=True, in_spools=frozenset({"att_lost"}))
    assert "att_lost" in made.warnings[0]
    with pytest.raises(Conflict, match="before the first closed period"):
        await year.close("2026-01")
    async with year.site.sessions() as session:
        states = await list_periods(session, now_ms=CLOCK.epoch_ms(), grace_ms=0)
    assert [(each.month.id, each.state) for each in states][-2:] == [
        ("2026-03", "due"),
        ("2026-02", "closed"),
    ]


async def test_no_month_is_closed_over_wrong_books(year: Year) -> None:
    await year.book(year.row("2026-01", charge_usd_nanos=1))
    with pytest.raises(BooksAreWrong, match="I-14"):
        await year.close("2026-01")


async def test_periods_are_chained_and_signed_and_any_change_is_seen(year: Year) -> None:
    await year.book(year.row("2026-01"), year.row("2026-02"))
    first, second = [(await year.close(month)).period for month in ("2026-01", "2026-02")]
    assert msgspec.json.decode(second.seal)["previous_seal_sha256"] == first.seal_sha256
    assert await year.is_right("2026-02", Signer([b"new" * 16, b"k" * 32])) == {}
    assert (
        "keep old keys"
        in (await year.is_right("2026-02", Signer([b"new" * 16])))["by a secret key of this installation"]
    )
    with pytest.raises(DBAPIError, match="append-only"):
        await _execute(year, "UPDATE closed_periods SET charge_usd_nanos = 0")
    if year.site.engine.dialect.name == "sqlite":  # whoever owns the file may do anything
        for table in ("closed_periods", "attempts"):
            await _execute(year, f"DROP TRIGGER tollgate_append_only_{table}_update")
        await _execute(year, "UPDATE attempts SET charge_usd_nanos = charge_usd_nanos + 1")
        assert "1 rows closed as" in (await year.is_right("2026-01"))["the report says what the ledger says"]
        await _execute(year, "UPDATE closed_periods SET report_sha256 = 'x', signature = public_key")
        wrong = await year.is_right("2026-01")
        assert {"the report has its hash", "the seal says what the period says", "the seal is signed"} <= {
            *wrong
        }


async def test_usage_that_comes_while_the_report_is_written_is_in_it(year: Year) -> None:
    """The first draft does not hold any more when it is to be sealed."""
    await year.book(year.row("2026-01"))
    opened = 0

    def with_late_usage() -> Any:
        nonlocal opened
        opened += 1
        # The third session writes the first draft: after the preconditions and the look at the books.
        return _Meanwhile(year, is_late=opened == 3)

    wish = Wish(month_named("2026-01"), make_act(), grace_ms=0)
    sessions: Any = with_late_usage
    made = await close_period(sessions, wish, signer=SIGNER, clock=CLOCK)
    said = msgspec.json.decode(report_of(made.period))["ledger"]
    assert sum(row[8] for row in said["usage"]["rows"]) == 2, "requests of both"
    async with year.site.sessions() as session:
        assert all(check.holds for check in await verify_period(session, month_named("2026-01"), SIGNER))
    await check_books(year.site)


class _Meanwhile:
    """A session at whose end somebody else has booked usage of the month."""

    def __init__(self, year: Year, *, is_late: bool) -> None:
        self._year, self._is_late = year, is_late
        self._session = year.site.sessions()

    async def __aenter__(self) -> Any:
        return await self._session.__aenter__()

    async def __aexit__(self, *error: object) -> None:
        await self._session.__aexit__(*error)
        if self._is_late:
            await self._year.book(self._year.row("2026-01"))


async def test_who_dies_while_closing_leaves_the_month_open(year: Year) -> None:
    await year.book(year.row("2026-01"))

    class Dying(Signer):
        def sign(self, seal: bytes) -> str:
            raise MemoryError(len(seal))

    wish = Wish(month_named("2026-01"), make_act(), grace_ms=0)
    with pytest.raises(MemoryError):
        await close_period(year.site.sessions, wish, signer=Dying([b"k" * 32]), clock=CLOCK)
    await year.book(year.row("2026-01"))
    made = await year.close("2026-01")
    assert made.is_new
    assert (await year.report("2026-01")).total.requests == 2


async def _execute(year: Year, statement: str) -> None:
    async with year.site.engine.begin() as connection:
        await connection.execute(text(statement))


async def test_a_credit_needs_two_people_and_is_a_line_of_its_own(year: Year) -> None:
    await year.book(year.row("2026-01"))
    new = NewAdjustment("credit", "ten_1", -5_000, "Outage", charge_month="2026-01")
    async with year.site.sessions() as session:
        row = await propose(session, new, act=make_act())
        with pytest.raises(PermissionDenied, match="second person"):
            await decide(session, row.id, is_approved=True, act=make_act(), now_ms=CLOCK.epoch_ms())
        await decide(session, row.id, is_approved=True, act=second_person(), now_ms=CLOCK.epoch_ms())
        with pytest.raises(Conflict, match="approved by cli:other already"):
            await decide(session, row.id, is_approved=False, act=second_person(), now_ms=CLOCK.epoch_ms())
        await session.commit()
    now = await year.report(f"{CLOCK.now():%Y-%m}", "tenant")
    assert (now.total.charge_usd_nanos, now.adjustments_usd_nanos) == (0, -5_000)
    assert (await year.report("2026-01")).adjustments == ()
    await check_books(year.site)


@pytest.mark.parametrize(
    ("name", "table", "change"),
    [
        ("I-15", "late_hours", "charge_usd_nanos = charge_usd_nanos + 1"),
        ("I-15", "late_hours", "billed_in_ms = hour_start_ms"),
        ("I-23", "adjustments", "amount_usd_nanos = amount_usd_nanos - 1"),
        ("I-23", "adjustment_proposals", "decided_by = proposed_by"),
    ],
)
async def test_the_audit_sees_late_usage_and_adjustments_that_were_changed(
    year: Year, name: str, table: str, change: str
) -> None:
    await year.book(year.row("2026-01"))
    await year.close("2026-01")
    await year.book(year.row("2026-01"))
    new = NewAdjustment("credit", "ten_1", -5_000, "Outage", charge_month="2026-01")
    async with year.site.sessions() as session:
        row = await propose(session, new, act=make_act())
        await decide(session, row.id, is_approved=True, act=second_person(), now_ms=CLOCK.epoch_ms())
        await session.commit()
    assert name not in await _broken(year)
    async with year.site.engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            await connection.execute(text(f"DROP TRIGGER IF EXISTS tollgate_append_only_{table}_update"))
        else:
            await connection.execute(text("SET LOCAL session_replication_role = replica"))
        await connection.execute(text(f"UPDATE {table} SET {change}"))
    assert name in await _broken(year)


async def _broken(year: Year) -> set[str]:
    async with year.site.sessions() as session:
        extent = Extent(since_ms=0, now_ms=await database_ms(session, CLOCK), grace_ms=0)
        return {found.id async for found in examine(session, extent) if found.breaches}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "gift"}, "one of credit"),
        ({"amount_usd_nanos": 0}, "of nothing is none"),
        ({"amount_usd_nanos": 5}, "below zero"),
        ({"reason": " "}, "Say why"),
    ],
)
def test_an_adjustment_that_makes_no_sense_says_why(changes: dict[str, Any], said: str) -> None:
    new = NewAdjustment("credit", "ten_1", -1, "why")
    with pytest.raises(InvalidRequest, match=said):
        dataclasses.replace(new, **changes).check()


def test_months_are_utc() -> None:
    assert month_named("2026-10").end_ms == int(datetime(2026, 11, 1, tzinfo=UTC).timestamp()) * 1000


async def test_pool_hours_are_frozen_before_their_month_is_closed(year: Year) -> None:
    terms = terms_of({"plain": make_pool_spec()})
    month = month_named("2026-01")
    hour_ms = month.end_ms - MS_PER_HOUR
    changes = (
        PhaseChange(1, "plain", "plain-0", Phase.STARTING, hour_ms),
        PhaseChange(2, "plain", "plain-0", Phase.SERVING, hour_ms + 60_000),
    )
    async with year.site.sessions() as session:
        await record_runs(session, [Run("a" * 20, month.end_ms, True, changes)], source="driver")
        await session.commit()
    await year.book(year.row("2026-01"))
    with pytest.raises(Conflict, match="not frozen yet: 1 of plain"):
        await year.close("2026-01", terms=terms)
    async with year.site.sessions() as session:
        bill = await counted(session, terms["plain"], hour_ms)
        for booked_in_ms in (hour_ms, month.end_ms):  # the second one corrects it, in February
            await book_hour(
                session, terms["plain"], bill, booked_in_ms=booked_in_ms, booked_before_ms=1, now_ms=1
            )
        await session.commit()
    closed = (await year.close("2026-01", terms=terms)).period
    assert closed.supply_usd_nanos == bill.bill_usd_nanos > 0
    supply = msgspec.json.decode(report_of(closed))["ledger"]["supply"]
    assert sum(int(line[-1].replace(".", "")) for line in supply["lines"]) == bill.bill_usd_nanos
    following = msgspec.json.decode(report_of((await year.close("2026-02")).period))["ledger"]["supply"]
    assert [row[1:3] for row in following["bills"]] == [["2026-02-01", "2026-01-31"]]
    assert await year.is_right("2026-01") == {}
