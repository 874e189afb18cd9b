"""Is a bill compared once, month by month, and nothing proposed that has been proposed already?"""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
from sqlalchemy import text

from gateway.clock import Clock
from gateway.db import begin_writing
from gateway.errors import InvalidRequest
from gateway.ledger.adjustments import decide
from gateway.ledger.bills import PROVIDER, Reading
from gateway.ledger.periods import month_named
from gateway.ledger.reconcile_store import Reconciled, read_file, reconcile
from tests.integration.ledger.site import Site
from tests.support.factories import make_act

HEAD = "day,pool,quantity,amount\n"
READING = Reading(PROVIDER, "bill.csv")
DOLLAR = 1_000_000_000


async def compared(
    site: Site, *lines: str, month: str | None = None, ends: str = "\n", hashed: str = ""
) -> list[Reconciled]:
    text = (HEAD + "\n".join(lines)).replace("\n", ends)
    bill = read_file(text, READING, None if month is None else month_named(month))
    if hashed:
        bill = dataclasses.replace(bill, sha256=hashed)
    async with site.sessions() as session:
        await begin_writing(session)
        made = await reconcile(session, bill, act=make_act())
        await session.commit()
        return made


def amounts(made: Reconciled) -> dict[str, int]:
    return {each.gap or "": each.amount_usd_nanos for each in made.proposals}


async def test_a_file_of_two_months_is_compared_month_by_month_and_only_once(site: Site) -> None:
    january, february = await compared(site, "2026-01-31,plain,1,2", "2026-02-01,plain,1,3")
    assert [each.row.period for each in (january, february)] == ["2026-01", "2026-02"]
    assert [amounts(each)["missing_in_ledger"] for each in (january, february)] == [2 * DOLLAR, 3 * DOLLAR]
    again = await compared(site, "2026-01-31,plain,1,2", "2026-02-01,plain,1,3")
    assert [(each.is_new, each.row.id, list(each.proposals)) for each in again] == [
        (False, january.row.id, []),
        (False, february.row.id, []),
    ]
    assert [each.id for each in again[0].standing] == [each.id for each in january.proposals]
    async with site.engine.connect() as connection:
        counted = await connection.execute(
            text("SELECT (SELECT count(*) FROM reconciliations), (SELECT count(*) FROM adjustment_proposals)")
        )
        assert tuple(counted.one()) == (2, 2)
    (named,) = await compared(site, "2026-01-31,plain,1,2", "2026-02-01,plain,1,3", month="2026-02")
    assert named.row.id == february.row.id
    with pytest.raises(InvalidRequest, match="no line of 2026-03; it has lines of 2026-01, 2026-02"):
        await compared(site, "2026-01-31,plain,1,2", "2026-02-01,plain,1,3", month="2026-03")


async def test_a_bill_that_follows_another_proposes_what_is_missing(site: Site) -> None:
    (first,) = await compared(site, "2026-01-30,plain,1,2", "2026-01-31,other,1,7")
    approved = next(each for each in first.proposals if each.pool == "plain")
    second = make_act()
    second = dataclasses.replace(second, actor=dataclasses.replace(second.actor, id="cli:second"))
    async with site.sessions() as session:
        await decide(session, approved.id, is_approved=True, act=second, now_ms=Clock().epoch_ms())
        await session.commit()
    (then,) = await compared(site, "2026-01-30,plain,1,2.50", "2026-01-31,other,1,6")
    assert {each.pool: each.amount_usd_nanos for each in then.proposals} == {
        "other": 6 * DOLLAR,
        "plain": DOLLAR // 2,
    }, "of what is approved the rest; what is open gives way"
    assert [each.id for each in then.standing] == [approved.id]
    (last,) = await compared(site, "2026-01-30,plain,1,2", "2026-01-31,other,1,6")
    assert amounts(last) == {}, "the half dollar is withdrawn, nothing is booked for it"
    async with site.engine.connect() as connection:
        open_now = await connection.execute(
            text("SELECT pool, amount_usd_nanos FROM adjustment_proposals WHERE state = 'proposed'")
        )
        assert [tuple(row) for row in open_now] == [("other", 6 * DOLLAR)]


async def test_a_bill_that_came_with_other_line_ends_is_the_same_bill(site: Site) -> None:
    lines = ("2026-01-30,plain,1,2", "2026-01-31,other,1,7")
    (first,) = await compared(site, *lines, ends="\r\n")
    assert len(first.proposals) == 2
    for ends in ("\n", "\r\n", "\r"):
        (again,) = await compared(site, *lines, ends=ends)
        assert (again.is_new, again.row.id, list(again.proposals)) == (False, first.row.id, [])


async def test_a_bill_that_was_hashed_as_it_came_is_known_again(site: Site) -> None:
    lines = ("2026-01-30,plain,1,2", "2026-01-31,other,1,7")
    before = "\ufeff" + (HEAD + "\n".join(lines)).replace("\n", "\r\n")
    hashed = hashlib.sha256(before.encode()).hexdigest()
    (first,) = await compared(site, *lines, hashed=hashed)  # as an earlier version wrote it down
    assert first.row.file_sha256 == hashed
    (again,) = await compared(site, *lines)
    assert (again.is_new, again.row.id, list(again.proposals)) == (False, first.row.id, [])
    (another,) = await compared(site, lines[0], "2026-01-31,other,1,7.5")
    assert another.is_new
