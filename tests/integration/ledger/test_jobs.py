"""Is a job done by one process at a time, and can one that slept through its turn still write?"""

from __future__ import annotations

import asyncio
import logging

import pytest
from sqlalchemy import text

from gateway.clock import Clock
from gateway.jobs.auditor import Auditor, Stopped, decoded
from gateway.jobs.leases import LeaseLost, Turn, begin_turn, job_states
from gateway.jobs.scheduler import RECENT, Job, Scheduler, jobs_of
from gateway.settings import AuditSettings, BudgetSettings
from tests.integration.gateway.rig import PATIENCE_S, eventually
from tests.integration.ledger.site import Site

CLOCK = Clock()


async def _turn(site: Site, holder: str) -> Turn | None:
    return await begin_turn(site.sessions, CLOCK, "sweep", holder=holder, ttl_s=60)


async def _note(turn: Turn, topic: str) -> None:
    async with turn.writing() as session:
        await session.execute(text("INSERT INTO changes (topic, revision) VALUES (:t, 1)"), {"t": topic})


async def _let_turn_end(site: Site, job: str) -> None:
    """Time passes, for the turn at one job: what moves the clock of both databases alike."""
    async with site.engine.begin() as connection:
        await connection.execute(
            text("UPDATE job_leases SET expires_at_ms = 1 WHERE name = :job"), {"job": job}
        )


async def test_a_process_that_stalls_beyond_its_turn_cannot_write(site: Site) -> None:
    stalled = await _turn(site, "one")
    assert stalled is not None
    assert await _turn(site, "two") is None
    assert await _turn(site, "one") is None, "not even its own"
    await _note(stalled, "early")
    await _let_turn_end(site, "sweep")
    with pytest.raises(LeaseLost):
        await stalled.renew()
    other = await _turn(site, "two")
    assert other is not None
    assert other.token == stalled.token + 1
    await other.renew()
    await _note(other, "theirs")
    for late in (_note(stalled, "late"), stalled.renew(), stalled.end("mine")):
        with pytest.raises(LeaseLost, match="the turn 1 at the job 'sweep' is over"):
            await late
    await other.end("theirs")
    with pytest.raises(LeaseLost):
        await other.renew()
    async with site.sessions() as session:
        state = (await job_states(session))["sweep"]
    assert state.last_result == "theirs"
    assert state.last_success_at_ms is not None
    written = await site.rows("SELECT topic FROM changes WHERE topic IN ('early', 'late', 'theirs')")
    assert sorted(written) == [("early",), ("theirs",)]
    assert await _turn(site, "three") is not None, "the next one may begin at once"


async def test_who_takes_a_turn_waits_for_a_write_under_way_and_not_for_its_process(site: Site) -> None:
    first = await _turn(site, "one")
    assert first is not None
    if site.engine.dialect.name == "sqlite":
        return  # one writer at a time, whatever it writes
    async with first.writing() as session:
        await session.execute(text("INSERT INTO changes (topic, revision) VALUES ('under way', 1)"))
        assert await _turn(site, "two") is None
    assert await site.rows("SELECT revision FROM changes WHERE topic = 'under way'") == [(1,)]


async def test_what_is_due_is_done_once_and_a_failure_ends_nothing(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[str] = []

    async def work(turn: Turn, stopping: asyncio.Event) -> str:
        del stopping
        done.append(turn.name)
        return "{}"

    async def mistaken(turn: Turn, stopping: asyncio.Event) -> str:
        raise ZeroDivisionError("a mistake of ours")

    async def robbed(turn: Turn, stopping: asyncio.Event) -> str:
        await _let_turn_end(site, turn.name)
        return "never kept"

    jobs = [
        Job("mistaken", 60, mistaken),
        Job("once", 60, work),
        Job("robbed", 60, robbed),
        Job("always", 0, work),
    ]
    # No turn ends by itself here, however slow the machine is.
    one, two = [Scheduler(site.sessions, CLOCK, jobs, holder=name, first_after_s=0.01) for name in "ab"]
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(scheduler.run()) for scheduler in (one, two)]
        await eventually(lambda: done.count("always") > 3)
        assert not any(task.done() for task in running)
        one.stop()
        two.stop()
    assert done.count("once") == 1
    assert "the job mistaken was not done and is tried again: a mistake of ours" in caplog.text
    assert "the job robbed was not done and is tried again: the turn" in caplog.text
    async with site.sessions() as session:
        states = await job_states(session)
    assert states["robbed"].last_success_at_ms is None
    assert states["mistaken"].last_success_at_ms is None


async def test_a_turn_is_kept_while_its_job_is_at_work(site: Site) -> None:
    ends_at_ms = text("SELECT expires_at_ms FROM job_leases WHERE name = 'long'")

    async def long(turn: Turn, stopping: asyncio.Event) -> str:
        async with site.sessions() as session:
            first = (await session.execute(ends_at_ms)).scalar_one()
        while not stopping.is_set():
            async with site.sessions() as session:
                if (await session.execute(ends_at_ms)).scalar_one() > first:
                    return "kept"
            await asyncio.sleep(0.01)
        return "stopped"

    # On a machine that stops for longer than a turn it is lost, and begun again.
    scheduler = Scheduler(
        site.sessions, CLOCK, [Job("long", 60, long)], holder="a", first_after_s=0.01, turn_s=0.3
    )
    async with asyncio.TaskGroup() as group, asyncio.timeout(PATIENCE_S):
        group.create_task(scheduler.run())
        kept = "SELECT 1 FROM job_leases WHERE name = 'long' AND last_result = 'kept'"
        while not await site.rows(kept):  # noqa: ASYNC110 - the database has no events
            await asyncio.sleep(0.01)
        scheduler.stop()


async def test_the_auditor_says_aloud_what_is_wrong_and_whoever_asks_hears_it(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    auditor = Auditor(site.sessions, CLOCK, grace_s=1200)
    jobs = jobs_of(auditor, clock=CLOCK, audit=AuditSettings(), budgets=BudgetSettings())
    schedulers = [Scheduler(site.sessions, CLOCK, jobs, holder=name, first_after_s=60) for name in ("a", "b")]
    await schedulers[0].look()
    assert schedulers[0].verdict.breaches == 0
    assert schedulers[0].verdict.last_success_s > 0
    now_ms = CLOCK.epoch_ms()
    async with site.engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO journal_transactions (id, kind, at_ms, attempts, note)"
                " VALUES ('jtx_odd', 'usage', :now, 0, 'nothing')"
            ),
            {"now": now_ms},
        )
        await connection.execute(text("UPDATE job_leases SET last_success_at_ms = 1"))
    for scheduler in schedulers:  # the second one has nothing to do
        await scheduler.look()
        assert scheduler.verdict.breaches == 1
    told = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(told) == 2, "by the look at what is recent and by the one at everything"
    assert "I-1 (the entries of every booking add up to zero) is broken 1 times" in told[0].getMessage()
    assert "jtx_odd" in told[0].getMessage()
    async with site.sessions() as session:
        report = decoded((await job_states(session))[RECENT].last_result)
    assert report is not None
    assert [finding.id for finding in report.findings if finding.breaches] == ["I-1"]
    assert decoded('{"of": "another version"}') is None
    stopping = asyncio.Event()
    stopping.set()
    with pytest.raises(Stopped):
        await auditor.look(stopping, recent_s=None)


async def test_silent_slices_are_booked_though_nobody_serves(site: Site) -> None:
    dead = await site.process("dead")
    await site.budget(1_000)
    await dead.reserve(300)
    await site.kill(dead)
    async with site.engine.begin() as connection:
        await connection.execute(text("UPDATE budget_slices SET expires_at_ms = 1"))
    auditor = Auditor(site.sessions, CLOCK, grace_s=1200)
    jobs = jobs_of(auditor, clock=CLOCK, audit=AuditSettings(), budgets=BudgetSettings())
    scheduler = Scheduler(site.sessions, CLOCK, jobs, holder="a", first_after_s=60)
    await scheduler.look()
    assert (await site.window())["unattributed"] == 300
    assert scheduler.verdict.breaches == 0
