"""Is every attempt one row, with everything that finance asks for, whatever happens to the database?"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlmodel import col

from gateway.clock import Clock
from gateway.db import create_engine, session_factory
from gateway.identity import key_store
from gateway.ledger.posting import book
from gateway.ledger.records import AttemptStart, Ended
from gateway.ledger.spool import Spool
from gateway.ledger.tables import Attempt
from gateway.pricing.tables import PriceVersion
from gateway.routing.receipts import insert_receipts
from gateway.routing.tables import PolicyVersion
from gateway.settings import LimitSettings
from tests.integration.gateway.rig import (
    Gateway,
    bearer,
    eventually,
    running,
    settings_for,
)
from tests.support.factories import make_act, make_end, make_start
from tests.support.mock_process import MockVllm
from tests.support.pool_files import DEFAULT_POLICY, charge_nanos


def _columns(row: Attempt) -> dict[str, Any]:
    return {name: getattr(row, name) for name in Attempt.__table__.columns.keys()}  # type: ignore[attr-defined]  # noqa: SIM118 - SQLAlchemy's columns are no dict


async def test_a_row_holds_everything(gateway: Gateway) -> None:
    before_ms = Clock().epoch_ms()
    answer = await gateway.chat(
        "Extract all names: Bob met Ann.",
        metadata={"team": "search", "feature": "import"},
        user="ann@example.com",
        service_tier="priority",
        headers={"x-request-id": "theirs-1"},
    )
    after_ms = Clock().epoch_ms()
    (row,) = await gateway.rows(1)
    found = _columns(row)
    # 10 prompt tokens at 0.10 and 16 output tokens at 0.40 USD per million.
    assert found["charge_usd_nanos"] == 10 * 100 + 16 * 400 == 7_400
    assert answer.headers["x-tollgate-cost-usd"] == "0.000007400"
    assert before_ms <= found.pop("started_at_ms") <= found.pop("ended_at_ms") <= after_ms
    assert 0 <= found.pop("total_ms") < 60_000
    assert found.pop("queue_ms") >= 0
    assert found.pop("generation_ms") >= 0
    steps = found.pop("draft_steps")
    assert 0 < steps < 16
    assert found.pop("draft_tokens") == 3 * steps
    assert found.pop("accepted_tokens") == 15 - steps
    assert found.pop("attempt_id").startswith("att_")
    assert found.pop("journal_id").startswith("jtx_")
    assert found.pop("price_version").startswith("speculative@")
    assert len(found.pop("end_user")) == 32
    assert found.pop("hold_usd_nanos") > 7_400
    assert found == {
        "request_id": answer.headers["x-request-id"],
        "attempt_number": 1,
        "tenant_id": gateway.tenant_id,
        "project_id": gateway.project_id,
        "key_id": gateway.key.split("-")[1],
        "client_request_id": "theirs-1",
        "endpoint": "chat/completions",
        "model_alias": "auto",
        "is_streaming": False,
        "pool": "speculative",
        "replica": "speculative-0",
        "task": "extraction",
        "task_source": "signal",
        "nature": "predictable",
        "policy_version": answer.headers["x-tollgate-policy"],
        "service_tier": "priority",
        "tags": {"team": "search", "feature": "import"},
        "cache": "bypass",
        "state": "answered",
        "payer": "tenant",
        "usage_source": "measured",
        "input_tokens": 10,
        "cached_input_tokens": 0,
        "cache_write_tokens": 0,
        "output_tokens": 16,
        "reasoning_tokens": 0,
        "charge_usd_nanos": 7_400,
        "status_code": 200,
        "error_code": None,
        "ttft_ms": None,
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_cached_input_is_charged_at_its_own_rate(gateway: Gateway, *, stream: bool) -> None:
    content = "Tell me a story " + "about a fox " * 20
    for _ in range(2):
        await gateway.chat(content, stream=stream, max_tokens=5)
    fresh, cached = await gateway.rows(2)
    # 64 words and 4 of the template: the mock finds whole blocks of 16 again, never the last token.
    assert (fresh.input_tokens, fresh.cached_input_tokens, fresh.output_tokens) == (68, 0, 5)
    assert (cached.input_tokens, cached.cached_input_tokens, cached.output_tokens) == (4, 64, 5)
    assert fresh.charge_usd_nanos == 68 * 150 + 5 * 600 == 13_200
    assert cached.charge_usd_nanos == 4 * 150 + 64 * 30 + 5 * 600 == 5_520


async def test_the_end_user_is_kept_as_a_hash_that_only_its_tenant_can_make(gateway: Gateway) -> None:
    other = await gateway.issue_key("globex")
    await gateway.chat("Hm", user="ann")
    await gateway.chat("Hm", user="ann", safety_identifier="bob")
    await gateway.chat("Hm", safety_identifier="ann")
    await gateway.chat("Hm", user="ann", headers=bearer(other))
    ann, bob, ann_again, elsewhere = [row.end_user for row in await gateway.rows(4)]
    assert ann == ann_again
    assert len({ann, bob, elsewhere}) == 3
    assert hashlib.sha256(b"ann").hexdigest()[:32] not in {ann, elsewhere}


async def test_price_and_policy_versions_are_kept_with_what_they_said(gateway: Gateway) -> None:
    await gateway.chat("Extract all names: Bob")
    await gateway.chat("Tell me a story")
    rows = await gateway.rows(2)
    async with gateway.services.sessions() as session:
        prices = {one.version: one for one in (await session.execute(select(PriceVersion))).scalars()}
        policies = {one.version: one for one in (await session.execute(select(PolicyVersion))).scalars()}
    assert [prices[row.price_version].target for row in rows] == ["speculative", "plain"]
    kept = prices[rows[1].price_version]
    assert (kept.input, kept.cached_input, kept.output, kept.reasoning) == (
        150_000_000,
        30_000_000,
        600_000_000,
        600_000_000,
    )
    assert {row.policy_version for row in rows} == set(policies)
    assert policies[rows[0].policy_version].text == DEFAULT_POLICY.read_text()


async def test_another_rate_is_another_price_version_and_old_rows_keep_theirs(
    home: Path, urls: dict[str, list[str]]
) -> None:
    settings = settings_for(home, urls)
    async with running(settings) as gateway:
        await gateway.chat("Tell me a story")
        (old,) = await gateway.rows(1)
    file = settings.pools / "plain.yaml"
    file.write_text(file.read_text().replace("output: 0.60", "output: 0.61"))
    async with running(settings, tenant="globex") as gateway:
        await gateway.chat("Tell me a story", max_tokens=1)
        first, second = await gateway.rows(2)
        assert _columns(first) == _columns(old)
        assert second.price_version != old.price_version
        assert second.charge_usd_nanos == 8 * 150 + 610
        assert second.policy_version == old.policy_version


async def test_what_headers_rows_and_the_ledger_say_is_one_sum(gateway: Gateway) -> None:
    told = 0
    for number in range(12):
        content = ("Tell me a story ", "Extract all names: Bob ")[number % 2] + "word " * number
        answer = await gateway.chat(content, max_tokens=number + 1)
        whole, _, fraction = answer.headers["x-tollgate-cost-usd"].partition(".")
        told += int(whole + fraction)
    rows = await gateway.rows(12)
    assert sum(row.charge_usd_nanos or 0 for row in rows) == told
    for row in rows:
        assert row.charge_usd_nanos == charge_nanos(
            row.pool,
            fresh=row.input_tokens,
            cached=row.cached_input_tokens,
            output=row.output_tokens,
        )
    assert gateway.services.spool.open_count == 0


async def test_a_key_revoked_elsewhere_stops_working(gateway: Gateway) -> None:
    engine = create_engine(gateway.settings.effective_database_url)  # as another process would
    try:
        async with session_factory(engine)() as session:
            await key_store.revoke_key(session, gateway.key, act=make_act())
            await session.commit()
    finally:
        await engine.dispose()
    deadline_s = time.monotonic() + 2
    while (answer := await gateway.chat("Hm")).status_code == 200:
        assert time.monotonic() < deadline_s, "a revoked key still works after 2 s"
    assert answer.status_code == 401
    public_id = gateway.key.split("-")[1]
    error = answer.json()["error"]
    assert error["code"] == "invalid_api_key"
    assert f"tg-{public_id}-… was revoked on " in error["message"]
    assert gateway.key.split("-")[2] not in answer.text


# ------------------------------------------------------------------------------------- when things break
def _start(**more: Any) -> AttemptStart:
    values: dict[str, Any] = {
        "attempt_id": "att_lost",
        "request_id": "req_lost",
        "attempt_number": 1,
        "tenant_id": "ten_1",
        "project_id": "prj_1",
        "key_id": "k",
        "end_user": None,
        "client_request_id": None,
        "endpoint": "chat/completions",
        "model_alias": "auto",
        "is_streaming": True,
        "pool": "plain",
        "replica": "plain-0",
        "task": "chat",
        "task_source": "default",
        "nature": "creative",
        "policy_version": "default@0",
        "price_version": "plain@0",
        "service_tier": None,
        "tags": {"team": "search"},
        "hold_usd_nanos": 99,
        "estimated_input_tokens": 25,
        "estimated_charge_usd_nanos": 3750,
        "started_at_ms": 1_700_000_000_000,
    }
    return AttemptStart(**{**values, **more})


async def test_what_a_dead_process_had_under_way_is_booked_once_as_interrupted(
    home: Path, urls: dict[str, list[str]]
) -> None:
    settings = settings_for(home, urls)
    folder = settings.state_dir / "spool"
    dead = Spool(folder, Clock(), unshipped_max=10)
    dead.start(_start())
    dead.close()  # gives up the lock, as the kernel does for a process that dies; the file stays
    (left,) = folder.iterdir()
    with left.open("ab") as file:
        file.write(b'{"type":"start","attempt_id":"att_cut')  # the crash cut its last write
    async with running(settings) as gateway:
        (row,) = await gateway.rows(1)
        assert (row.attempt_id, row.state, row.payer) == ("att_lost", "interrupted", "platform")
        assert (row.usage_source, row.input_tokens, row.charge_usd_nanos) == ("estimated", 25, 3750)
        assert row.error_code == "gateway_died"
        assert row.tags == {"team": "search"}
        assert not left.exists()
    async with running(settings, tenant="globex") as gateway:
        await gateway.rows(1)


async def test_the_spool_of_a_living_process_is_left_alone(home: Path, urls: dict[str, list[str]]) -> None:
    settings = settings_for(home, urls)
    alive = Spool(settings.state_dir / "spool", Clock(), unshipped_max=10)
    alive.start(_start())
    try:
        async with running(settings) as gateway:
            await gateway.rows(0)
    finally:
        alive.close()


@asynccontextmanager
async def _locked(url: str) -> AsyncIterator[None]:
    """Somebody else writes to the database, and takes their time."""
    engine = create_engine(url)
    async with engine.connect() as holder:
        if engine.dialect.name == "sqlite":
            await holder.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            await holder.execute(text("LOCK TABLE attempts IN EXCLUSIVE MODE"))
        yield
        await holder.rollback()
    await engine.dispose()


async def test_requests_go_on_while_the_database_is_locked_and_their_rows_arrive_later(
    gateway: Gateway,
) -> None:
    async with _locked(gateway.settings.effective_database_url):
        for _ in range(5):
            assert (await gateway.chat("Hm")).status_code == 200
        assert gateway.services.spool.unshipped_count == 5
        async with gateway.services.sessions() as session:
            theirs = select(Attempt).where(col(Attempt.tenant_id) == gateway.tenant_id)
            assert not (await session.execute(theirs)).all()
    await gateway.rows(5)


async def test_requests_go_on_while_the_tables_are_away_and_their_rows_arrive_later(
    gateway: Gateway,
) -> None:
    await gateway.rows(0)  # what the gateway asked for itself at its start is booked
    async with gateway.services.sessions() as session:
        await session.execute(text("ALTER TABLE attempts RENAME TO elsewhere"))
        await session.execute(text("ALTER TABLE changes RENAME TO elsewhere_too"))
        await session.commit()
    for _ in range(3):
        assert (await gateway.chat("Hm")).status_code == 200
    await asyncio.sleep(0.2)  # several attempts to ship and to look for changes fail meanwhile
    assert gateway.services.spool.unshipped_count == 3
    async with gateway.services.sessions() as session:
        await session.execute(text("ALTER TABLE elsewhere RENAME TO attempts"))
        await session.execute(text("ALTER TABLE elsewhere_too RENAME TO changes"))
        await session.commit()
    rows = await gateway.rows(3)
    assert {row.state for row in rows} == {"answered"}


async def test_when_too_much_waits_for_the_database_requests_are_shed_before_they_cost(
    home: Path, urls: dict[str, list[str]], plain: MockVllm
) -> None:
    settings = settings_for(home, urls, limits=LimitSettings(unshipped_records_max=2))
    async with running(settings) as gateway:
        await eventually(lambda: not gateway.services.spool.unshipped_count)  # its own tokens at the start
        async with _locked(settings.effective_database_url):
            statuses = [(await gateway.chat("Hm")).status_code for _ in range(2)]
            assert statuses == [200, 200]
            asked = plain.stats()["requests"]
            shed = await gateway.chat("Hm")
            assert (shed.status_code, shed.json()["error"]["code"]) == (503, "overloaded")
            assert shed.headers["retry-after"] == "5"
            assert plain.stats()["requests"] == asked
        await gateway.rows(2)
        assert (await gateway.chat("Hm")).status_code == 200


async def test_a_stop_ships_what_is_left_and_leaves_no_spool(home: Path, urls: dict[str, list[str]]) -> None:
    settings = settings_for(home, urls, spool={"ship_interval_ms": 600_000})
    async with running(settings) as gateway:
        own = gateway.services.spool.unshipped_count
        for _ in range(3):
            await gateway.chat("Hm")
        assert gateway.services.spool.unshipped_count == own + 3
    assert not list((settings.state_dir / "spool").iterdir())
    async with running(settings_for(home, urls), tenant="globex") as gateway:
        await gateway.rows(3)


async def test_a_stop_with_the_database_away_leaves_the_spool_for_the_next_start(
    home: Path, urls: dict[str, list[str]]
) -> None:
    settings = settings_for(home, urls, spool={"ship_interval_ms": 600_000})
    async with running(settings) as gateway:
        await gateway.chat("Hm")
        async with gateway.services.sessions() as session:
            await session.execute(text("ALTER TABLE attempts RENAME TO elsewhere"))
            await session.commit()
    assert len(list((settings.state_dir / "spool").iterdir())) == 1
    engine = create_engine(settings.effective_database_url)
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE elsewhere RENAME TO attempts"))
    await engine.dispose()
    async with running(settings_for(home, urls), tenant="globex") as gateway:
        (row,) = await gateway.rows(1)
        assert (row.state, row.payer) == ("answered", "tenant")


async def test_a_record_that_was_shipped_but_not_acknowledged_is_booked_once(gateway: Gateway) -> None:
    await gateway.chat("Hm")
    (row,) = await gateway.rows(1)
    # The same row again, as after a crash between the commit and the acknowledgement.
    async with gateway.services.sessions() as session:
        again = Ended(
            make_start(row.attempt_id, started_at_ms=row.started_at_ms),
            make_end(row.attempt_id, charge_usd_nanos=1),
        )
        booked = await book(session, [again], owner_id="x", now_ms=1, insert_receipts=insert_receipts)
        await session.commit()
    assert booked.count == 0
    assert booked.contradictions == [
        (again, f"booked already as answered at {row.charge_usd_nanos} nano-USD")
    ]
    (same,) = await gateway.rows(1)
    assert same.charge_usd_nanos == row.charge_usd_nanos
