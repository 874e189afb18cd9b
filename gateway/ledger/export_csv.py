"""How does an export become CSV? RFC 4180: UTF-8, lines end with CRLF, quotes only where they are needed.

Amounts are exact decimals with nine places, instants ISO 8601 in UTC, nothing is an empty field. A text that
a spreadsheet would take for a formula gets an apostrophe in front (OWASP, "CSV Injection"), unless that is
switched off for programs that read the file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, Final

from gateway.clock import instant_text
from gateway.ledger.export_rows import Row, exporter_of
from gateway.ledger.exports import About
from gateway.money import usd_text

FORMULA_STARTS: Final = frozenset("=+-@\t\r\n＝＋－＠")  # noqa: RUF001 - the full-width ones are meant
"""With these a cell begins that Excel, LibreOffice or Google Sheets may take for a formula."""


_PICO: Final = 1_000_000_000_000


def harmless(text: str) -> str:
    """The text as a cell that is never a formula."""
    return f"'{text}" if text and text[0] in FORMULA_STARTS else text


def pico_text(pico: int) -> str:
    """An amount of 1e-12 as a decimal that always has a point: readers tell kinds of columns by it."""
    sign = "-" if pico < 0 else ""
    whole, fraction = divmod(abs(pico), _PICO)
    return f"{sign}{whole}.{fraction:012d}".rstrip("0") if fraction else f"{sign}{whole}.0"


class CsvSink:
    """A CSV file that is being written."""

    def __init__(self, target: BinaryIO, about: About, is_formula_safe: bool) -> None:  # noqa: FBT001 - a Sink
        """Writes the line of titles."""
        self._text = io.TextIOWrapper(target, encoding="utf-8", newline="", write_through=False)
        self._writer = csv.writer(self._text, lineterminator="\r\n")
        guard = harmless if is_formula_safe else str
        self._writer.writerow([guard(column.name) for column in about.columns])
        shown: dict[str, Callable[[Any], Any]] = {
            "text": guard,
            "usd": usd_text,
            "instant": instant_text,
            "pico": pico_text,
        }
        self._shown = [
            (index, shown[column.kind]) for index, column in enumerate(about.columns) if column.kind in shown
        ]

    def add(self, rows: Sequence[Row]) -> None:
        """Write rows."""
        self._writer.writerows(map(self._line, rows))

    def finish(self) -> None:
        """Hand everything on; the target stays open."""
        self._text.flush()
        self._text.detach()

    def _line(self, row: Row) -> list[Any]:
        line = list(row)
        for index, shown in self._shown:
            if line[index] is not None:
                line[index] = shown(line[index])
        return line


export = exporter_of(CsvSink)
