"""Is nothing lost or doubled while the database is away, slow, full, or silent at the worst moment?"""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import text

from gateway.db import create_engine
from gateway.ledger.buckets import Scope
from tests.e2e.faults.plant import STORY, Customer, Load, Plant, chat, metric
from tests.e2e.site import eventually
from tests.load.measured import write_result
from tests.support.books import query, tokens_booked, tokens_served
from tests.support.tcp_proxy import Cut

SHORT_S: Final = 8.0
OUTAGE_S: Final = float(os.environ.get("OUTAGE_S", SHORT_S))  # noqa: TID251 - a test's own setting
"""How long PostgreSQL is away; `make proof` makes it longer."""
LIMIT_NANOS: Final = 10**10
RESTART_S: Final = 6
MEASURE_S: Final = 3
"""Until the pace is measured for the first time, and lent for."""
BURN_AVERAGE_S: Final = 60
RESERVE_S: Final = 300
"""What the gateway has in reserve: so many seconds of its burn, as a moving average over a minute."""


@pytest.fixture
def customer(plant: Plant) -> Customer:
    """Two keys under budgets with room."""
    made = plant.customer("one/a", "two/b")
    plant.budget(Scope.TENANT, made.tenant_id, LIMIT_NANOS)
    plant.budget(Scope.KEY, made.key_ids["a"], LIMIT_NANOS)
    plant.until_known()
    for engine in plant.engines.values():
        engine.control(ttft_ms=150)  # their pace, not the machine's
    return made


def _load(plant: Plant, customer: Customer) -> Load:
    return Load(plant.pair, list(customer.keys.values()))


def _warm_up(load: Load) -> None:
    """Until the slices are large enough for an outage: a share of the pace that grows with the minute."""
    load.until_more(8)
    # A reserve is filled up again at its half; a stop and a start take a while too.
    needed_s = 2 * (OUTAGE_S + RESTART_S)
    load.pause(MEASURE_S - BURN_AVERAGE_S * math.log(1 - needed_s / RESERVE_S))


def _assert_nothing_is_lost(plant: Plant, customer: Customer, load: Load) -> None:
    """All were answered, and what the engines did is what is booked."""
    assert {status for _, status in load.statuses} == {200}, load.refusals[:3]
    plant.assert_right()
    rows = plant.rows(customer)
    assert len(rows) == load.answered
    assert {(row["state"], row["payer"]) for row in rows} == {("answered", "tenant")}
    assert tokens_booked(rows) == tokens_served(plant.engines.values())


def test_requests_go_on_while_the_database_is_away(
    plant: Plant, customer: Customer, record_property: Callable[[str, Any], None]
) -> None:
    with _load(plant, customer) as load:
        _warm_up(load)
        plant.postgres.stop_immediately()
        before = load.answered
        load.pause(OUTAGE_S)
        during = load.answered - before
        plant.postgres.start()
        load.until_more(8)
    record_property("answered_during_outage", during)
    assert during >= 2 * OUTAGE_S, "they stood still"
    _assert_nothing_is_lost(plant, customer, load)
    if OUTAGE_S > SHORT_S:
        figures = {"outage_s": OUTAGE_S, "answered_during_it": during, "answered_in_all": load.answered}
        write_result("outage", {**figures, "lost": 0, "booked_twice": 0})


def test_connections_that_are_ended_and_a_lock_that_is_held(plant: Plant, customer: Customer) -> None:
    with _load(plant, customer) as load:
        load.until_more(8)
        load.pause(2)
        for _ in range(3):
            ended = query(
                plant.database_url,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )
            assert ended
            load.until_more(8)
        asyncio.run(_hold_windows(plant.database_url, seconds=3))
        load.until_more(8)
    _assert_nothing_is_lost(plant, customer, load)


async def _hold_windows(url: str, *, seconds: float) -> None:
    """Keep every budget's row locked, as a long transaction of somebody else would."""
    engine = create_engine(url)
    async with engine.begin() as connection:
        await connection.execute(text("SELECT 1 FROM budget_windows FOR UPDATE"))
        await asyncio.sleep(seconds)
    await engine.dispose()


# ------------------------------------------------------------------------------------- a commit's answer
def test_a_commit_whose_answer_is_lost_is_not_made_twice(plant: Plant, customer: Customer) -> None:
    key, proxy = customer.keys["a"], plant.database_proxy
    proxy.cuts_made = 0
    assert chat(plant.one, key).status_code == 200
    plant.until_booked(plant.one)
    # A batch of attempts: the database has it, the gateway does not know and sends it again.
    proxy.cut(Cut(reply=b"COMMIT\x00", asked=b"COPY "))
    assert chat(plant.one, key).status_code == 200
    eventually(lambda: proxy.cuts_made == 1)
    plant.until_booked(plant.one)
    assert len(plant.rows(customer)) == 2
    # A slice: it is lent, the gateway does not know and may say that it cannot ask.
    (spool,) = (plant.one.state_dir / "spool").glob("*.spool")
    proxy.cut(Cut(reply=b"COMMIT\x00", asked=spool.stem.encode(), unless=b"COPY "))
    large = {**STORY, "max_tokens": 700, "n": 8}
    told = chat(plant.one, key, large).status_code
    eventually(lambda: proxy.cuts_made == 2)
    assert told in {200, 503}
    eventually(lambda: chat(plant.one, key, large).status_code == 200)
    plant.assert_right()
    rows = plant.rows(customer)
    assert len(rows) == 3 + (told == 200)
    assert tokens_booked(rows) == tokens_served(plant.engines.values())


# --------------------------------------------------------------------------------------------- full disk
@pytest.fixture
def small_disk(plant: Plant) -> Iterator[Path]:
    """A tablespace of 8 MB, in which the attempts of this month are while the test lasts."""
    if os.geteuid() != 0:
        pytest.skip("a small disk has to be mounted, which takes root")
    folder = plant.postgres.own_folder("small")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder],  # noqa: S607 - wherever it is
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        plant.postgres.give(folder)
        _execute(plant.database_url, f"CREATE TABLESPACE small LOCATION '{folder}'")
        table = _attempts_now(plant)
        _execute(plant.database_url, f"ALTER TABLE {table} SET TABLESPACE small")
        yield folder
        (folder / "filler").unlink(missing_ok=True)
        _execute(plant.database_url, f"ALTER TABLE {table} SET TABLESPACE pg_default")
        _execute(plant.database_url, "DROP TABLESPACE small")
    finally:
        subprocess.run(["umount", "-l", folder], check=False)  # noqa: S607 - as above


def _attempts_now(plant: Plant) -> str:
    """The partition that this month's attempts go to."""
    (row,) = query(
        plant.database_url,
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'attempts'::regclass"
        " AND pg_get_expr((SELECT relpartbound FROM pg_class WHERE oid = inhrelid), inhrelid) LIKE"
        " 'FOR VALUES FROM (%' || (extract(epoch FROM date_trunc('month', now() AT TIME ZONE 'UTC')) * 1000)"
        "::bigint || '%) TO %'",
    )
    return str(row["name"])


def _execute(url: str, statement: str) -> None:
    """One statement, in no transaction."""

    async def run() -> None:
        engine = create_engine(url).execution_options(isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            await connection.execute(text(statement))
        await engine.dispose()

    asyncio.run(run())


def test_a_full_disk_delays_the_books_and_loses_nothing(
    plant: Plant, customer: Customer, small_disk: Path
) -> None:
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(b"\0" * 2**24)
    with _load(plant, customer) as load:
        eventually(lambda: any("No space left on device" in gateway.said() for gateway in plant.pair))
        assert max(metric(gateway, "tollgate_spool_unshipped") for gateway in plant.pair) > 0
        load.until_more(8)
        filler.unlink()
        load.until_more(8)
    _assert_nothing_is_lost(plant, customer, load)
