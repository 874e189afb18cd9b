"""Does the measured export export all of it? How much and how fast is `make proof`'s matter."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.migrate import upgrade
from tests.load.bench_exports import export, fill_sqlite, measured

ROWS = 3_000


def test_a_child_process_exports_every_row(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'tollgate.db'}"
    upgrade(url)
    asyncio.run(fill_sqlite(url, ROWS))
    part, whole = measured(url, ROWS, ["csv"])
    assert whole["rows"] == ROWS
    assert 0 < part["rows"] < ROWS
    assert whole["file_mb"] > part["file_mb"] > 0
    assert whole["peak_mb"] > 0
    focus = export(url, "focus", share=1.0, rows=ROWS)
    assert 0 < focus["rows"] < 4 * ROWS
