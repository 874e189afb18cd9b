"""Does an export come to what the ledger has, row by row, and is a file there whole or not at all?"""

from __future__ import annotations

import csv
import io
import random
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from pyarrow import parquet
from sqlalchemy import text

from gateway.errors import ConfigurationError, NotFound
from gateway.jobs.export_work import beside, run_export, write_file
from gateway.ledger.cuts import parse_filters
from gateway.ledger.exports import About, DoesNotFoot, Export, Footing
from gateway.ledger.reports import NOT_SAID, UNTAGGED, Shape, spend_report
from gateway.money import usd_text
from tests.integration.ledger.site import Site
from tests.support.spend_rows import attempt_row, book_rows

START = datetime(2026, 9, 28, tzinfo=UTC)
END = datetime(2026, 12, 1, tzinfo=UTC)
START_MS, END_MS = (int(moment.timestamp()) * 1000 for moment in (START, END))
ROWS = 300
Line = dict[str, str]


async def filled(site: Site) -> None:
    draw = random.Random(7)
    rows = [
        attempt_row(
            number,
            started_at_ms=START_MS + draw.randrange(END_MS - START_MS),
            tenant_id=draw.choice(["ten_1", "ten_2"]),
            pool=draw.choice(["plain", "speculative"]),
            payer=draw.choice(["tenant", "tenant", "platform"]),
            tags=draw.choice([{}, {"team": "search"}, {"team": "=1+1", "of": "Grüße"}]),
            charge_usd_nanos=draw.choice([None, 0, draw.randrange(10**13)]),
        )
        for number in range(ROWS)
    ]
    async with site.sessions() as session:
        await book_rows(session, rows)
        await session.commit()


def wanted(**changes: Any) -> Export:
    fields: dict[str, Any] = {"format": "csv", "start_ms": START_MS, "end_ms": END_MS} | changes
    return Export(**fields)


async def exported(site: Site, export: Export, about: list[About] | None = None) -> tuple[bytes, Footing]:
    target = io.BytesIO()
    told: list[About] = [] if about is None else about
    async with site.sessions() as session:
        footing = await run_export(session, export, target, now_ms=1, told_about=told.append)
    return target.getvalue(), footing


def lines(content: bytes) -> list[Line]:
    return list(csv.DictReader(io.StringIO(content.decode(), newline=""), strict=True))


@pytest.mark.parametrize(
    ("group_by", "filters"),
    [
        (("tenant", "tag:team", "month"), ()),
        (("week", "pool"), ("tag:team=",)),
        (("tenant", "day"), ("tenant=ten_2", "pool=plain")),
        ((), ()),
    ],
)
async def test_groups_are_those_of_the_report(
    site: Site, group_by: tuple[str, ...], filters: tuple[str, ...]
) -> None:
    await filled(site)
    async with site.sessions() as session:
        shape = Shape(filters=parse_filters(filters))
        report = await spend_report(session, group_by=group_by, start=START, end=END, shape=shape)
    about: list[About] = []
    # There are no tenants in this database: their filter is by an id that nobody has a name for.
    if "tenant=ten_2" in filters:
        with pytest.raises(NotFound, match="No tenant 'ten_2' for the filter"):
            await exported(site, wanted(group_by=group_by, filters=filters))
        return
    content, footing = await exported(
        site, wanted(group_by=group_by, filters=filters, is_formula_safe=False), about
    )
    found = {
        tuple(
            line[name] or (UNTAGGED if name.startswith("tag:") else NOT_SAID) for name in shown(group_by)
        ): (
            line["requests"],
            line["charge_usd"],
            line["platform_usd"],
        )
        for line in lines(content)
    }
    assert found == {
        group: (str(each.requests), usd_text(each.charge_usd_nanos), usd_text(each.platform_usd_nanos))
        for group, each in report.rows
    }
    assert footing.rows == len(report.rows)
    assert footing.amounts == about[0].amounts
    assert footing.amounts.charge_usd_nanos == report.total.charge_usd_nanos


def shown(group_by: tuple[str, ...]) -> list[str]:
    return [f"{name}_id" if name == "tenant" else name for name in group_by]


async def test_every_attempt_is_in_every_format(site: Site) -> None:
    await filled(site)
    about: list[About] = []
    content, footing = await exported(site, wanted(rows="attempts"), about)
    in_csv = lines(content)
    assert len(in_csv) == footing.rows == about[0].row_count == ROWS
    assert [line["started_at"] for line in in_csv] == sorted(line["started_at"] for line in in_csv)
    assert len({line["attempt_id"] for line in in_csv}) == ROWS
    charged = sum(Decimal(line["charge_usd"] or 0) for line in in_csv if line["payer"] == "tenant")
    assert charged * 10**9 == footing.amounts.charge_usd_nanos
    assert {line["charge_usd"] for line in in_csv if not line["charge_usd"]} == {""}, "unpriced is not zero"
    content, other = await exported(site, wanted(rows="attempts", format="parquet"))
    assert other == footing
    table = parquet.read_table(io.BytesIO(content))
    assert table.column("attempt_id").to_pylist() == [line["attempt_id"] for line in in_csv]
    assert [str(each or "") for each in table.column("tags").to_pylist()] == [line["tags"] for line in in_csv]
    content, other = await exported(site, wanted(rows="attempts", format="xlsx"))
    assert other == footing
    exact = openpyxl.load_workbook(io.BytesIO(content), read_only=True)["exact amounts"]
    amounts = [(row[1], row[2] or "") for row in exact.iter_rows(min_row=2, values_only=True)]
    assert amounts == [(line["attempt_id"], line["charge_usd"]) for line in in_csv]


async def test_rows_that_do_not_come_to_the_ledger_leave_no_file(site: Site, tmp_path: Path) -> None:
    await filled(site)
    path = tmp_path / "october.csv"
    async with site.sessions() as session:
        footing = await write_file(session, wanted(), path, now_ms=1)
    before = path.read_bytes()
    assert footing.bytes == len(before)
    assert footing.sha256 is not None
    assert footing.sha256 in beside(path).read_text()
    assert usd_text(footing.amounts.charge_usd_nanos) in beside(path).read_text()
    async with site.engine.begin() as connection:
        # Not what hours are for, but what a broken book looks like.
        for table in ("spend_hours", "spend_days"):
            await connection.execute(text(f"UPDATE {table} SET charge_usd_nanos = charge_usd_nanos + 1"))
    async with site.sessions() as session:
        with pytest.raises(DoesNotFoot, match="nothing is exported"):
            await write_file(session, wanted(rows="attempts"), path, now_ms=1)
    assert path.read_bytes() == before
    assert names(tmp_path, "october") == [
        "october.csv",
        "october.csv.about.json",
    ]


async def test_a_file_that_cannot_be_written_says_where(site: Site, tmp_path: Path) -> None:
    async with site.sessions() as session:
        with pytest.raises(ConfigurationError, match=r"nowhere/a\.csv cannot be written: No such file"):
            await write_file(session, wanted(), tmp_path / "nowhere" / "a.csv", now_ms=1)


def names(folder: Path, start: str) -> list[str]:
    return sorted(each.name for each in folder.iterdir() if each.name.startswith(start))
