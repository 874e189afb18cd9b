"""Does a forecast count what the month's report says is due: late usage, credits and corrections too?"""

from __future__ import annotations

import dataclasses

from sqlalchemy import insert, text

from gateway.clock import Clock
from gateway.db import database_ms, metadata
from gateway.forecasts.child import Found
from gateway.forecasts.forecast import Forecast
from gateway.forecasts.outlook import ADJUSTED, TOTAL, Question, outlook_of, read_question
from gateway.ledger.adjustments import NewAdjustment, decide, propose
from gateway.ledger.cuts import epoch_ms, moment_of, month_of
from gateway.ledger.period_tables import LateHour
from gateway.ledger.tables import SpendHour
from tests.integration.ledger.accounts import DAYS_INTO
from tests.integration.ledger.site import Site
from tests.support.factories import make_act

CLOCK = Clock()
DOLLAR = 10**9
SUMS = {
    **dict.fromkeys(("requests", "attempts", "failed_attempts", "unpriced_attempts", "cache_hits"), 0),
    **dict.fromkeys((f"{name}_tokens" for name in ("input", "output", "cached_input", "cache_write")), 0),
    "reasoning_tokens": 0,
}
KEYS = {"tenant_id": "ten_1", "project_id": "prj", "key_id": "key", "model_alias": "auto", "task": "qa"}


async def filled(site: Site) -> int:
    """One dollar of this month, two that came late of a closed one, and a credit of half a dollar."""
    async with site.sessions() as session:
        now_ms = await database_ms(session, CLOCK)
        month_ms = epoch_ms(month_of(moment_of(now_ms))[0])
        hour = {**SUMS, **KEYS, "pool": "plain", "payer": "tenant"}
        late = {**hour, "hour_start_ms": month_ms - 5 * 86_400_000, "charge_usd_nanos": 2 * DOLLAR}
        rows = [{**hour, "hour_start_ms": month_ms, "charge_usd_nanos": DOLLAR}, late]
        await session.execute(insert(SpendHour), rows)
        await session.execute(text(DAYS_INTO))
        journal = {"kind": "usage", "at_ms": now_ms, "attempts": 1, "note": "", "id": "jtx_late"}
        await session.execute(insert(metadata.tables["journal_transactions"]), [journal])
        await session.execute(
            insert(LateHour), [{**late, "journal_id": "jtx_late", "billed_in_ms": month_ms}]
        )
        row = await propose(session, NewAdjustment("credit", "ten_1", -DOLLAR // 2, "why"), act=make_act())
        second = make_act()
        second = dataclasses.replace(second, actor=dataclasses.replace(second.actor, id="cli:second"))
        await session.commit()
        await decide(session, row.id, is_approved=True, act=second, now_ms=now_ms)
        await session.commit()
        return now_ms


async def asked(site: Site, by: str, now_ms: int) -> Question:
    async with site.sessions() as session:
        return await read_question(session, by=by, now_ms=now_ms, names={"tenant": {"ten_1": "acme"}})


def nothing_more(question: Question) -> Found:
    """A forecast of zeros."""
    made = Forecast("seasonal-naive", "", (0.0,) * 31, {}, 6, 28, 0.8, None)
    return Found(forecasts=dict.fromkeys(question.series, made), none={}, has_library=True)


async def test_late_usage_and_credits_are_booked_in_the_month(site: Site) -> None:
    now_ms = await filled(site)
    question = await asked(site, "tenant", now_ms)
    made = outlook_of(question, nothing_more(question))
    assert {line.name: line.booked_usd_nanos for line in made.lines} == dict.fromkeys(
        ("acme", TOTAL), 3 * DOLLAR - DOLLAR // 2
    )
    assert [line.month.usd_nanos for line in made.lines if line.month] == [3 * DOLLAR - DOLLAR // 2] * 2
    assert made.note == ""


async def test_by_pool_only_the_total_has_credits_and_it_says_so(site: Site) -> None:
    question = await asked(site, "pool", await filled(site))
    made = outlook_of(question, nothing_more(question))
    assert {line.name: line.booked_usd_nanos for line in made.lines} == {
        "plain": 3 * DOLLAR,
        TOTAL: 3 * DOLLAR - DOLLAR // 2,
    }
    assert made.note == ADJUSTED
