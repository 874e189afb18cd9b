"""Does the audit see each thing that can be wrong with the books, and nothing where nothing is?

One set of books with a bit of everything in it; each breach is made in a transaction that is rolled back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.append_only import APPEND_ONLY, protect
from gateway.clock import Clock
from gateway.db import database_ms
from gateway.inference import AttemptState, TokenUsage
from gateway.ledger.buckets import Account, Scope
from gateway.ledger.findings import EXAMPLES_MAX, Extent, Finding
from gateway.ledger.invariants import INVARIANTS, examine, take_snapshot
from gateway.ledger.owners import close_owner, set_unattributed
from gateway.ledger.settlement import Outcome
from gateway.ledger.supply import MS_PER_HOUR, Key, Line, LineKind, PoolHour, ReplicaMs
from gateway.ledger.supply_store import book_hour
from gateway.ledger.supply_terms import terms_of
from tests.integration.gateway.rig import eventually
from tests.integration.ledger.accounts import DAYS_INTO
from tests.integration.ledger.site import ACCOUNT, NANO_A_TOKEN, Process, Site
from tests.support.factories import make_end, make_pool_spec, make_reservation, make_start

CLOCK = Clock()
GRACE_MS = 1_200_000
OTHER_KEY = Account(tenant_id="ten_1", project_id="prj_1", key_ids=("key2",))


async def _priced(site: Site) -> None:
    rates = NANO_A_TOKEN.rates
    assert rates is not None
    async with site.engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO price_versions (version, target, input, cached_input, cache_write, output,"
                " reasoning, first_seen_at_ms) VALUES (:v, 'plain', :i, :c, :w, :o, :r, 1)"
            ),
            {
                "v": NANO_A_TOKEN.version,
                "i": rates.input,
                "c": rates.cached_input,
                "w": rates.cache_write,
                "o": rates.output,
                "r": rates.reasoning,
            },
        )


async def findings_of(session: AsyncSession, since_ms: int = 0) -> dict[str, Finding]:
    extent = Extent(since_ms=since_ms, now_ms=await database_ms(session, CLOCK), grace_ms=GRACE_MS)
    return {finding.id: finding async for finding in examine(session, extent)}


async def broken(site: Site, since_ms: int = 0) -> dict[str, Finding]:
    async with site.sessions() as session:
        await take_snapshot(session)
        found = await findings_of(session, since_ms)
    return {name: finding for name, finding in found.items() if finding.breaches}


@pytest.fixture
async def books(site: Site) -> Site:
    """Answers, fallbacks, cancellations, hits, an unpriced attempt, slices of the living and the dead."""
    await _priced(site)
    await site.budget(100_000)
    await site.budget(100_000, name="soft", scope=Scope.PROJECT, scope_id="prj_1", is_hard=False)
    process, dead, returned = [await site.process(name) for name in ("one", "dead", "returned")]
    for spent in (10, 0, 25):
        process.settle(await process.reserve(40), spent)
    await _fallback(process)
    process.settle(await process.reserve(40), 12, AttemptState.CANCELLED)
    for number in range(3):
        account = OTHER_KEY if number == 2 else ACCOUNT
        _hit(process, account, started_at_ms=process.clock.epoch_ms() + number)
    _unpriced(process)
    for lost in (dead, returned):
        lost.settle(await lost.reserve(60), 7)
        await _until_booked(lost)
        await lost.reserve(60)
        await site.kill(lost)
    async with site.sessions() as session:
        now_ms = await database_ms(session, process.clock)
        only_lost = "UPDATE budget_slices SET expires_at_ms = 1 WHERE owner_id <> :mine"
        await session.execute(text(only_lost), {"mine": process.spool.owner_id})
        assert await set_unattributed(session, before_ms=2, now_ms=now_ms) == 2
        await close_owner(session, returned.spool.owner_id, now_ms=now_ms)
        await session.commit()
    await process.reserve(50)
    await _until_booked(process)
    await _supplied(site)
    return site


async def _supplied(site: Site) -> None:
    """Two pool-hours, and a correction of the first one in the second."""
    now_ms = CLOCK.epoch_ms()
    second = now_ms - now_ms % MS_PER_HOUR
    first = second - MS_PER_HOUR
    terms = terms_of({"plain": make_pool_spec()})["plain"]
    used, idle = Key(LineKind.REQUEST, "ten_1", "prj_1", "key1", "auto", "chat"), Key(LineKind.IDLE)
    whole = PoolHour(
        "plain",
        first,
        100,
        ReplicaMs(serving_ms=9, busy_ms=5),
        {used: Line(40, 5000, 1), idle: Line(60)},
        (),
        1,
    )
    late = replace(
        whole, bill_usd_nanos=0, time=ReplicaMs(busy_ms=1), lines={used: Line(10, 1000, 1), idle: Line(-10)}
    )
    other = replace(whole, hour_start_ms=second)
    async with site.sessions() as session:
        for hour, booked_in_ms in ((whole, first), (other, second), (late, second)):
            await book_hour(
                session, terms, hour, booked_in_ms=booked_in_ms, booked_before_ms=now_ms, now_ms=now_ms
            )
        await session.commit()


async def _until_booked(process: Process) -> None:
    await eventually(lambda: not process.spool.unshipped_count)


async def _fallback(process: Process) -> None:
    reservation = await process.reserve(40)
    first = process.begin(reservation, request_id="req_two", attempt_number=1)
    first.end(Outcome(AttemptState.FAILED, usage=TokenUsage(input=3), error_code="upstream_timeout"))
    second = process.begin(reservation, request_id="req_two", attempt_number=2)
    second.end(Outcome(AttemptState.ANSWERED, usage=TokenUsage(input=3, output=4)))
    reservation.end()
    lone = make_reservation(40)
    only = process.begin(lone, request_id="req_failed", attempt_number=1)
    only.end(
        Outcome(AttemptState.FAILED, usage=None, reached_engine=False, error_code="upstream_unavailable")
    )
    lone.end()


def _hit(process: Process, account: Account, *, started_at_ms: int) -> None:
    process.settlement.served_from_cache(
        make_start(
            f"att_hit{started_at_ms}",
            request_id=f"req_hit{started_at_ms}",
            key_id=account.key_ids[0],
            cache="hit",
            price_version=NANO_A_TOKEN.version,
            hold_usd_nanos=0,
            started_at_ms=started_at_ms,
        )
    )


def _unpriced(process: Process) -> None:
    now_ms = process.clock.epoch_ms()
    start = make_start(
        "att_unpriced", request_id="req_unpriced", price_version="unpriced", started_at_ms=now_ms
    )
    process.spool.start(start)
    process.spool.end(make_end("att_unpriced", charge_usd_nanos=None, ended_at_ms=now_ms))


NAMES = {
    "booking": "(SELECT min(id) FROM journal_transactions WHERE kind = 'usage')",
    "charged": "(SELECT min(attempt_id) FROM attempts WHERE state = 'answered' AND charge_usd_nanos > 0)",
    "first_hit": "(SELECT min(attempt_id) FROM attempts WHERE cache = 'hit' AND key_id = 'key1')",
    "last_hit": "(SELECT max(attempt_id) FROM attempts WHERE cache = 'hit' AND key_id = 'key1')",
    "others_hit": "(SELECT attempt_id FROM attempts WHERE cache = 'hit' AND key_id = 'key2')",
    "is_hard": "budget_id = (SELECT id FROM budgets WHERE is_hard)",
    "is_bill": "hour_start_ms = corrects_hour_ms",
    "is_open": "NOT is_unattributed AND amount_usd_nanos > 0",
}
IN_HOUR_OF = "in hour of "
"""Begins a change of the one hourly sum that an attempt is in."""

BREACHES: Sequence[tuple[str, str]] = [
    (
        "I-1",
        """UPDATE journal_entries SET amount_usd_nanos = amount_usd_nanos + 1
           WHERE account = 'usage' AND transaction_id = {booking}""",
    ),
    (
        "I-1",
        "INSERT INTO journal_transactions (id, kind, at_ms, attempts, note) VALUES ('x', 'usage', 9, 0, '')",
    ),
    ("I-1a", "UPDATE journal_transactions SET attempts = attempts + 1 WHERE id = {booking}"),
    (
        "I-1a",
        """UPDATE journal_entries SET amount_usd_nanos = amount_usd_nanos
           + CASE account WHEN 'usage' THEN -1 WHEN 'tenant:ten_1' THEN 1 ELSE 0 END
           WHERE transaction_id = {booking}""",
    ),
    (
        "I-1b",
        """UPDATE journal_transactions SET attempts = attempts - 1
           WHERE id = (SELECT journal_id FROM attempts WHERE attempt_id = {first_hit});
           UPDATE attempts SET journal_id = NULL WHERE attempt_id = {first_hit}""",
    ),
    (
        "I-1c",
        """UPDATE journal_entries SET amount_usd_nanos = amount_usd_nanos
           + CASE WHEN account LIKE 'suspense%' THEN -1 ELSE 1 END
           WHERE transaction_id = (SELECT id FROM journal_transactions WHERE kind = 'reversal')""",
    ),
    ("I-1c", "UPDATE journal_transactions SET reverses = {booking} WHERE id = {booking}"),
    ("I-3", "UPDATE attempts SET attempt_id = {first_hit} WHERE attempt_id = {last_hit}"),
    (
        "I-4",
        """in hour of {last_hit}: requests = requests - 1;
           UPDATE attempts SET attempt_number = 2, request_id =
             (SELECT request_id FROM attempts WHERE attempt_id = {first_hit})
           WHERE attempt_id = {last_hit}""",
    ),
    ("I-4a", "UPDATE attempts SET attempt_number = 3 WHERE request_id = 'req_two' AND attempt_number = 2"),
    (
        "I-13",
        """in hour of {charged}: cached_input_tokens = cached_input_tokens - 1;
           UPDATE attempts SET cached_input_tokens = -1 WHERE attempt_id = {charged}""",
    ),
    (
        "I-14",
        """in hour of {charged}: output_tokens = output_tokens + 1;
           UPDATE attempts SET output_tokens = output_tokens + 1 WHERE attempt_id = {charged}""",
    ),
    ("I-14", "UPDATE attempts SET price_version = 'gone@1' WHERE attempt_id = {charged}"),
    ("I-14", "UPDATE attempts SET price_version = 'one@1' WHERE attempt_id = 'att_unpriced'"),
    ("I-14", "UPDATE price_versions SET output = 9000000000000000000"),
    ("I-18", "in hour of {charged}: charge_usd_nanos = charge_usd_nanos + 1"),
    ("I-18", "DELETE FROM spend_hours WHERE payer = 'platform'"),
    ("I-18", "UPDATE spend_days SET charge_usd_nanos = charge_usd_nanos + 1 WHERE payer = 'tenant'"),
    ("I-18", "UPDATE spend_hours SET hour_start_ms = hour_start_ms - 3600000 WHERE payer = 'platform'"),
    ("I-19", "UPDATE attempts SET hold_usd_nanos = charge_usd_nanos - 1 WHERE attempt_id = {charged}"),
    ("I-19", "UPDATE attempts SET hold_usd_nanos = 1 WHERE state = 'cancelled'"),
    ("I-19a", "UPDATE attempts SET error_code = 'budget_exceeded' WHERE request_id = 'req_failed'"),
    (
        "I-20",
        """in hour of {others_hit}: requests = requests - 1;
           UPDATE attempts SET request_id = 'req_failed', attempt_number = 2
           WHERE attempt_id = {others_hit}""",
    ),
    (
        "I-5",
        """UPDATE budget_windows SET limit_highest_usd_nanos =
           posted_usd_nanos + leased_usd_nanos + unattributed_usd_nanos - overage_usd_nanos - 1""",
    ),
    ("I-6", "UPDATE budget_windows SET posted_usd_nanos = posted_usd_nanos + 1 WHERE {is_hard}"),
    ("I-6", "UPDATE budget_windows SET overage_usd_nanos = overage_usd_nanos + 1 WHERE {is_hard}"),
    (
        "I-6a",
        """UPDATE budget_postings SET amount_usd_nanos = amount_usd_nanos + 1;
           UPDATE budget_windows SET posted_usd_nanos =
             (SELECT sum(p.amount_usd_nanos) FROM budget_postings p
              WHERE p.budget_id = budget_windows.budget_id)""",
    ),
    ("I-8", "UPDATE budget_slices SET expires_at_ms = 1 WHERE {is_open}"),
    ("I-11", "UPDATE budget_windows SET leased_usd_nanos = leased_usd_nanos + 1 WHERE {is_hard}"),
    ("I-11", "UPDATE budget_windows SET unattributed_usd_nanos = unattributed_usd_nanos - 1 WHERE {is_hard}"),
    (
        "I-11",
        """UPDATE budget_windows SET leased_usd_nanos = -1 WHERE {is_hard};
           UPDATE budget_slices SET amount_usd_nanos = -1 WHERE {is_open}""",
    ),
    ("I-11a", "UPDATE budget_slices SET journal_id = NULL WHERE is_unattributed"),
    (
        "I-11a",
        """UPDATE budget_windows SET unattributed_usd_nanos = 0;
           DELETE FROM budget_slices WHERE is_unattributed""",
    ),
    ("I-22", "UPDATE supply_lines SET cost_usd_nanos = cost_usd_nanos + 1 WHERE line = 'idle' AND {is_bill}"),
    ("I-22", "DELETE FROM supply_hours WHERE NOT {is_bill}"),
    (
        "I-22",
        """UPDATE supply_lines SET cost_usd_nanos = cost_usd_nanos
           + CASE line WHEN 'idle' THEN -1000 ELSE 1000 END WHERE {is_bill}""",
    ),
    ("I-22", "UPDATE supply_hours SET busy_ms = busy_ms + 1 WHERE NOT {is_bill}"),
    (
        "I-22",
        """DELETE FROM supply_lines WHERE {is_bill}; DELETE FROM supply_hours WHERE {is_bill}""",
    ),
]


async def make(session: AsyncSession, breach: str) -> None:
    """Change the books in ways that are forbidden."""
    await _unprotect(session)
    for statement in breach.format(**NAMES).split(";"):
        wanted = statement.strip()
        if wanted.startswith(IN_HOUR_OF):
            wanted = _hour_change(*wanted.removeprefix(IN_HOUR_OF).split(":"))
        changed = await session.execute(text(wanted))
        assert changed.rowcount, wanted  # type: ignore[attr-defined]  # of a statement that changes
    if "spend_days" not in breach:
        await session.execute(text("DELETE FROM spend_days"))
        await session.execute(text(DAYS_INTO))
    if session.get_bind().dialect.name == "sqlite":
        await (await session.connection()).run_sync(protect)


def _hour_change(attempt: str, change: str) -> str:
    keys = ("tenant_id", "project_id", "key_id", "model_alias", "pool", "task", "payer")
    same = " AND ".join(f"spend_hours.{key} = a.{key}" for key in keys)
    return (
        f"UPDATE spend_hours SET {change} WHERE EXISTS ("
        f"SELECT 1 FROM attempts a WHERE a.attempt_id = {attempt}"
        f" AND {same} AND hour_start_ms = a.started_at_ms - a.started_at_ms % 3600000)"
    )


ELSEWHERE = {"I-15", "I-21", "I-23"}
"""Closed months (test_periods.py) and the audit's chain (test_audit_chain.py) have tests of their own."""


async def test_each_breach_turns_exactly_its_invariant_red(books: Site) -> None:
    assert await broken(books) == {}
    async with books.sessions() as session:
        seen = await findings_of(session)
    assert {name for name, finding in seen.items() if not finding.looked_at} <= ELSEWHERE
    assert {name for name, _ in BREACHES} | {"I-2"} | ELSEWHERE == {invariant.id for invariant in INVARIANTS}
    for name, breach in BREACHES:
        async with books.sessions() as session:
            await make(session, breach)
            found = await findings_of(session)
            await session.rollback()
        red = {one.id: one for one in found.values() if one.breaches}
        assert list(red) == [name], (breach, {one.id: one.examples for one in red.values()})
        assert 1 <= len(red[name].examples) <= min(red[name].breaches, EXAMPLES_MAX)
        if breach == BREACHES[0][1]:
            (example,) = red[name].examples
            assert str(example["booking"]).startswith("jtx_")
            assert example["off_by_usd_nanos"] == 1
    assert await broken(books) == {}
    await _a_table_that_can_be_changed_again_is_noticed(books)
    await _what_is_older_is_left_out_and_a_request_is_seen_whole(books)


async def _a_table_that_can_be_changed_again_is_noticed(books: Site) -> None:
    is_sqlite = books.engine.dialect.name == "sqlite"
    opening = (
        "DROP TRIGGER tollgate_append_only_journal_entries_update"
        if is_sqlite
        else "ALTER TABLE journal_entries DISABLE TRIGGER tollgate_append_only"
    )
    async with books.sessions() as session:
        await take_snapshot(session) if is_sqlite else None
        await session.execute(text(opening))
        found = await findings_of(session)
        await session.rollback()
    assert [one.id for one in found.values() if one.breaches] == ["I-2"]
    assert found["I-2"].examples[0]["table"] == "journal_entries"
    assert ("owns the tables" in found["I-2"].note) is not is_sqlite


async def _what_is_older_is_left_out_and_a_request_is_seen_whole(books: Site) -> None:
    async with books.sessions() as session:
        future = await findings_of(session, since_ms=2**52)
        rows = await session.execute(
            text("SELECT max(started_at_ms) FROM attempts WHERE request_id = 'req_two'")
        )
        second_ms = rows.scalar_one()
        recent = await findings_of(session, since_ms=second_ms)
    assert future["I-14"].looked_at == future["I-1"].looked_at == 0
    assert future["I-5"].looked_at == 1
    assert not [one.id for one in (*future.values(), *recent.values()) if one.breaches]


async def test_a_busy_site_gives_no_false_alarm(site: Site) -> None:
    await _priced(site)
    processes = [await site.process("one"), await site.process("two")]
    await site.budget(2_000)
    is_over = asyncio.Event()

    async def work(process: Process) -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            reservation = await process.reserve(2)
            process.settle(reservation, number % 3 == 0)
            await asyncio.sleep(0.002)

    async with asyncio.TaskGroup() as group:
        for process in processes:
            group.create_task(work(process))
        for _ in range(8):
            assert await broken(site) == {}
        is_over.set()
    async with site.sessions() as session:
        seen = await findings_of(session)
    assert seen["I-3"].looked_at > 10


async def _unprotect(session: AsyncSession) -> None:
    """Let this transaction change what is only ever added to."""
    if session.get_bind().dialect.name != "sqlite":
        await session.execute(text("SET LOCAL session_replication_role = replica"))
        return
    await take_snapshot(session)
    await session.execute(text("PRAGMA defer_foreign_keys = ON"))
    for table in APPEND_ONLY:
        for verb in ("update", "delete"):
            await session.execute(text(f"DROP TRIGGER tollgate_append_only_{table}_{verb}"))
