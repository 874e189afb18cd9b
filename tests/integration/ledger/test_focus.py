"""Is a FOCUS file what the specification asks for, and does it come to the books to the nano-USD?"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pyarrow import parquet
from sqlalchemy import text

from gateway.errors import InvalidRequest
from gateway.jobs.export_work import run_export
from gateway.ledger.exports import About, DoesNotFoot, Export, Footing
from gateway.ledger.focus_columns import columns_of
from scripts.focus_validator import ENVIRONMENT, check
from tests.integration.ledger.site import Site
from tests.support.focus_books import END_MS, NOVEMBER_MS, START_MS, TERMS, fill
from tests.support.focus_checks import (
    CHECKS,
    Row,
    found_by_row,
    number,
    skus_of_prices,
    sums,
    unbalanced_commitments,
)

ROOT = Path(__file__).parents[3]
SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""Where only rows are looked at: which database they come from is asked once."""
MONTHS = {"2026-10-01T00:00:00Z": (START_MS, NOVEMBER_MS), "2026-11-01T00:00:00Z": (NOVEMBER_MS, END_MS)}


async def filled(site: Site) -> list[dict[str, Any]]:
    async with site.sessions() as session:
        rows = await fill(session)
        await session.commit()
    return rows


async def exported(
    site: Site, side: str = "demand", version: str = "1.2", **changes: Any
) -> tuple[bytes, Footing, About]:
    terms = msgspec.structs.replace(TERMS, side=side, version=version)
    fields: dict[str, Any] = {
        "format": "focus",
        "start_ms": START_MS,
        "end_ms": END_MS,
        "focus": terms,
    } | changes
    target = io.BytesIO()
    told: list[About] = []
    async with site.sessions() as session:
        footing = await run_export(session, Export(**fields), target, now_ms=1, told_about=told.append)
    return target.getvalue(), footing, told[0]


def rows_of(content: bytes) -> list[Row]:
    lines = csv.DictReader(io.StringIO(content.decode(), newline=""), strict=True)
    return [{name: value or None for name, value in line.items()} for line in lines]


async def test_a_file_passes_the_complementary_checks_and_comes_to_the_ledger(site: Site) -> None:
    attempts = await filled(site)
    content, footing, about = await exported(site)
    rows = rows_of(content)
    assert found_by_row(rows) == set()
    assert skus_of_prices(rows) == {}
    booked: defaultdict[tuple[str | None, ...], Decimal] = defaultdict(Decimal)
    for each in attempts:
        month = next(name for name, (a, b) in MONTHS.items() if a <= each["started_at_ms"] < b)
        payer = each["tenant_id"] if each["payer"] == "tenant" else "platform"
        booked[month, payer, "USD"] += Decimal(each["charge_usd_nanos"] or 0).scaleb(-9)
    by = ("BillingPeriodStart", "SubAccountId", "BillingCurrency")
    assert sums(rows, "BilledCost", *by) == {group: total for group, total in booked.items() if total}
    assert len(booked) == 6
    tokens = sum(each["input_tokens"] for each in attempts)
    uncached = [row for row in rows if (row["SkuPriceId"] or "").endswith("/input/uncached")]
    assert sum(number(row, "ConsumedQuantity") or 0 for row in uncached) == tokens
    residue = sum((number(row, "x_RoundingResidue") or Decimal(0) for row in rows), Decimal(0))
    assert residue
    assert residue * 10**12 == footing.residue_usd_picos
    assert abs(residue) <= Decimal("0.5e-9") * len(attempts)
    assert {row["x_LedgerHighWater"] for row in rows} == {footing.high_water}
    assert sum(number(row, "x_RequestCount") or 0 for row in rows) <= len(attempts)
    assert dict(about.lines())["focus_version"] == "1.2"


@SQLITE
async def test_corrections_prices_and_payers_are_told_apart(site: Site) -> None:
    await filled(site)
    rows = rows_of((await exported(site))[0])
    corrections = [row for row in rows if row["ChargeClass"] == "Correction"]
    assert corrections
    for row in corrections:
        assert (row["BillingPeriodStart"] or "")[:7] == "2026-11"
        assert (row["ChargePeriodStart"] or "")[:7] == "2026-10"
        assert (number(row, "BilledCost") or 0) <= 0
    taken_back = [row for row in rows if (number(row, "BilledCost") or 0) < 0 and row not in corrections]
    assert taken_back
    assert {row["BillingPeriodStart"] for row in taken_back} == {"2026-10-01T00:00:00Z"}
    (goodwill,) = [row for row in rows if row["ChargeCategory"] == "Adjustment"]
    assert (goodwill["BilledCost"], goodwill["SkuId"], goodwill["PricingQuantity"]) == (
        "-0.000012345",
        None,
        None,
    )
    uncached = {row["ListUnitPrice"] for row in rows if row["SkuPriceId"] == "llm/plain/input/uncached"}
    assert {"0.400000001", "0.333333333"} <= uncached
    outside = [row for row in rows if row["x_PoolId"] == "outside"]
    assert {row["PublisherName"] for row in outside} == {"openai"}
    assert {row["ProviderName"] for row in rows} == {row["InvoiceIssuerName"] for row in rows} == {"Tollgate"}
    platform = [row for row in rows if row["SubAccountId"] == "platform"]
    assert platform
    assert all(row["x_OnBehalfOfTenantId"] in {"ten_1", "ten_2"} for row in platform)
    assert {row["x_PriceState"] for row in rows} == {"versioned", "unpriced"}
    tags = {row["Tags"] for row in rows}
    assert None in tags
    assert any("search" in each for each in tags if each)


async def test_pool_hours_come_to_their_bills_and_commitments_to_their_purchase(site: Site) -> None:
    await filled(site)
    content, footing, _ = await exported(site, "supply")
    rows = rows_of(content)
    assert found_by_row(rows) == set()
    assert skus_of_prices(rows) == {}
    assert unbalanced_commitments(rows) == []
    async with site.sessions() as session:
        found = await session.execute(
            text("SELECT pool, sum(bill_usd_nanos) FROM supply_hours GROUP BY pool")
        )
        bills = {(pool,): Decimal(int(total)).scaleb(-9) for pool, total in found}
    assert sums(rows, "BilledCost", "x_PoolId") == bills
    assert sums(rows, "EffectiveCost", "x_PoolId") == bills
    assert footing.amounts.platform_usd_nanos == sum(bills.values()) * 10**9
    kept = [row for row in rows if row["CommitmentDiscountId"]]
    assert {row["CommitmentDiscountStatus"] for row in kept} == {None, "Used", "Unused"}
    assert {row["x_Line"] for row in kept} >= {"request", "failed", "warm_up", "idle", "unused"}
    assert {row["PricingCategory"] for row in rows} == {"Standard", "Dynamic", "Committed"}
    assert {row["SubAccountId"] for row in rows} == {"platform", "unallocated", "ten_1", "ten_2"}
    assert any(row["ChargeClass"] == "Correction" for row in rows)


@SQLITE
async def test_the_profile_of_1_4_names_how_a_pool_hour_was_shared(site: Site) -> None:
    await filled(site)
    content, _, about = await exported(site, "supply", "1.4")
    rows = rows_of(content)
    assert "no machine rules of 1.4 were run" in dict(about.lines())["focus_conformance"]
    names = [name for name in rows[0] if not name.startswith("x_")]
    assert len(names) == 65
    assert "ProviderName" not in names
    assert "HostProviderName" in names
    ratios: defaultdict[tuple[str | None, ...], Decimal] = defaultdict(Decimal)
    for row in rows:
        if row["AllocatedMethodDetails"] is None:
            assert row["ChargeCategory"] == "Purchase"
            continue
        details = json.loads(row["AllocatedMethodDetails"], parse_float=Decimal, parse_int=Decimal)
        (element,) = details["Elements"]
        assert element["UsageUnit"] == "GPU-Seconds"
        if "AllocatedRatio" in element:
            ratios[row["ResourceId"], row["ChargePeriodStart"], row["BillingPeriodStart"]] += element[
                "AllocatedRatio"
            ]
    assert len(ratios) == 18
    assert set(ratios.values()) == {Decimal(1)}
    assert len([column for column in columns_of("1.2") if not column.name.startswith("x_")]) == 57


@SQLITE
@pytest.mark.parametrize("side", ["demand", "supply"])
async def test_parquet_has_the_same_rows_with_exact_decimals(site: Site, side: str) -> None:
    await filled(site)
    rows = rows_of((await exported(site, side))[0])
    content, footing, _ = await exported(site, side, format="focus-parquet")
    table = parquet.read_table(io.BytesIO(content))
    assert table.num_rows == footing.rows == len(rows)
    assert str(table.schema.field("BilledCost").type) == "decimal128(38, 12)"
    for name in ("BilledCost", "ListUnitPrice", "ConsumedQuantity"):
        assert table.column(name).to_pylist() == [number(row, name) for row in rows], name
    for name in ("ChargePeriodStart", "InvoiceId", "Tags", "SkuId"):
        assert table.column(name).to_pylist() == [row[name] for row in rows], name


@SQLITE
async def test_what_does_not_foot_or_cannot_be_cut_is_no_file(site: Site) -> None:
    await filled(site)
    with pytest.raises(InvalidRequest, match="whole hours"):
        await exported(site, start_ms=START_MS + 1)
    with pytest.raises(InvalidRequest, match="no filters"):
        await exported(site, "supply", filters=("pool=kept",))
    only = rows_of((await exported(site, filters=("pool=outside",)))[0])
    assert {row["x_PoolId"] for row in only} == {"outside"}
    async with site.sessions() as session:
        for table in ("spend_hours", "spend_days"):
            await session.execute(
                text(f"UPDATE {table} SET charge_usd_nanos = charge_usd_nanos + 1 WHERE payer = 'tenant'")
            )
        await session.commit()
    with pytest.raises(DoesNotFoot, match="nothing is exported"):
        await exported(site)


NOTHING: dict[str, str | None] = dict.fromkeys(column.name for column in columns_of("1.2"))
GOOD: Row = {
    **NOTHING,
    "BillingPeriodStart": "2026-11-01T00:00:00Z",
    "BillingPeriodEnd": "2026-12-01T00:00:00Z",
    "ChargePeriodStart": "2026-11-02T10:00:00Z",
    "ChargePeriodEnd": "2026-11-02T11:00:00Z",
    "ChargeCategory": "Usage",
    "ChargeFrequency": "Usage-Based",
    "PricingCategory": "Standard",
    "PricingUnit": "1000000 Tokens",
    "PricingQuantity": "1.234567",
    "ConsumedQuantity": "1234567.0",
    "ConsumedUnit": "Tokens",
    "ListUnitPrice": "0.4",
    "ContractedUnitPrice": "0.4",
    "ListCost": "0.4938268",
    "ContractedCost": "0.4938268",
    "SkuId": "llm/a/input",
    "SkuPriceId": "llm/a/input/uncached",
    "Tags": '{"team":"search"}',
}
WRONG: dict[str, dict[str, str | None]] = {
    "allowed.ChargeCategory": {"ChargeCategory": "usage", "ConsumedQuantity": None, "ConsumedUnit": None},
    "allowed.ChargeFrequency": {"ChargeFrequency": None},
    "allowed.ChargeClass": {"ChargeClass": "correction"},
    "allowed.PricingCategory": {"PricingCategory": "Spot"},
    "purchase.frequency": {"ChargeCategory": "Purchase", "ConsumedQuantity": None, "ConsumedUnit": None},
    "unit.list": {"ListCost": "0.493826800001"},
    "unit.contract": {"ContractedUnitPrice": None},
    "notnull.sku": {"SkuPriceId": None},
    "consumed.pair": {"ConsumedUnit": None},
    "consumed.usage_only": {"ChargeCategory": "Credit"},
    "utc.format": {"ChargePeriodEnd": "2026-11-02T11:00:00+00:00"},
    "period.order": {"ChargePeriodEnd": "2026-11-02T10:00:00Z"},
    "period.inside": {"ChargePeriodStart": "2026-10-31T23:00:00Z"},
    "json.flat": {"Tags": '{"team":{"a":1}}'},
    "null.is_null": {"InvoiceId": ""},
}


def test_wrong_rows_are_found_by_the_check_that_is_theirs() -> None:
    assert WRONG.keys() == CHECKS.keys()
    assert found_by_row([GOOD]) == set()
    for name, change in WRONG.items():
        assert found_by_row([GOOD, {**GOOD, **change}]) == {name}
    assert skus_of_prices([GOOD, {**GOOD, "SkuId": "llm/b/input"}])
    bought = {**GOOD, "CommitmentDiscountId": "r", "ChargeCategory": "Purchase", "BilledCost": "2.0"}
    used = {**GOOD, "CommitmentDiscountId": "r", "EffectiveCost": "2.0"}
    assert unbalanced_commitments([bought, used]) == []
    assert unbalanced_commitments([bought, {**used, "EffectiveCost": "1.999999999"}]) == ["r"]
    assert unbalanced_commitments([{**bought, "EffectiveCost": "2.0"}, used]) == ["r"]


@pytest.mark.skipif(
    not (ROOT / ENVIRONMENT).is_dir(), reason="needs `python scripts/focus_validator.py install`"
)
@pytest.mark.timeout(600)
@SQLITE
async def test_the_validator_finds_nothing_but_its_own_mistakes(site: Site, tmp_path: Path) -> None:
    await filled(site)
    for side in ("demand", "supply"):
        file = tmp_path / f"{side}.csv"
        file.write_bytes((await exported(site, side))[0])
        verdict = check(file, is_reserved=side == "supply", environment=ROOT / ENVIRONMENT)
        assert verdict.surprises == ()
        assert (verdict.total, verdict.failures) == (578, len(verdict.failed))
        assert verdict.skipped < 300
        assert verdict.failed
