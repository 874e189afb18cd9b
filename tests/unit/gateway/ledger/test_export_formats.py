"""Is what was written what is read back, by other programs' readers, and never a formula?"""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from gateway.errors import InvalidRequest
from gateway.ledger.export_csv import FORMULA_STARTS, CsvSink, harmless
from gateway.ledger.export_parquet import ROW_GROUP_ROWS, ParquetSink
from gateway.ledger.export_xlsx import XlsxSink
from gateway.ledger.exports import FORMATS, About, Amounts, Column, Export, format_of
from gateway.money import usd_text

COLUMNS = (
    Column("attempt_id", "text", "opaque id"),
    Column("started_at", "instant", "UTC"),
    Column("tokens", "count", "how many"),
    Column("charge_usd", "usd", "what it came to"),
    Column("tags", "text", "cost tags"),
)
AT_MS = int(datetime(2026, 11, 2, 10, 30, 0, 123_000, tzinfo=UTC).timestamp() * 1000)
ABOUT = About(
    title="Attempts",
    start_ms=AT_MS,
    end_ms=AT_MS + 1,
    generated_at_ms=AT_MS,
    group_by=("tenant",),
    filters=("pool=plain",),
    row_count=None,
    amounts=Amounts(charge_usd_nanos=1),
    high_water="jtx_1",
    price_versions=("plain@1", "plain@2"),
    are_prices_used=True,
    columns=COLUMNS,
)
LARGE = 9_007_199_254_740_993
"""The first integer that a double does not hold."""
ROWS: list[tuple[Any, ...]] = [
    ("1E15", AT_MS, 3, 1_234_567_890, '{"team":"a, \\"b\\""}'),
    ("00042", AT_MS + 1, LARGE, 9_007_199_254_740_993_001, "=HYPERLINK(1)"),
    ("att_3", None, None, None, None),
    ("att_4", 0, 0, -5, "-"),
]
FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "=cmd|'/c calc'!A0"]  # noqa: RUF001 - meant


def written(sink: Any, rows: list[tuple[Any, ...]], *, is_safe: bool = True, **options: Any) -> bytes:
    target = io.BytesIO()
    file = sink(target, ABOUT, is_safe, **options)
    half = len(rows) // 2
    file.add(rows[:half])
    file.add(rows[half:])
    file.finish()
    return target.getvalue()


def test_csv_is_what_rfc_4180_says() -> None:
    assert written(CsvSink, ROWS, is_safe=False).decode() == (
        "attempt_id,started_at,tokens,charge_usd,tags\r\n"
        '1E15,2026-11-02T10:30:00.123Z,3,1.234567890,"{""team"":""a, \\""b\\""""}"\r\n'
        "00042,2026-11-02T10:30:00.124Z,9007199254740993,9007199254.740993001,=HYPERLINK(1)\r\n"
        "att_3,,,,\r\n"
        "att_4,1970-01-01T00:00:00Z,0,-0.000000005,-\r\n"
    )
    safe = written(CsvSink, ROWS).decode().splitlines()
    assert safe[2].endswith(",'=HYPERLINK(1)")
    assert safe[4].endswith(",-0.000000005,'-"), "an amount is no text"


@given(st.lists(st.text(max_size=20).filter(lambda text: "\x00" not in text), max_size=5))
@settings(deadline=None, max_examples=30)
def test_csv_is_read_back_as_it_was(texts: list[str]) -> None:
    rows = [(text, None, index, index, text or None) for index, text in enumerate(texts)]
    raw = written(CsvSink, rows, is_safe=False).decode()
    read = list(csv.reader(io.StringIO(raw, newline=""), strict=True))[1:]
    assert [(line[0], line[2], line[4]) for line in read] == [
        (text, str(index), text) for index, text in enumerate(texts)
    ]
    safe = list(csv.reader(io.StringIO(written(CsvSink, rows).decode(), newline=""), strict=True))
    assert not [cell for line in safe for cell in (line[0], line[4]) if cell and cell[0] in FORMULA_STARTS]


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_are_made_harmless(text: str) -> None:
    assert harmless(text) == f"'{text}"
    assert harmless(f"a{text}") == f"a{text}"
    assert harmless("") == ""


def test_a_workbook_is_read_back_with_every_digit() -> None:
    book = openpyxl.load_workbook(io.BytesIO(written(XlsxSink, ROWS)))
    assert book.sheetnames == ["rows", "exact amounts", "about"]
    sheet = book["rows"]
    assert [cell.value for cell in sheet[1]] == [column.name for column in COLUMNS]
    first, second, empty, last = (list(row) for row in sheet.iter_rows(min_row=2))
    assert (first[0].value, first[0].data_type) == ("1E15", "s")
    assert (second[0].value, second[0].data_type) == ("00042", "s")
    assert (first[2].value, second[2].value) == (3, str(LARGE)), "what a double cannot hold is text"
    assert (first[3].value, first[3].data_type) == (1.23456789, "n")
    assert first[1].value == datetime(2026, 11, 2, 10, 30, 0, 123_000)  # noqa: DTZ001 - Excel knows no zones
    assert [cell.value for cell in empty[1:]] == [None] * 4
    assert last[3].value == -5e-9
    exact = [[cell.value for cell in row] for row in book["exact amounts"].iter_rows(min_row=2)]
    assert [(row[1], row[2]) for row in exact] == [
        (row[0], None if row[3] is None else usd_text(row[3])) for row in ROWS
    ]
    about = {row[0].value: row[1].value for row in book["about"].iter_rows()}
    assert about["control_total_charge_usd"] == "0.000000001"
    assert about["ledger_high_water"] == "jtx_1"
    assert about["rows_written"] == "4"


def test_no_cell_of_a_workbook_is_a_formula() -> None:
    rows = [(text, None, None, None, text) for text in FORMULAS]
    for is_safe in (True, False):
        sheet = openpyxl.load_workbook(io.BytesIO(written(XlsxSink, rows, is_safe=is_safe)))["rows"]
        cells = [cell for row in sheet.iter_rows(min_row=2) for cell in (row[0], row[4])]
        assert {cell.data_type for cell in cells} == {"s"}
        # What Excel's own leading apostrophe sets: it stays text when somebody edits it.
        assert {int(cell.quotePrefix) for cell in cells} == {int(is_safe)}


def test_more_rows_than_a_sheet_holds_go_on_to_another() -> None:
    book = openpyxl.load_workbook(io.BytesIO(written(XlsxSink, ROWS, rows_max=3)))
    assert book.sheetnames == ["rows", "exact amounts", "rows 2", "exact amounts 2", "about"]
    assert [cell.value for cell in book["rows 2"]["A"]] == ["attempt_id", "att_4"]
    assert book["exact amounts 2"]["C2"].value == "-0.000000005"


def test_parquet_has_exact_decimals_and_says_what_it_is() -> None:
    table = parquet.read_table(io.BytesIO(written(ParquetSink, ROWS)))
    assert str(table.schema.field("charge_usd").type) == "decimal128(38, 12)"
    assert table.column("charge_usd").to_pylist() == [
        Decimal("1.234567890"),
        Decimal("9007199254.740993001"),
        None,
        Decimal("-0.000000005"),
    ]
    assert table.column("tokens").to_pylist()[1] == LARGE
    assert table.column("tags").to_pylist()[1] == "=HYPERLINK(1)"
    assert table.column("started_at").to_pylist()[0] == datetime(2026, 11, 2, 10, 30, 0, 123_000, tzinfo=UTC)
    metadata = table.schema.metadata
    assert metadata[b"tollgate.price_versions"] == b"plain@1 plain@2"


def test_parquet_is_written_in_groups_of_rows() -> None:
    rows = [(str(number), number, number, number, None) for number in range(ROW_GROUP_ROWS + 1)]
    file = parquet.ParquetFile(io.BytesIO(written(ParquetSink, rows)))
    assert [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)] == [
        ROW_GROUP_ROWS,
        1,
    ]
    assert parquet.read_table(io.BytesIO(written(ParquetSink, []))).num_rows == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "pdf"}, "No format 'pdf'; there are csv, xlsx, parquet"),
        ({"group_by": ("colour",)}, "Cannot group by 'colour'"),
        ({"filters": ("pool",)}, "A filter is written dimension=value"),
        ({"filters": ("colour=red",)}, "Cannot filter by 'colour'"),
        ({"filters": ("week=2026-11-03",)}, "A week is written 2026-11-02, its Monday"),
        ({"filters": ("month=2026-13",)}, "A month is written 2026-11; not '2026-13'"),
        ({"end_ms": 0}, "The end of the report must be after its start"),
        ({"rows": "cells"}, "`rows` is groups or attempts"),
    ],
)
def test_what_cannot_be_exported_says_why(changes: dict[str, Any], said: str) -> None:
    wanted: dict[str, Any] = {"format": "csv", "start_ms": 0, "end_ms": 1} | changes
    with pytest.raises(InvalidRequest) as caught:
        Export(**wanted).check()
    assert said in str(caught.value)


def test_every_format_is_where_it_is_said_to_be() -> None:
    for name in FORMATS:
        assert callable(format_of(name).exporter())
