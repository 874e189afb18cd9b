"""Does every file come to what the ledger has, to the nano-USD, with what came late and what was adjusted?"""

from __future__ import annotations

import csv
import io
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from pyarrow import parquet
from sqlalchemy import text

from gateway.jobs.export_work import run_export
from gateway.ledger.cuts import moment_of
from gateway.ledger.exports import Export, Footing
from gateway.ledger.invariants import take_snapshot
from gateway.ledger.periods import Month, month_at, month_named
from gateway.ledger.statement import Statement, Subject, statement_of
from gateway.ledger.statement_reading import read_month
from gateway.spend_names import read_names
from scripts.focus_validator import ENVIRONMENT, check
from tests.integration.ledger.site import Site
from tests.integration.ledger.test_periods import CLOCK, MONTHS, Year
from tests.support.focus_checks import Row, found_by_row, number, sums

ROOT = Path(__file__).parents[3]
NANOS = 10**9
TENANTS = ("ten_1", "ten_2")
SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
KINDS: tuple[dict[str, Any], ...] = (
    {"format": "csv", "group_by": ("tenant", "pool", "day")},
    {"format": "xlsx", "group_by": ("month", "tag:x")},
    {"format": "parquet", "group_by": ()},
    {"format": "csv", "rows": "attempts"},
    {"format": "xlsx", "rows": "attempts"},
    {"format": "parquet", "rows": "attempts"},
    {"format": "focus"},
    {"format": "focus-parquet"},
)


async def exported(site: Site, month: Month, **wanted: Any) -> tuple[bytes, Footing]:
    target = io.BytesIO()
    export = Export(start_ms=month.start_ms, end_ms=month.end_ms, **wanted)
    async with site.sessions() as session:
        footing = await run_export(session, export, target, now_ms=CLOCK.epoch_ms())
    return target.getvalue(), footing


def lines_of(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode(), newline=""), strict=True))


def focus_rows(content: bytes) -> list[Row]:
    return [{name: value or None for name, value in line.items()} for line in lines_of(content)]


def cells(kind: dict[str, Any], content: bytes) -> list[dict[str, Any]]:
    """The amounts of every row, exact, by another program's reader."""
    if kind["format"].endswith("parquet"):
        found: list[dict[str, Any]] = parquet.read_table(io.BytesIO(content)).to_pylist()
        return found
    if kind["format"] == "xlsx":
        sheet = openpyxl.load_workbook(io.BytesIO(content), read_only=True)["exact amounts"]
        titles, *rows = sheet.iter_rows(values_only=True)
        return [dict(zip(map(str, titles), row, strict=True)) for row in rows]
    return list(lines_of(content))


def total_of(rows: list[dict[str, Any]]) -> int:
    """What a person adds up: nano-USD."""
    names = ("charge_usd", "platform_usd", "adjustment_usd", "BilledCost")
    amounts = [Decimal(str(row[name])) for row in rows for name in names if row.get(name) not in {None, ""}]
    return int(sum(amounts, start=Decimal(0)) * NANOS)


@pytest.fixture
async def year(site: Site) -> Year:
    made = Year(site)
    await made.price()
    return made


async def some_months(year: Year, seed: int) -> list[Month]:
    """Months with usage of two tenants, closed but for the last, late usage of each, adjustments."""
    dice = random.Random(seed)
    payers: tuple[dict[str, Any], ...] = (
        {},
        {"payer": "platform", "state": "failed"},
        {"pool": "other", "tags": {"x": "=y"}, "tenant_id": "ten_2", "project_id": "prj_2"},
    )
    await year.book(year.row("2026-01"))
    for month in MONTHS[:3]:
        for _ in range(dice.randint(1, 2)):
            await year.book(*(year.row(dice.choice(MONTHS), **dice.choice(payers)) for _ in range(5)))
        await year.adjust(dice.choice((-5_001, 7_003)), dice.choice((*TENANTS, "platform")))
        await year.close(month)
        await year.book(year.row(month, **dice.choice(payers)), year.row(month))
    now = month_at(CLOCK.now())
    return [*(month_named(each) for each in MONTHS), now]


@pytest.mark.parametrize("seed", [2])
async def test_every_file_comes_to_what_the_journal_has(year: Year, seed: int) -> None:
    months = await some_months(year, seed)
    journal = await year.journal_total()
    assert (await year.report(months[3].id)).corrections, "usage of closed months came late"
    for kind in KINDS:
        total = 0
        for month in months:
            content, footing = await exported(year.site, month, **kind)
            found = total_of(cells(kind, content))
            assert footing.amounts.total_usd_nanos == found, (kind, month)
            report = await year.report(month.id)
            assert footing.amounts.charge_usd_nanos == report.total.charge_usd_nanos
            assert footing.amounts.adjustments_usd_nanos == report.adjustments_usd_nanos
            total += found
        assert total == journal, kind


@SQLITE
async def test_rows_of_a_closed_month_stay_and_late_usage_is_a_correction_of_the_next(year: Year) -> None:
    await year.book(year.row("2026-01"), year.row("2026-01", payer="platform", state="failed"))
    await year.close("2026-01")
    january, february = month_named("2026-01"), month_named("2026-02")
    kinds: tuple[dict[str, Any], ...] = (
        {"format": "focus"},
        {"format": "csv", "rows": "attempts"},
        {"format": "csv", "group_by": ("tenant", "day")},
    )
    before = [(await exported(year.site, january, **kind))[0] for kind in kinds]
    late = year.row("2026-01", tags={"x": "y"})
    await year.book(late, year.row("2026-02"))
    await year.adjust(-4_000)
    async with year.site.engine.begin() as connection:
        await connection.execute(
            text("INSERT INTO tenants (id, name, created_at_ms) VALUES ('ten_1', 'another name', 1)")
        )
    assert [(await exported(year.site, january, **kind))[0] for kind in kinds] == before
    rows = focus_rows((await exported(year.site, february, format="focus"))[0])
    assert found_by_row(rows) == set()
    corrections = [row for row in rows if row["ChargeClass"] == "Correction"]
    assert {row["BillingPeriodStart"] for row in corrections} == {"2026-02-01T00:00:00Z"}
    assert {row["ChargePeriodStart"] for row in corrections} == {"2026-01-02T03:00:00Z"}
    billed = sum((number(row, "BilledCost") or Decimal(0) for row in corrections), start=Decimal(0))
    assert billed * NANOS == late["charge_usd_nanos"]
    (listed,) = [
        line
        for line in lines_of((await exported(year.site, february, **kinds[1]))[0])
        if line["line"] == "late usage"
    ]
    assert (listed["attempt_id"], listed["charge_month"]) == (late["attempt_id"], "2026-01")


@SQLITE
async def test_credits_and_corrections_are_rows_that_pass_the_checks(year: Year) -> None:
    await year.book(year.row("2026-01"))
    await year.adjust(-5_000)
    await year.adjust(7_000, "platform")
    content, footing = await exported(year.site, month_at(CLOCK.now()), format="focus")
    rows = focus_rows(content)
    assert found_by_row(rows) == set()
    assert sums(rows, "BilledCost", "SubAccountId", "ChargeCategory", "ChargeClass") == {
        ("ten_1", "Adjustment", "Correction"): Decimal("-0.000005"),
        ("platform", "Adjustment", "Correction"): Decimal("0.000007"),
    }
    assert {row["ChargePeriodStart"] for row in rows} == {"2026-01-01T00:00:00Z"}
    assert {row["ChargePeriodEnd"] for row in rows} == {"2026-02-01T00:00:00Z"}
    assert (footing.amounts.adjustments_usd_nanos, footing.amounts.platform_adjustments_usd_nanos) == (
        -5_000,
        7_000,
    )


@pytest.mark.skipif(
    not (ROOT / ENVIRONMENT).is_dir(), reason="needs `python scripts/focus_validator.py install`"
)
@pytest.mark.timeout(600)
@SQLITE
async def test_the_validator_takes_late_usage_and_adjustments(year: Year, tmp_path: Path) -> None:
    await year.book(year.row("2026-01"))
    await year.close("2026-01")
    await year.book(year.row("2026-01"), year.row("2026-02"))
    await year.adjust(-5_000)
    file = tmp_path / "demand.csv"
    every = Month("", month_named("2026-02").start_ms, month_at(CLOCK.now()).end_ms)
    file.write_bytes((await exported(year.site, every, format="focus"))[0])
    verdict = check(file, environment=ROOT / ENVIRONMENT)
    assert (verdict.surprises, verdict.total) == ((), 578)
    assert verdict.failures == len(verdict.failed) == 1


# ------------------------------------------------------------------------------------------------- statements
async def statement(year: Year, month: str, tenant: str = "ten_1") -> Statement:
    span = month_named(month)
    async with year.site.sessions() as session:
        await take_snapshot(session)
        subject = Subject(tenant, tenant, moment_of(span.start_ms), moment_of(span.end_ms), CLOCK.epoch_ms())
        return statement_of(subject, await read_month(session, subject, await read_names(session)))


@pytest.mark.parametrize("seed", [3])
async def test_a_closed_statement_says_what_the_open_one_said_and_never_changes(
    year: Year, seed: int
) -> None:
    await some_months(year, seed)
    last = MONTHS[3]
    for each in range(2):
        await year.book(year.row(last, end_user=f"hmac-{each}"))
    provisional = {tenant: await statement(year, last, tenant) for tenant in TENANTS}
    await year.close(last)
    closed = {tenant: await statement(year, last, tenant) for tenant in TENANTS}
    await year.book(year.row(last, end_user="hmac-late"), year.row("2026-01"))
    await year.adjust(-9_000)
    for tenant, made in closed.items():
        was = provisional[tenant]
        assert (
            was.provisional
            == "The month is not closed yet: what arrives late may still change these figures."
        )
        assert made.provisional is None
        same = ("due", "due_exact", "due_lines", "total", "total_exact", "facts", "tables", "notes", "number")
        for name in same:
            assert getattr(made, name) == getattr(was, name), name
        assert await statement(year, last, tenant) == made
    assert dict(closed["ten_1"].facts)["End users named in requests"] == "2"
    assert [line.name for line in closed["ten_1"].due_lines] == [
        "Usage of April 2026",
        "Late usage of 2026-03",
    ]


@SQLITE
async def test_what_is_due_is_what_focus_bills(year: Year) -> None:
    """The parts of a statement come to its total, and to the rows that have its number."""
    await year.book(year.row(MONTHS[0]))
    now = f"{CLOCK.now():%Y-%m}"
    await year.adjust(-5_001)
    made = await statement(year, now)
    assert made.provisional == "The month is not over: these figures will change."
    assert [(line.name, line.exact) for line in made.due_lines][1:] == [
        ("Correction of 2026-01: agreed", "-0.000005001")
    ]
    assert sum(Decimal(line.exact) for line in made.due_lines) == Decimal(made.due_exact)
    assert sum(Decimal(line.amount) for line in made.due_lines) == Decimal(made.due)
    await year.close(MONTHS[0])
    rows = focus_rows((await exported(year.site, month_named(MONTHS[0]), format="focus"))[0])
    closed = await statement(year, MONTHS[0])
    assert sums(rows, "BilledCost", "InvoiceId") == {(closed.number,): Decimal(closed.due_exact)}
