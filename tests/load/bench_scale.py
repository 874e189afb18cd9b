"""How long does a month's report take over millions of attempts, and how much room do they need?

    python -m tests.load.bench_scale --rows 10000000

Starts a PostgreSQL of its own with its default settings, fills it and reports. The result is
tests/load/results/scale.json.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

from sqlalchemy import text
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.db import create_engine, session_factory
from gateway.ledger.cuts import Cut
from gateway.ledger.reports import _query, spend_report
from gateway.migrate import upgrade
from tests.load.measured import spread, write_result
from tests.load.spend_at_scale import END, MONTH_MS, PARTITION, START, START_MS, make_month
from tests.support.servers import postgres_server

REPORTS = (("tenant", "model"), ("tenant", "model", "day"), ("project", "task", "pool"), ("key",))
ROUNDS = 5


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description="Measure a month's reports at scale.")
    parser.add_argument("--rows", type=int, default=10_000_000, help="attempts in the month")
    rows = parser.parse_args().rows
    with postgres_server() as url:
        upgrade(url)
        write_result("scale", asyncio.run(measure(url, rows)))


async def measure(url: str, rows: int) -> dict[str, Any]:
    """All figures of one database."""
    engine = create_engine(url)
    try:
        began = time.perf_counter()
        await make_month(engine, rows, tells=True)
        figures: dict[str, Any] = {"attempts": rows, "made_s": round(time.perf_counter() - began, 1)}
        figures |= await sizes(engine)
        figures["reports"] = [await report(engine, dimensions) for dimensions in REPORTS]
    finally:
        await engine.dispose()
    return figures


async def sizes(engine: AsyncEngine) -> dict[str, Any]:
    """Bytes on disk, indexes included."""
    async with engine.connect() as connection:
        found = await connection.execute(
            text(
                f"SELECT pg_total_relation_size('{PARTITION}'), pg_relation_size('{PARTITION}'),"
                " pg_total_relation_size('spend_hours'), (SELECT count(*) FROM spend_hours)"
            )
        )
        attempts, heap, hours, hour_rows = found.one()
    return {
        "attempts_mb": round(attempts / 1e6, 1),
        "attempts_without_indexes_mb": round(heap / 1e6, 1),
        "spend_hours_mb": round(hours / 1e6, 1),
        "spend_hours_rows": hour_rows,
    }


async def report(engine: AsyncEngine, dimensions: tuple[str, ...]) -> dict[str, Any]:
    """One report, several times, and how PostgreSQL goes about it."""
    sessions = session_factory(engine)
    took = []
    count = 0
    for _ in range(ROUNDS):
        async with sessions() as session:
            began = time.perf_counter()
            found = await spend_report(session, group_by=dimensions, start=START, end=END)
            took.append(time.perf_counter() - began)
            count = len(found.rows)
    query = _query(Cut(dimensions, (), START_MS, START_MS + MONTH_MS)).compile(
        dialect=postgresql.dialect(),  # type: ignore[no-untyped-call]  # SQLAlchemy says nothing of it
        compile_kwargs={"literal_binds": True},
    )
    async with engine.connect() as connection:
        plan = await connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS) {query}")
        lines = [line for (line,) in plan]
    return {"by": list(dimensions), "rows": count, "seconds": spread(took), "explain": lines}


if __name__ == "__main__":
    main()
