"""How does an export become Parquet? Amounts as decimal128(38,12), instants as UTC milliseconds (pyarrow 26).

Row groups are written as they fill; what stands beside the rows is the schema's metadata. Text is never
changed: nothing that reads Parquet takes a cell for a formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, BinaryIO, Final

import pyarrow as pa
from pyarrow import parquet

from gateway.ledger.export_rows import Row, exporter_of
from gateway.ledger.exports import About

USD: Final = pa.decimal128(38, 12)
_TYPES: Final = {
    "text": pa.string(),
    "count": pa.int64(),
    "usd": USD,
    "pico": USD,
    "instant": pa.timestamp("ms", tz="UTC"),
    "number": pa.float64(),
}
ROW_GROUP_ROWS = 65_536
_PLACES = {"usd": 9, "pico": 12}


class ParquetSink:
    """A Parquet file that is being written."""

    def __init__(self, target: BinaryIO, about: About, is_formula_safe: bool) -> None:  # noqa: FBT001 - a Sink
        """Writes the magic number."""
        del is_formula_safe
        self._columns = about.columns
        schema = pa.schema(
            [
                pa.field(column.name, _TYPES[column.kind], metadata={"says": column.says})
                for column in about.columns
            ],
            metadata={f"tollgate.{name}": text for name, text in about.lines()},
        )
        self._schema = schema
        self._writer = parquet.ParquetWriter(target, schema, compression="zstd")
        self._waiting: list[Row] = []

    def add(self, rows: Sequence[Row]) -> None:
        """Write rows, a row group at a time."""
        self._waiting += rows
        while len(self._waiting) >= ROW_GROUP_ROWS:
            self._write(self._waiting[:ROW_GROUP_ROWS])
            del self._waiting[:ROW_GROUP_ROWS]

    def finish(self) -> None:
        """Write the rest and the footer."""
        if self._waiting:
            self._write(self._waiting)
        self._writer.close()

    def _write(self, rows: Sequence[Row]) -> None:
        columns = zip(*rows, strict=True)
        arrays = [_array(column.kind, values) for column, values in zip(self._columns, columns, strict=True)]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))


def _array(kind: str, values: Sequence[Any]) -> pa.Array:
    if kind in _PLACES:
        places = -_PLACES[kind]
        exact = [None if value is None else Decimal(value).scaleb(places) for value in values]
        return pa.array(exact, type=USD)
    return pa.array(values, type=_TYPES[kind])


export = exporter_of(ParquetSink)
