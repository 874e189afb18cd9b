"""How long does a million attempts' export take, and how much memory, on PostgreSQL and on SQLite?

    python -m tests.load.bench_exports --rows 1000000

Each export is the child process that the API and the schedules use; its peak memory is the kernel's figure
(`ru_maxrss`), told beside that of a tenth of the rows: if it is the same, memory does not depend on length.
FOCUS sums attempts up by the hour: its rows are fewer, and come from all of them.
The result is tests/load/results/exports.json.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import msgspec
from sqlalchemy import text

from gateway.db import create_engine
from gateway.jobs.export_child import Errand, Line
from gateway.ledger.cuts import MS_PER_HOUR
from gateway.ledger.exports import FORMATS, Export
from gateway.migrate import upgrade
from tests.integration.ledger.accounts import DAYS_INTO, HOURS_FROM_ATTEMPTS, KEYS, SUMS
from tests.load.measured import ROOT, write_result
from tests.load.spend_at_scale import MONTH_MS, START_MS, make_month
from tests.support.servers import postgres_server

PIECE_BYTES = 1 << 20
PIECE_ROWS = 50_000
BYTES_PER_MB = 1e6


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description="Measure exports at scale.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="attempts in the month")
    parser.add_argument("--formats", default=",".join(FORMATS), help="comma list")
    parser.add_argument("--databases", default="postgresql,sqlite", help="comma list")
    arguments = parser.parse_args()
    formats = arguments.formats.split(",")
    figures: dict[str, Any] = {"attempts": arguments.rows}
    if "postgresql" in arguments.databases:
        with postgres_server() as url:
            upgrade(url)
            asyncio.run(_fill_postgresql(url, arguments.rows))
            figures["postgresql"] = measured(url, arguments.rows, formats)
    if "sqlite" in arguments.databases:
        with tempfile.TemporaryDirectory(prefix="tg-exports-") as folder:
            url = f"sqlite+aiosqlite:///{folder}/tollgate.db"
            upgrade(url)
            asyncio.run(fill_sqlite(url, arguments.rows))
            figures["sqlite"] = measured(url, arguments.rows, formats)
    write_result("exports", figures)


async def _fill_postgresql(url: str, rows: int) -> None:
    engine = create_engine(url)
    await make_month(engine, rows, tells=True)
    await engine.dispose()


async def fill_sqlite(url: str, rows: int) -> None:
    """A month of attempts and the hourly sums that belong to them, in a migrated, empty SQLite database."""
    engine = create_engine(url)
    names = list(next(_rows(1)))
    statement = f"INSERT INTO attempts ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
    async with engine.begin() as connection:
        waiting: list[tuple[Any, ...]] = []
        for row in _rows(rows):
            waiting.append(tuple(row.values()))
            if len(waiting) == PIECE_ROWS:
                await connection.exec_driver_sql(statement, waiting)
                waiting = []
        if waiting:
            await connection.exec_driver_sql(statement, waiting)
        await connection.execute(
            text(f"INSERT INTO spend_hours (hour_start_ms, {KEYS}, {', '.join(SUMS)}) {HOURS_FROM_ATTEMPTS}")
        )
        await connection.execute(text(DAYS_INTO))
    await engine.dispose()


def _rows(count: int) -> Iterator[dict[str, Any]]:
    """Attempts like those of `spend_at_scale`: 20 tenants, 200 keys."""
    for n in range(count):
        key = n * 7919 % 200
        at_ms = START_MS + n * 1_000_003 % MONTH_MS
        is_failed = n % 97 == 0
        yield {
            "attempt_id": f"att_{n:032x}",
            "started_at_ms": at_ms,
            "request_id": f"req_{n:032x}",
            "attempt_number": 1,
            "tenant_id": f"ten_{key % 20:032d}",
            "project_id": f"prj_{key % 60:032d}",
            "key_id": f"key{key:07d}",
            "endpoint": "chat/completions",
            "model_alias": ("auto", "fast", "careful", "large")[key % 4],
            "is_streaming": n % 3 == 0,
            "pool": ("speculative", "plain", "long")[key % 3],
            "replica": "replica-0",
            "task": ("extraction", "chat", "code", "summarization")[key % 4],
            "task_source": "declared",
            "nature": "predictable",
            "policy_version": "default@95e26ebfaedb",
            "price_version": "plain@0123456789ab",
            "tags": '{"feature": "search"}',
            "cache": "miss",
            "hold_usd_nanos": 1_500_000,
            "state": "failed" if is_failed else "answered",
            "payer": "platform" if is_failed else "tenant",
            "usage_source": "measured",
            "input_tokens": 200 + n % 900,
            "cached_input_tokens": n % 4 * 64,
            "cache_write_tokens": 0,
            "output_tokens": 20 + n % 300,
            "reasoning_tokens": 0,
            "charge_usd_nanos": (200 + n % 900) * 150 + n % 4 * 64 * 30 + (20 + n % 300) * 600,
            "status_code": 200,
            "ttft_ms": 90,
            "total_ms": 1200,
            "journal_id": "jtx_scale",
            "ended_at_ms": at_ms + 1200,
        }


def measured(url: str, rows: int, formats: list[str]) -> list[dict[str, Any]]:
    """Each format over all rows and over a tenth of them."""
    return [export(url, name, share=share, rows=rows) for name in formats for share in (0.1, 1.0)]


def export(url: str, name: str, *, share: float, rows: int) -> dict[str, Any]:
    """One export by a process of its own.

    Raises:
        RuntimeError: it failed, or another number of rows came than there are.
    """
    hours = int(MONTH_MS * share) // MS_PER_HOUR
    end_ms = START_MS + hours * MS_PER_HOUR
    wanted = Export(format=name, start_ms=START_MS, end_ms=end_ms, rows="attempts")
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "gateway.jobs.export_child"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(msgspec.json.encode(Errand(database_url=url, export=wanted)))
    child.stdin.close()
    line = msgspec.json.decode(child.stdout.readline(), type=Line)
    size = lines = 0
    while piece := child.stdout.read(PIECE_BYTES):
        size += len(piece)
        lines += piece.count(b"\r\n")
    child.stdout.close()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    is_whole = line.about is not None and line.about.row_count in {rows, None}
    if child.returncode or line.about is None or (share == 1.0 and not is_whole):
        raise RuntimeError(f"the export of {name} failed: {line}")
    return {
        "format": name,
        # Of FOCUS nobody knows before; its Parquet has the rows of its CSV.
        "rows": line.about.row_count or lines - 1 if name != "focus-parquet" else None,
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(usage.ru_maxrss * 1024 / BYTES_PER_MB, 1),
        "file_mb": round(size / BYTES_PER_MB, 1),
    }


if __name__ == "__main__":
    main()
