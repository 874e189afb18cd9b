"""How does an export become a workbook? With XlsxWriter 3.3 in constant memory: what is written is gone.

Excel keeps 15 digits of a number (Microsoft, "Excel specifications and limits"), so an amount is a number for
looking and adding, and stands once more as exact text on a sheet of its own. Ids are text, so that none turns
into 1E+15. No cell is ever a formula: text is written as text, and what begins like a formula has the
property that Excel's own leading apostrophe sets, so that it stays text when somebody edits it. More rows
than a sheet holds go on to another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO, Final

import xlsxwriter

from gateway.ledger.cuts import moment_of
from gateway.ledger.export_csv import FORMULA_STARTS
from gateway.ledger.export_rows import Row, exporter_of
from gateway.ledger.exports import About
from gateway.money import NANOS_PER_USD, usd_text

ROWS_MAX: Final = 1_048_575
"""Of a sheet, below its line of titles."""
CELL_CHARS_MAX: Final = 32_767
EXACT_INTEGER_MAX: Final = 10**15
_DAY_MS = 86_400_000
_DAYS_TO_1970 = 25_569
"""From Excel's day 0."""
_WIDTHS = {"text": 24, "count": 12, "usd": 20, "instant": 23, "number": 14}


class XlsxSink:
    """A workbook that is being written."""

    def __init__(
        self,
        target: BinaryIO,
        about: About,
        is_formula_safe: bool,  # noqa: FBT001 - a Sink
        *,
        rows_max: int = ROWS_MAX,
    ) -> None:
        """Opens the sheets `rows` and `exact amounts`."""
        self._rows_max = rows_max
        self._target, self._about, self._is_safe = target, about, is_formula_safe
        self._book = xlsxwriter.Workbook(
            target,
            {
                "constant_memory": True,
                "strings_to_formulas": False,
                "strings_to_urls": False,
                "strings_to_numbers": False,
                "nan_inf_to_errors": True,
            },
        )
        self._book.set_properties({"title": about.title, "created": moment_of(about.generated_at_ms)})
        self._head = self._book.add_format({"bold": True, "bottom": 1})
        self._quoted = self._book.add_format({"quote_prefix": True})
        self._formats = {
            "usd": self._book.add_format({"num_format": "#,##0.000000000;[Red]-#,##0.000000000"}),
            "count": self._book.add_format({"num_format": "#,##0"}),
            "instant": self._book.add_format({"num_format": "yyyy-mm-dd hh:mm:ss.000"}),
            "number": self._book.add_format({"num_format": "0.000"}),
        }
        self._usd = [index for index, column in enumerate(about.columns) if column.kind == "usd"]
        self._written = 0
        self._sheets = 0
        self._open_sheets()

    def _open_sheets(self) -> None:
        self._sheets += 1
        number = "" if self._sheets == 1 else f" {self._sheets}"
        columns = self._about.columns
        self._rows = self._book.add_worksheet(f"rows{number}")
        self._exact = self._book.add_worksheet(f"exact amounts{number}")
        self._rows.freeze_panes(1, 0)
        self._exact.freeze_panes(1, 0)
        for index, column in enumerate(columns):
            self._rows.set_column(index, index, _WIDTHS[column.kind])
        self._exact.set_column(0, len(self._usd) + 1, 24)
        for index, column in enumerate(columns):
            self._rows.write_string(0, index, column.name, self._head)
        for place, title in enumerate(("row", columns[0].name, *(columns[i].name for i in self._usd))):
            self._exact.write_string(0, place, title, self._head)

    def add(self, rows: Sequence[Row]) -> None:
        """Write rows."""
        for row in rows:
            if self._written and self._written % self._rows_max == 0:
                self._open_sheets()
            line = self._written % self._rows_max + 1
            self._written += 1
            for index, column in enumerate(self._about.columns):
                if row[index] is not None:
                    self._write(self._rows, line, index, kind=column.kind, value=row[index])
            self._exact.write_number(line, 0, line + 1)
            if row[0] is not None:
                self._write(self._exact, line, 1, kind=self._about.columns[0].kind, value=row[0])
            for place, index in enumerate(self._usd, start=2):
                if row[index] is not None:
                    self._exact.write_string(line, place, usd_text(row[index]))

    def _write(self, sheet: Any, line: int, index: int, *, kind: str, value: Any) -> None:
        if kind == "text":
            text = value[:CELL_CHARS_MAX]
            is_quoted = self._is_safe and text and text[0] in FORMULA_STARTS
            sheet.write_string(line, index, text, self._quoted if is_quoted else None)
        elif kind == "usd":
            # Rounded for the eye; the exact amount is on the other sheet.
            sheet.write_number(line, index, value / NANOS_PER_USD, self._formats[kind])
        elif kind == "instant":
            sheet.write_number(line, index, value / _DAY_MS + _DAYS_TO_1970, self._formats[kind])
        elif abs(value) >= EXACT_INTEGER_MAX:
            sheet.write_string(line, index, str(value))
        else:
            sheet.write_number(line, index, value, self._formats[kind])

    def finish(self) -> None:
        """Write what the rows are of, and the file."""
        sheet = self._book.add_worksheet("about")
        sheet.set_column(0, 0, 28)
        sheet.set_column(1, 1, 80)
        lines = [*self._about.lines(), ("rows_written", str(self._written))]
        lines += [(f"column {column.name}", column.says) for column in self._about.columns]
        lines.append(
            ("amounts", "numbers on `rows` are rounded to 15 digits by Excel; `exact amounts` has them all")
        )
        for line, (name, text) in enumerate(lines):
            sheet.write_string(line, 0, name, self._head)
            self._write(sheet, line, 1, kind="text", value=text)
        self._book.close()


export = exporter_of(XlsxSink)
