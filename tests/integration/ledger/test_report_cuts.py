"""Does every cut of the report foot to the ledger, to the nano-dollar, and say what an oracle says?

Hypothesis draws attempts (fallbacks, failures, cache hits, unpriced ones, corrections and reversals among
them) and cuts (dimensions, filters, bounds, top, order, comparison). The oracle adds the rows up in Python
and knows no SQL; the journal is asked as well.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.ledger.cuts import Cut, Filter, previous_range
from gateway.ledger.invariants import take_snapshot
from gateway.ledger.report_facts import read_facts
from gateway.ledger.reports import (
    NOT_SAID,
    ORDERS,
    PLATFORM_TENANT,
    UNTAGGED,
    Group,
    Shape,
    SpendFigures,
    SpendReport,
    spend_report,
)
from tests.integration.ledger.accounts import check_books
from tests.integration.ledger.site import Site
from tests.support.spend_rows import attempt_row, book_rows

START = datetime(2026, 9, 28, tzinfo=UTC)
"""A Monday, three days before a month begins."""
START_MS = int(START.timestamp()) * 1000
HOUR_MS = 3_600_000
HOURS = 24 * 80
FIELDS = {"tenant": "tenant_id", "project": "project_id", "key": "key_id", "model": "model_alias"}
DIMENSIONS = (
    *("tenant", "project", "key", "model", "pool", "task", "end_user", "policy", "price"),
    *("tag:team", "tag:te'am\"%", "day", "week", "month"),
)
Row = dict[str, Any]

EACH_ADDS = settings(
    deadline=None,
    database=None,
    # An example adds to the rows of those before: it cannot be made smaller by itself.
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

tokens = st.integers(0, 10**6)
instants = st.builds(
    lambda hour, ms: START_MS + hour * HOUR_MS + ms,
    st.integers(0, HOURS - 1),
    st.sampled_from([0, 1, HOUR_MS // 2, HOUR_MS - 1]),
)
tags = st.dictionaries(
    st.sampled_from(["team", "te'am\"%", "other"]),
    st.sampled_from(["search", "ads", "Grüße 東京", "", UNTAGGED, "=1+1"]),
    max_size=2,
)
attempts = st.fixed_dictionaries(
    {
        "started_at_ms": instants,
        "attempt_number": st.sampled_from([1, 1, 1, 2, 3]),
        "tenant_id": st.sampled_from(["ten_1", "ten_2", PLATFORM_TENANT]),
        "project_id": st.sampled_from(["prj_1", "prj_2"]),
        "key_id": st.sampled_from(["key1", "key2"]),
        "end_user": st.sampled_from([None, "", "ann", "bob"]),
        "model_alias": st.sampled_from(["auto", "fast"]),
        "pool": st.sampled_from(["plain", "speculative"]),
        "task": st.sampled_from(["chat", "code"]),
        "price_version": st.sampled_from(["plain@1", "plain@2"]),
        "tags": tags,
        "cache": st.sampled_from(["bypass", "miss", "hit"]),
        "state": st.sampled_from(["answered", "failed", "cancelled", "interrupted"]),
        "payer": st.sampled_from(["tenant", "tenant", "platform"]),
        "input_tokens": tokens,
        "cached_input_tokens": tokens,
        "cache_write_tokens": tokens,
        "output_tokens": tokens,
        "reasoning_tokens": tokens,
        "charge_usd_nanos": st.one_of(st.none(), st.integers(0, 10**15)),
        "is_reversed": st.booleans(),
    }
)
bounds = st.one_of(
    st.integers(0, HOURS).map(lambda hour: hour * HOUR_MS),
    st.integers(0, HOURS * HOUR_MS),
    st.sampled_from([3 * 24 * HOUR_MS, 34 * 24 * HOUR_MS, 64 * 24 * HOUR_MS]),
)
filters = st.lists(
    st.sampled_from(
        [
            Filter("tenant", ("ten_1",)),
            Filter("tenant", ("ten_2", PLATFORM_TENANT)),
            Filter("pool", ("plain",)),
            Filter("task", ("chat", "nothing")),
            Filter("end_user", ("ann", "")),
            Filter("tag:team", ("search", "ads")),
            Filter("tag:te'am\"%", ("",)),
            Filter("month", ("2026-10",)),
            Filter("week", ("2026-10-05", "2026-11-02")),
            Filter("day", ("2026-10-01",)),
        ]
    ),
    max_size=2,
    unique_by=lambda each: each.name,
)
dimension_lists = st.lists(st.sampled_from(DIMENSIONS), max_size=3, unique=True)


class Books:
    """A database that rows are added to, and the same rows in memory."""

    def __init__(self, site: Site, runner: asyncio.Runner) -> None:
        self.site = site
        self.runner = runner
        self.rows: list[Row] = []

    def add(self, drawn: list[Row]) -> None:
        """Book attempts, and take some back."""
        rows: list[Row] = []
        for values in drawn:
            is_reversed = values.pop("is_reversed")
            row = attempt_row(len(self.rows) + len(rows), **values) | {"cache": values["cache"]}
            rows.append(row)
            if is_reversed:
                rows.append(reversal(row))
        self.rows += rows
        if rows:
            self.runner.run(self._book(rows))

    async def _book(self, rows: list[Row]) -> None:
        async with self.site.sessions() as session:
            await book_rows(session, rows)
            await session.commit()

    def report(self, group_by: list[str], start_ms: int, end_ms: int, shape: Shape) -> SpendReport:
        async def ask() -> SpendReport:
            async with self.site.sessions() as session:
                await take_snapshot(session)
                return await spend_report(
                    session, group_by=group_by, start=moment(start_ms), end=moment(end_ms), shape=shape
                )

        return self.runner.run(ask())


def reversal(row: Row) -> Row:
    """What takes an attempt back a day later: nothing is changed, something is added."""
    negative = {
        name: -row[name]
        for name in ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens")
    }
    charge = row["charge_usd_nanos"]
    return {
        **row,
        **negative,
        "attempt_id": row["attempt_id"].replace("att_", "rev_att_"),
        "attempt_number": 0,
        "state": "answered",
        "cache": "bypass",
        "reasoning_tokens": -row["reasoning_tokens"],
        "charge_usd_nanos": None if charge is None else -charge,
        "started_at_ms": row["started_at_ms"] + 24 * HOUR_MS,
    }


def moment(at_ms: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at_ms)


def value_of(row: Row, name: str) -> str | None:
    """What a row is grouped by; None: it has no such value."""
    if name.startswith("tag:"):
        return row["tags"].get(name.removeprefix("tag:")) or None
    if name in {"day", "week", "month"}:
        day = moment(row["started_at_ms"]).date()
        if name == "month":
            return f"{day:%Y-%m}"
        return str(day - timedelta(days=day.weekday())) if name == "week" else str(day)
    found = row[{**FIELDS, "policy": "policy_version", "price": "price_version"}.get(name, name)]
    return found or None


def is_wanted(row: Row, wanted: list[Filter], start_ms: int, end_ms: int) -> bool:
    return start_ms <= row["started_at_ms"] < end_ms and all(
        (value_of(row, each.name) or "") in each.values for each in wanted
    )


def figures_of(rows: list[Row]) -> SpendFigures:
    paid = [row for row in rows if row["payer"] == "tenant"]

    def total(name: str) -> int:
        return sum(row[name] or 0 for row in paid)

    return SpendFigures(
        requests=sum(row["attempt_number"] == 1 and row["tenant_id"] != PLATFORM_TENANT for row in rows),
        failed_attempts=sum(row["state"] == "failed" for row in rows),
        input_tokens=total("input_tokens"),
        cached_input_tokens=total("cached_input_tokens"),
        cache_write_tokens=total("cache_write_tokens"),
        output_tokens=total("output_tokens"),
        reasoning_tokens=total("reasoning_tokens"),
        charge_usd_nanos=total("charge_usd_nanos"),
        platform_usd_nanos=sum(row["charge_usd_nanos"] or 0 for row in rows if row["payer"] != "tenant"),
        unpriced_attempts=sum(row["charge_usd_nanos"] is None for row in rows),
        cache_hits=sum(row["cache"] == "hit" for row in rows),
    )


def expected(rows: list[Row], group_by: list[str]) -> dict[Group, SpendFigures]:
    groups: defaultdict[Group, list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(shown(row, name) for name in group_by)].append(row)
    return {group: figures_of(found) for group, found in groups.items()}


def shown(row: Row, name: str) -> str:
    value = value_of(row, name)
    if value is None:
        return UNTAGGED if name.startswith("tag:") else NOT_SAID
    return value


def plain(group: Group) -> Group:
    """Without what tells a tag called `untagged` from none at all."""
    return tuple(each.removesuffix(f" ({UNTAGGED})") for each in group)


def merged(rows: tuple[tuple[Group, SpendFigures], ...]) -> dict[Group, SpendFigures]:
    found: dict[Group, SpendFigures] = {}
    for group, figures in rows:
        assert group not in found
        found[group] = figures
    joined: dict[Group, SpendFigures] = {}
    for group, figures in found.items():
        joined[plain(group)] = joined[plain(group)] + figures if plain(group) in joined else figures
    return joined


ZERO = SpendFigures(0, 0, 0, 0, 0, 0, 0, 0, 0)


@pytest.fixture
def books(database_url: str, tmp_path: Any) -> Any:
    with asyncio.Runner() as runner:
        site = Site(database_url, tmp_path)
        yield Books(site, runner)
        runner.run(site.engine.dispose())


@settings(EACH_ADDS, max_examples=60)
@given(
    drawn=st.lists(attempts, max_size=8),
    group_by=dimension_lists,
    wanted=filters,
    between=st.lists(bounds, min_size=2, max_size=2, unique=True).map(sorted),
    top=st.one_of(st.none(), st.integers(1, 4)),
    order=st.sampled_from(ORDERS),
)
def _every_cut(
    books: Books,
    drawn: list[Row],
    group_by: list[str],
    wanted: list[Filter],
    *,
    between: list[int],
    top: int | None,
    order: str,
) -> None:
    books.add(drawn)
    start_ms, end_ms = START_MS + between[0], START_MS + between[1]
    rows = [row for row in books.rows if is_wanted(row, wanted, start_ms, end_ms)]
    made = books.report(
        group_by, start_ms, end_ms, Shape(filters=tuple(wanted), order=order, counts_end_users=True)
    )
    by_oracle = {group: each for group, each in expected(rows, group_by).items() if each != ZERO}
    assert {group: each for group, each in merged(made.rows).items() if each != ZERO} == by_oracle
    assert made.is_footed
    assert made.total == figures_of(rows)
    users = {row["end_user"] for row in rows if row["payer"] == "tenant" and row["end_user"]}
    assert made.end_users_total == len(users)
    # The largest few, and the rest added up: the same total.
    fewer = books.report(group_by, start_ms, end_ms, Shape(filters=tuple(wanted), order=order, top=top))
    assert fewer.total == made.total
    assert fewer.is_footed
    if top is not None:
        named = [group for group, _ in fewer.rows if UNTAGGED not in group]
        assert len(named) <= top
        assert len(fewer.rows) + fewer.others_count == len(made.rows)


def test_every_cut_foots_to_the_ledger(books: Books) -> None:
    _every_cut(books)
    books.runner.run(check_books(books.site))
    # What the journal's accounts owe is what a report of all times says.
    everything = books.report(["tenant"], 0, START_MS + 2 * HOURS * HOUR_MS, Shape())
    owed = dict(
        books.runner.run(
            books.site.rows("SELECT account, sum(amount_usd_nanos) FROM journal_entries GROUP BY account")
        )
    )
    tenants = {f"tenant:{group[0]}": each.charge_usd_nanos for group, each in everything.rows}
    assert {name: int(amount) for name, amount in owed.items() if name.startswith("tenant:") and amount} == {
        name: amount for name, amount in tenants.items() if amount
    }
    assert int(owed.get("platform", 0)) == everything.total.platform_usd_nanos


@settings(EACH_ADDS, max_examples=25)
@given(
    drawn=st.lists(attempts, max_size=6),
    name=st.sampled_from(["", "day", "week", "month", "pool"]),
    between=st.lists(st.integers(0, 10), min_size=2, max_size=2, unique=True).map(sorted),
)
def _every_comparison(books: Books, drawn: list[Row], name: str, between: list[int]) -> None:
    books.add(drawn)
    weeks = [START_MS + count * 7 * 24 * HOUR_MS for count in between]
    months = [int(datetime(2026, 9 + count // 3, 1, tzinfo=UTC).timestamp()) * 1000 for count in range(12)]
    start_ms, end_ms = (months[between[0]], months[11]) if name == "month" else (weeks[0], weeks[1])
    group_by = [name] if name else []
    made = books.report(group_by, start_ms, end_ms, Shape(is_compared=True))
    before = [int(each.timestamp() * 1000) for each in previous_range(moment(start_ms), moment(end_ms))]
    assert made.previous_total == figures_of([row for row in books.rows if is_wanted(row, [], *before)])
    assert made.is_footed
    for group, _ in made.rows:
        if name in {"day", "week", "month"}:
            first = datetime.fromisoformat(group[0] if name != "month" else f"{group[0]}-01").date()
            last = first - timedelta(days={"day": 1, "week": 7, "month": 1}[name])
            wanted = f"{last:%Y-%m}" if name == "month" else str(last)
            stood = [row for row in books.rows if value_of(row, name) == wanted]
        else:
            stood = [row for row in books.rows if is_wanted(row, [], *before)]
            stood = [row for row in stood if not name or value_of(row, name) == group[0]]
        assert made.previous[group] == figures_of(stood), group


def test_every_comparison_is_with_what_stood_before(books: Books) -> None:
    _every_comparison(books)


async def test_what_cannot_be_compared_or_ordered_says_why(site: Site) -> None:
    week, later = START, START + timedelta(hours=5)
    async with site.sessions() as session:
        for group_by, start, shape, said in (
            (["day", "month"], week, Shape(is_compared=True), "one of day, week and month"),
            (["week"], later, Shape(is_compared=True), "begins where a week does"),
            (
                ["pool"],
                week,
                Shape(is_compared=True, filters=(Filter("day", ("2026-10-01",)),)),
                "takes no filter by day",
            ),
            (["pool"], week, Shape(order="colour"), "Cannot order by 'colour'"),
            (["pool"], week, Shape(top=0), "`top` is 1 to"),
        ):
            with pytest.raises(InvalidRequest, match=said):
                await spend_report(
                    session, group_by=group_by, shape=shape, start=start, end=START + timedelta(days=7)
                )
        with pytest.raises(InvalidRequest, match="of the years 1970 to 2200"):
            await spend_report(session, group_by=[], start=datetime(1, 1, 1, tzinfo=UTC), end=START)


async def test_a_report_says_what_it_is_made_from(site: Site) -> None:
    cut = Cut(("tenant",), (), START_MS, START_MS + 24 * HOUR_MS)
    async with site.sessions() as session:
        empty = await read_facts(session, cut)
        assert (empty.high_water, empty.price_versions, empty.source) == (None, (), "hours")
        rows = [
            attempt_row(number, started_at_ms=START_MS + number, price_version=f"plain@{number % 2}")
            for number in range(3)
        ]
        await book_rows(session, rows)
        facts = await read_facts(session, cut)
    assert facts.price_versions == ("plain@0", "plain@1")
    assert facts.are_prices_used
    assert facts.high_water is not None
    assert facts.high_water.startswith("jtx_")
    assert (facts.high_water_at_ms, facts.unallocated_usd_nanos) == (1, 0)
