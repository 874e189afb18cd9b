"""A year of a busy company, reported, exported, closed month by month, and refused to be opened again.

    python -m tests.load.year --rows 10000000 --database postgresql
    python -m tests.load.year --rows 10000000 --url postgresql+asyncpg://postgres@127.0.0.1:5432/year

40 tenants, 6 pools, a price that changes in the middle of the year, failed attempts, cache hits; usage that
arrives after its month was closed, corrections and credits that two people agreed on. Attempts are made in
the database, with their bookings and hourly sums; what comes late goes through the ledger's own booking.
Every closed month is verified from its attempts at the end, and all of them come to what the journal has. The
result is tests/load/results/year-<database>.json and tests/load/results/year.md. CPU is that of this process
and of a PostgreSQL on this machine, since a busy machine says little by the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import io
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.clock import Clock
from gateway.closing import Wish, close_period, report_of, verify_period
from gateway.db import create_engine, session_factory
from gateway.ledger.adjustments import NewAdjustment, decide, propose
from gateway.ledger.exports import Export, Stage, format_of
from gateway.ledger.invariants import take_snapshot
from gateway.ledger.periods import Month, closed_periods, month_named
from gateway.ledger.posting import book
from gateway.ledger.reports import spend_report
from gateway.migrate import upgrade
from gateway.money import usd_text
from gateway.routing.receipts import insert_receipts
from gateway.seals import Signer
from tests.integration.ledger.accounts import DAYS_INTO, HOURS_FROM_ATTEMPTS, KEYS, SUMS
from tests.load.measured import RESULTS, write_result
from tests.load.processor import tree, tree_cpu_s
from tests.support.factories import make_act
from tests.support.servers import postgres_server
from tests.support.spend_rows import attempt_row, ended_of

YEAR = 2025
"""It is over, whenever this runs."""
MONTHS = tuple(f"{YEAR}-{number:02d}" for number in range(1, 13))
TENANTS, PROJECTS, KEYS_COUNT = 40, 80, 160
PRICES = {"old@1": (150, 30, 600), "new@1": (120, 24, 500)}
"""Nano-USD of a fresh, a cached and an output token; the second from July on."""
CHANGED_IN = 7
CHUNK = 250_000
BOOKING_ROWS = 500
LATE_ROWS = 200
SIGNER = Signer([b"year" * 8])

# Row n of a month is key n·7919 mod 160; a key has two models, two pools of six and two tasks.
_MAKE = """
INSERT INTO attempts (
  attempt_id, started_at_ms, request_id, attempt_number, tenant_id, project_id, key_id, endpoint, model_alias,
  is_streaming, pool, replica, task, task_source, nature, policy_version, price_version, tags, cache,
  hold_usd_nanos, state, payer, usage_source, input_tokens, cached_input_tokens, cache_write_tokens,
  output_tokens, reasoning_tokens, charge_usd_nanos, status_code, ttft_ms, total_ms, journal_id, ended_at_ms
)
WITH RECURSIVE counted(n) AS (
  SELECT CAST({first} AS bigint) UNION ALL SELECT n + 1 FROM counted WHERE n < {last}
),
drawn AS (
  SELECT n, n * 7919 % 160 AS k, {start_ms} + n * 1000003 % {span_ms} AS at,
    CASE n % 97 WHEN 0 THEN 'failed' ELSE 'answered' END AS state,
    200 + n % 900 AS fresh, n % 4 * 64 AS cached, 20 + n % 300 AS written
  FROM counted
)
SELECT 'att_{month}_' || n, at, 'req_{month}_' || n, 1, 'ten_' || (k % 40), 'prj_' || (k % 80), 'key' || k,
  'chat/completions', CASE (k + n / 160 % 8 / 7) % 2 WHEN 0 THEN 'auto' ELSE 'fast' END, {false},
  'pool-' || ((k + n / 160 % 10 / 9) % 6), 'replica-0',
  CASE (k + n / 160 % 4 / 3) % 3 WHEN 0 THEN 'chat' WHEN 1 THEN 'code' ELSE 'extraction' END,
  'declared', 'predictable', 'default@1', '{price}', '{{}}', 'miss', 100000000, state,
  CASE state WHEN 'failed' THEN 'platform' ELSE 'tenant' END, 'measured', fresh, cached, 0, written, 0,
  fresh * {input} + cached * {cached} + written * {output}, 200, 90, 1200,
  'jtx_{month}_' || ((n - 1) / {booking}), at + 1200
FROM drawn
"""
_BOOKINGS = """
INSERT INTO journal_transactions (id, kind, at_ms, attempts, note)
SELECT journal_id, 'usage', {at_ms}, count(*), 'made' FROM attempts
WHERE started_at_ms >= {start_ms} AND started_at_ms < {end_ms} GROUP BY journal_id
"""
_ENTRIES = """
INSERT INTO journal_entries (transaction_id, account, amount_usd_nanos)
SELECT journal_id, CASE payer WHEN 'tenant' THEN 'tenant:' || tenant_id ELSE 'platform' END AS account,
  sum(charge_usd_nanos) FROM attempts
WHERE started_at_ms >= {start_ms} AND started_at_ms < {end_ms} GROUP BY 1, 2
UNION ALL
SELECT journal_id, 'usage', -sum(charge_usd_nanos) FROM attempts
WHERE started_at_ms >= {start_ms} AND started_at_ms < {end_ms} GROUP BY 1, 2
"""
_HOURS = f"INSERT INTO spend_hours (hour_start_ms, {KEYS}, {', '.join(SUMS)}) " + HOURS_FROM_ATTEMPTS.replace(
    "FROM attempts", "FROM attempts WHERE started_at_ms >= {start_ms} AND started_at_ms < {end_ms}"
)


_DAYS = DAYS_INTO.replace(
    "FROM spend_hours", "FROM spend_hours WHERE hour_start_ms >= {start_ms} AND hour_start_ms < {end_ms}"
)


class Year:
    """One database and what was measured of it."""

    def __init__(self, engine: AsyncEngine, rows: int) -> None:
        self.engine = engine
        self.sessions = session_factory(engine)
        self.clock = Clock()
        self.rows_a_month = max(rows // len(MONTHS), 1)
        self.is_postgres = engine.dialect.name == "postgresql"
        self.took_s: dict[str, list[float]] = {}
        self.cpu_s: dict[str, list[float]] = {}
        self.roots = [os.getpid()]
        self.late = 0

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Write down how long it takes."""
        began, cpu = time.perf_counter(), self._cpu_s()
        yield
        self.took_s.setdefault(what, []).append(time.perf_counter() - began)
        self.cpu_s.setdefault(what, []).append(self._cpu_s() - cpu)

    def _cpu_s(self) -> float:
        return sum(map(tree_cpu_s, self.roots))

    async def find_server(self) -> None:
        """Its CPU counts too, if it is a PostgreSQL of this machine whose folder may be read."""
        if not self.is_postgres:
            return
        async with self.engine.connect() as connection:
            (folder,) = (await connection.execute(text("SHOW data_directory"))).one()
        with contextlib.suppress(OSError, ValueError):
            pid = int((Path(folder) / "postmaster.pid").read_text().splitlines()[0])
            if pid not in tree(os.getpid()):
                self.roots.append(pid)

    async def execute(self, *statements: str) -> None:
        """In one transaction."""
        async with self.engine.begin() as connection:
            for statement in statements:
                await connection.execute(text(statement))

    async def make_prices(self) -> None:
        """Both price versions."""
        await self.execute(
            *(
                "INSERT INTO price_versions (version, target, input, cached_input, cache_write, output,"
                f" reasoning, per_request, first_seen_at_ms) VALUES ('{version}', 'pool', {fresh}000000,"
                f" {cached}000000, 0, {written}000000, 0, 0, 1)"
                for version, (fresh, cached, written) in PRICES.items()
            )
        )

    async def make_month(self, month: Month) -> None:
        """Its attempts, bookings and hourly sums, as they would be there before anything comes late."""
        version = "old@1" if int(month.id[-2:]) < CHANGED_IN else "new@1"
        fresh, cached, written = PRICES[version]
        values = {
            "month": month.id.replace("-", ""),
            "start_ms": month.start_ms,
            "end_ms": month.end_ms,
            "span_ms": month.end_ms - month.start_ms,
            "at_ms": month.end_ms - 1,
            "price": version,
            "input": fresh,
            "cached": cached,
            "output": written,
            "booking": BOOKING_ROWS,
            "false": "false" if self.is_postgres else "0",
        }
        if self.is_postgres:
            await self.execute(
                f"CREATE TABLE IF NOT EXISTS attempts_{month.id.replace('-', '_')} PARTITION OF attempts"
                f" FOR VALUES FROM ({month.start_ms}) TO ({month.end_ms})"
            )
        for first in range(1, self.rows_a_month + 1, CHUNK):
            last = min(first + CHUNK - 1, self.rows_a_month)
            await self.execute(_MAKE.format(**values, first=first, last=last))
        await self.execute(*(each.format(**values) for each in (_BOOKINGS, _ENTRIES, _HOURS, _DAYS)))
        if self.is_postgres:
            async with self.engine.connect() as connection:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                await connection.execute(text("ANALYZE"))

    async def close(self, month: Month) -> bytes:
        """Close it; the report."""
        with self.timed("close"):
            made = await close_period(
                self.sessions, Wish(month, make_act(), grace_ms=0), signer=SIGNER, clock=self.clock
            )
        return report_of(made.period)

    async def come_late(self, month: Month) -> None:
        """Usage of a month that is closed by then, by the ledger's own booking."""
        rows = []
        for number in range(LATE_ROWS):
            self.late += 1
            at_ms = month.start_ms + number * 3_600_000
            charge = 100 * 150 + 10 * 600
            rows.append(
                attempt_row(
                    self.late,
                    attempt_id=f"att_late_{self.late}",
                    request_id=f"req_late_{self.late}",
                    started_at_ms=at_ms,
                    ended_at_ms=at_ms + 50,
                    tenant_id=f"ten_{number % TENANTS}",
                    price_version="old@1",
                    charge_usd_nanos=charge,
                    hold_usd_nanos=charge,
                )
            )
        async with self.sessions() as session:
            batch = [ended_of(row) for row in rows]
            now_ms = self.clock.epoch_ms()
            await book(session, batch, owner_id="late", now_ms=now_ms, insert_receipts=insert_receipts)
            await session.commit()

    async def adjust(self, month: Month) -> None:
        """A credit and a correction about it."""
        other = make_act()
        other = dataclasses.replace(other, actor=dataclasses.replace(other.actor, id="cli:second"))
        for kind, amount in (("credit", -12_500_000_001), ("correction", 7_000_000_003)):
            async with self.sessions() as session:
                new = NewAdjustment(kind, "ten_7", amount, f"about {month.id}", charge_month=month.id)
                row = await propose(session, new, act=make_act())
                now_ms = self.clock.epoch_ms()
                await decide(session, row.id, is_approved=True, act=other, now_ms=now_ms)
                await session.commit()

    async def footing(self) -> tuple[int, int]:
        """What all periods come to, closed and open, and what the journal has, nano-USD."""
        total = 0
        start = datetime(YEAR, 1, 1, tzinfo=UTC)
        async with self.sessions() as session:
            await take_snapshot(session)
            end = self.clock.now()
            while start < end:
                following = (start + timedelta(days=32)).replace(day=1)
                report = await spend_report(session, group_by=("tenant",), start=start, end=following)
                assert report.is_footed, start
                total += report.total.charge_usd_nanos + report.total.platform_usd_nanos
                total += sum(line.amount_usd_nanos for line in report.adjustments)
                start = following
            found = await session.execute(
                text(
                    "SELECT sum(amount_usd_nanos) FROM journal_entries"
                    " WHERE account LIKE 'tenant:%' OR account = 'platform'"
                )
            )
            return total, int(found.scalar_one())

    async def closed(self) -> dict[str, bytes]:
        """The reports of months that are closed, where the year is there already."""
        async with self.sessions() as session:
            found = {each.id: report_of(each) for each in await closed_periods(session)}
            counted = await session.execute(text("SELECT count(*) FROM attempts"))
            self.late = len(found) * LATE_ROWS
            self.rows_a_month = (int(counted.scalar_one()) - self.late) // len(MONTHS)
        return found

    async def report_year(self) -> None:
        """By what finance asks for."""
        start, end = datetime(YEAR, 1, 1, tzinfo=UTC), datetime(YEAR + 1, 1, 1, tzinfo=UTC)
        for by in (("tenant", "month"), ("pool", "model", "month"), ("key", "day"), ("price", "month")):
            with self.timed(f"report by {', '.join(by)}"):
                async with self.sessions() as session:
                    report = await spend_report(session, group_by=by, start=start, end=end)
            assert report.is_footed, by

    async def export_year(self) -> int:
        """As CSV; its rows."""
        wanted = Export(
            format="csv",
            start_ms=month_named(MONTHS[0]).start_ms,
            end_ms=month_named(MONTHS[-1]).end_ms,
            group_by=("tenant", "project", "key", "model", "pool", "task", "day"),
        )
        with self.timed("export by key, model, pool, task, day as CSV"), tempfile.TemporaryFile() as file:
            async with self.sessions() as session:
                await take_snapshot(session)
                exporter = format_of("csv").exporter()
                footing = await exporter(session, wanted, Stage(file))
        return footing.rows


async def _make(year: Year, *, tells: bool) -> dict[str, bytes]:
    """Month by month: made, closed, and then what comes late; the closed reports."""
    kept: dict[str, bytes] = {}
    await year.make_prices()
    for name in MONTHS:
        month = month_named(name)
        with year.timed("make a month"):
            await year.make_month(month)
        kept[name] = await year.close(month)
        await year.come_late(month)
        await year.adjust(month)
        if tells:
            made, closed = (year.took_s[what][-1] for what in ("make a month", "close"))
            print(f"  {name} made in {made:.1f} s, closed in {closed:.1f} s", flush=True)
    return kept


async def measure(url: str, rows: int, *, tells: bool = False, is_there: bool = False) -> dict[str, Any]:
    """The whole year; or, of one that is there, what is read of it."""
    engine = create_engine(url)
    year = Year(engine, rows)
    try:
        await year.find_server()
        if is_there:
            kept = await year.closed()
        else:
            kept = await _make(year, tells=tells)
        await year.report_year()
        exported = await year.export_year()
        total, journal = await year.footing()
        assert total == journal, (total, journal)
        wrong = await _verify(year, kept)
        assert not wrong, wrong
    finally:
        await engine.dispose()
    return {
        "database": engine.dialect.name,
        "attempts": year.rows_a_month * len(MONTHS) + year.late,
        "late_attempts": year.late,
        "closed_months": len(kept),
        "exported_rows": exported,
        "report_bytes": {"least": min(map(len, kept.values())), "most": max(map(len, kept.values()))},
        "all_periods_usd": usd_text(total),
        "journal_usd": usd_text(journal),
        "seconds": {
            what: {
                "times": len(took),
                "most": round(max(took), 2),
                "all": round(sum(took), 2),
                "cpu_all": round(sum(year.cpu_s[what]), 2),
            }
            for what, took in year.took_s.items()
        },
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


async def _verify(year: Year, kept: dict[str, bytes]) -> list[str]:
    """Every month from its attempts; what does not hold. And none is opened or closed again."""
    wrong = []
    for name, body in kept.items():
        month = month_named(name)
        with year.timed("verify"):
            async with year.sessions() as session:
                checks = await verify_period(session, month, SIGNER)
        wrong += [f"{name}: {check.what}: {check.why}" for check in checks if not check.holds]
        again = await close_period(
            year.sessions, Wish(month, make_act(), grace_ms=0), signer=SIGNER, clock=year.clock
        )
        if again.is_new or report_of(again.period) != body:
            wrong.append(f"{name} was closed twice, or its report changed")
    return wrong


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description="A year, reported, exported and closed.")
    parser.add_argument("--rows", type=int, default=10_000_000, help="attempts in the year")
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--url", help="an empty PostgreSQL database, which keeps the year")
    parser.add_argument("--there", action="store_true", help="the year is there: only read it")
    asked = parser.parse_args()
    if asked.url is not None:
        upgrade(asked.url)
        figures = asyncio.run(measure(asked.url, asked.rows, tells=True, is_there=asked.there))
    elif asked.database == "postgresql":
        with postgres_server() as url:
            upgrade(url)
            figures = asyncio.run(measure(url, asked.rows, tells=True))
    else:
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite+aiosqlite:///{Path(folder) / 'year.db'}"
            upgrade(url)
            figures = asyncio.run(measure(url, asked.rows, tells=True))
    write_result(f"year-{asked.database}", figures)
    write_summary()


def write_summary(folder: Path = RESULTS) -> None:
    """What was measured, for people."""
    out = io.StringIO()
    out.write("# A year, reported, exported and closed\n")
    for path in sorted(folder.glob("year-*.json")):
        result = json.loads(path.read_text())
        figures = result["figures"]
        out.write(
            f"\n## {figures['database']}: {figures['attempts']:,} attempts\n\n"
            f"`{result['command']}`, commit {result['commit']}, {result['date']},"
            f" {result['hardware']['cores']} cores, load {result['hardware']['load_average'][0]}\n\n"
            f"All periods {figures['all_periods_usd']} USD, journal {figures['journal_usd']} USD;"
            f" peak memory {figures['peak_memory_mb']} MB; closed reports of"
            f" {figures['report_bytes']['least']:,} to {figures['report_bytes']['most']:,} bytes.\n\n"
            "| | times | longest, s | together, s | CPU together, s |\n|---|--:|--:|--:|--:|\n"
        )
        for what, took in figures["seconds"].items():
            cpu = took.get("cpu_all", "")
            out.write(f"| {what} | {took['times']} | {took['most']} | {took['all']} | {cpu} |\n")
    (folder / "year.md").write_text(out.getvalue())


if __name__ == "__main__":
    main()
