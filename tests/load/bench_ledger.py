"""What does bookkeeping cost a request, how fast is a writer, how soon is a dead process's spool booked?

    python -m tests.load.bench_ledger            # all
    python -m tests.load.bench_ledger request    # or one of: request, ship, recover

Starts a PostgreSQL of its own; its defaults, synchronous_commit on. Writes tests/load/results/ledger-*.json.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from gateway.clock import Clock
from gateway.db import create_engine, session_factory
from gateway.inference import AttemptState, TokenUsage, new_id
from gateway.ledger.admission import Budgets
from gateway.ledger.buckets import Account, Bucket, BudgetBook, BudgetRecord, Scope, Window, window_at
from gateway.ledger.budget_store import Owner, create_budget
from gateway.ledger.budgets import Holds
from gateway.ledger.lessor import Lessor
from gateway.ledger.settlement import Outcome, Settlement
from gateway.ledger.shipper import Shipper
from gateway.ledger.spool import Spool
from gateway.migrate import upgrade
from gateway.money import UsdNanos
from gateway.routing.receipts import insert_receipts
from gateway.settings import BudgetSettings, SpoolSettings
from tests.load.measured import ROOT, spread, write_result
from tests.support.factories import make_act, make_end, make_price, make_start
from tests.support.servers import postgres_server

ROUNDS = 7
REQUESTS = 5_000
SHIPPED = {"postgresql": 60_000, "sqlite": 20_000}
LEFT = 10_000
FILL = "_fill"
"""What a child is told to do: write a spool and die."""
RECEIPT = msgspec.Raw(
    b'{"task":"extraction","source":"declared","confidence":1.0,"nature":"predictable","reason":"extraction'
    b' is predictable: speculative","candidates":[{"pool":"speculative","bound_usd_nanos":1500000,'
    b'"is_external":false},{"pool":"plain","bound_usd_nanos":2000000,"is_external":false}],"drops":[],"policy":"default@0",'
    b'"baseline":"plain","max_tokens":256,"removed":[]}'
)
ACCOUNT = Account(tenant_id="ten_1", project_id="prj_1", key_ids=("key1",))


# --------------------------------------------------------------------------------------------- one request
async def bench_request() -> dict[str, Any]:
    """CPU microseconds of reserve, begin, end and release, with two hard budgets and with none."""
    with tempfile.TemporaryDirectory() as folder:
        engine = create_engine(f"sqlite+aiosqlite:///{folder}/never-asked.db")
        took: dict[str, list[float]] = {"with_budgets": [], "without_budgets": []}
        for number in range(ROUNDS):
            for name, samples in took.items():
                clock = Clock()
                spool = Spool(Path(folder, f"{name}-{number}"), clock, unshipped_max=10**9)
                lessor = Lessor(
                    Holds(), session_factory(engine), owner_id="bench", settings=BudgetSettings(), clock=clock
                )
                budgets = Budgets(lessor.holds, lessor, clock)
                if name == "with_budgets":
                    _lend_plenty(budgets)
                samples.append(await _requests(budgets, Settlement(spool, clock), spool, clock))
                spool.close()
        await engine.dispose()
    figures = {name: spread(samples) for name, samples in took.items()}
    added = [one - other for one, other in zip(took["with_budgets"], took["without_budgets"], strict=True)]
    return {"unit": "CPU microseconds per request", **figures, "budgets_add": spread(added)}


def _lend_plenty(budgets: Budgets) -> None:
    records = [
        BudgetRecord(
            id=f"bud_{scope}",
            name=scope.value,
            scope=scope,
            scope_id=scope_id,
            tenant_id="ten_1",
            window=Window.MONTH,
            limit_usd_nanos=10**15,
            is_hard=True,
        )
        for scope, scope_id in ((Scope.TENANT, "ten_1"), (Scope.PROJECT, "prj_1"))
    ]
    budgets.book = BudgetBook(records)
    now_ms = Clock().epoch_ms()
    for record in records:
        for at_ms in (now_ms, now_ms + 3_600_000):  # the next month may begin meanwhile
            lot = budgets.holds.lot(Bucket(record.id, window_at(record.window, at_ms)[0]))
            lot.granted_usd_nanos, lot.expires_s = 10**15, float("inf")


async def _requests(budgets: Budgets, settlement: Settlement, spool: Spool, clock: Clock) -> float:
    template, price = make_start(receipt=RECEIPT), make_price()
    began = time.process_time()
    for _ in range(REQUESTS):
        reservation = await budgets.reserve(ACCOUNT, UsdNanos(1_500_000))
        now_ms = clock.epoch_ms()
        start = msgspec.structs.replace(
            template, attempt_id=new_id("att_", now_ms), started_at_ms=now_ms, buckets=reservation.counted
        )
        attempt = settlement.begin(start, price, reservation)
        attempt.end(Outcome(AttemptState.ANSWERED, TokenUsage(input=300, output=100), status_code=200))
        reservation.end()
    took = time.process_time() - began
    spool.acknowledge(spool.unshipped_count)
    return took / REQUESTS * 1e6


# ------------------------------------------------------------------------------------------- many settled
def fill(spool: Spool, count: int, buckets: tuple[Bucket, ...], *, open_share: float = 0.0) -> None:
    """Settle so many attempts, of 50 keys of ten tenants; a share stays open."""
    now_ms = Clock().epoch_ms()
    for number in range(count):
        attempt_id = new_id("att_", now_ms)
        key = number % 50
        spool.start(
            make_start(
                attempt_id,
                request_id=new_id("req_", now_ms),
                tenant_id=f"ten_{key % 10}",
                project_id=f"prj_{key % 20}",
                key_id=f"key{key}",
                tags={"feature": "search"},
                started_at_ms=now_ms,
                buckets=buckets,
                receipt=RECEIPT,
            )
        )
        if number >= count * open_share:
            spool.end(make_end(attempt_id, status_code=200, ttft_ms=80, total_ms=900, ended_at_ms=now_ms))


async def bench_ship(url: str, count: int, *, batch: int | None = None) -> dict[str, Any]:
    """Settled requests per second that one writer books, receipts, sums and two budgets included."""
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder), Clock(), unshipped_max=10**9)
        buckets = await _budgets(url)
        fill(spool, count, buckets)
        wall_s, cpu_s = await _timed(url, spool, batch, lambda shipper: shipper.drain())
        if spool.unshipped_count:
            raise RuntimeError("not everything was shipped; the warning above says why")
        spool.close()
    return {
        "settled_requests": count,
        "per_second": round(count / wall_s),
        "wall_s": round(wall_s, 3),
        "writer_cpu_us_per_request": round(cpu_s / count * 1e6, 1),
    }


async def _timed(
    url: str, spool: Spool, batch: int | None, work: Callable[[Shipper], Awaitable[object]]
) -> tuple[float, float]:
    engine = create_engine(url)
    settings = SpoolSettings() if batch is None else SpoolSettings(batch_records_max=batch)
    shipper = Shipper(
        spool, session_factory(engine), settings, clock=Clock(), insert_receipts=insert_receipts
    )
    began, cpu = time.perf_counter(), time.process_time()
    await work(shipper)
    took = time.perf_counter() - began, time.process_time() - cpu
    await engine.dispose()
    return took


async def _budgets(url: str) -> tuple[Bucket, ...]:
    engine = create_engine(url)
    found = []
    async with session_factory(engine)() as session:
        for name, scope, scope_id in (
            ("tenant", Scope.TENANT, "ten_1"),
            ("project", Scope.PROJECT, "prj_1"),
        ):
            budget = await create_budget(
                session,
                f"{name}-{new_id('', 0)}",
                owner=Owner(scope, scope_id, None),
                window=Window.TOTAL,
                limit_usd_nanos=10**15,
                is_hard=True,
                act=make_act(),
            )
            found.append(Bucket(budget.id, 0))
        await session.commit()
    await engine.dispose()
    return tuple(sorted(found))


# -------------------------------------------------------------------------------------------- after a kill
async def bench_recover(url: str) -> dict[str, Any]:
    """Seconds until the spool of a process that was killed is booked, half of its attempts still open."""
    await _budgets(url)
    with tempfile.TemporaryDirectory() as folder:
        child = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "tests.load.bench_ledger", FILL, "--folder", folder],
            cwd=ROOT,
            check=False,
        )
        if child.returncode != -signal.SIGKILL:
            raise RuntimeError(f"the child ended with status {child.returncode} instead of being killed")
        spool = Spool(Path(folder), Clock(), unshipped_max=10)
        wall_s, cpu_s = await _timed(url, spool, None, lambda shipper: shipper.recover())
        spool.close()
    return {"attempts": LEFT, "open_share": 0.5, "wall_s": round(wall_s, 3), "cpu_s": round(cpu_s, 3)}


def fill_and_die(folder: Path) -> None:
    """As a gateway that is killed in the middle of its work."""
    fill(Spool(folder, Clock(), unshipped_max=10**9), LEFT, (), open_share=0.5)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description="Measure what bookkeeping costs.")
    parser.add_argument("what", nargs="?", choices=["all", "request", "ship", "recover", FILL], default="all")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help="records in a batch, instead of the default")
    options = parser.parse_args()
    if options.what == FILL:
        fill_and_die(options.folder)
    if options.what in {"all", "request"}:
        write_result("ledger-request", asyncio.run(bench_request()))
    if options.what == "request":
        return
    with postgres_server() as postgres, tempfile.TemporaryDirectory() as folder:
        urls = {"postgresql": postgres, "sqlite": f"sqlite+aiosqlite:///{folder}/books.db"}
        for url in urls.values():
            upgrade(url)
        if options.what in {"all", "ship"}:
            shipped = {
                name: asyncio.run(bench_ship(url, SHIPPED[name], batch=options.batch))
                for name, url in urls.items()
            }
            write_result("ledger-ship", shipped)
        if options.what in {"all", "recover"}:
            recovered = {name: asyncio.run(bench_recover(url)) for name, url in urls.items()}
            write_result("ledger-recover", recovered)


if __name__ == "__main__":
    main()
