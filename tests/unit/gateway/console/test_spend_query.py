"""Do addresses of pages about spend mean what they say, and lead where they promise?"""

from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from gateway.console.span import CHOICES, days_of, months_before, span_of
from gateway.console.spend_query import SpendQuery, read_query, title_of
from gateway.errors import InvalidRequest
from gateway.ledger.unit_costs import usd_nanos_per, usd_nanos_per_million

NOW = datetime(2026, 11, 15, 12, 30, tzinfo=UTC)


def asked(query: str) -> SpendQuery:
    return read_query(QueryParams(query), NOW)


@pytest.mark.parametrize(
    ("query", "since", "until"),
    [
        ("", "2026-11-01", "2026-12-01"),
        ("period=last-month", "2026-10-01", "2026-11-01"),
        ("period=last-7", "2026-11-09", "2026-11-16"),
        ("period=last-30", "2026-10-17", "2026-11-16"),
        ("period=2026-02", "2026-02-01", "2026-03-01"),
        ("from=2026-11-02&to=2026-11-05", "2026-11-02", "2026-11-05"),
        ("period=custom&from=2026-11-02T01:30:00%2B01:00", "2026-11-02T00:30:00Z", "2026-12-01"),
    ],
)
def test_words_for_times(query: str, since: str, until: str) -> None:
    span = asked(query).span
    assert (span.since, span.until) == (since, until)


@pytest.mark.parametrize(
    "query", ["period=soon", "from=2026-11-05&to=2026-11-05", "to=then", "period=2026-13"]
)
def test_times_that_are_none_are_told(query: str) -> None:
    with pytest.raises(InvalidRequest):
        asked(query)


@given(
    period=st.sampled_from([*CHOICES, "2026-03", "custom"]),
    by=st.lists(st.sampled_from(["tenant", "day", "tag:a&b", "pool"]), min_size=1, max_size=3, unique=True),
    filters=st.lists(st.sampled_from(["pool=plain", "tag:x=y=z", "tenant=a & b", "task="]), unique=True),
    is_compared=st.booleans(),
)
def test_an_address_asks_for_what_it_was_made_of(
    period: str, by: list[str], filters: list[str], *, is_compared: bool
) -> None:
    span = span_of(period, "2026-11-02" if period == "custom" else "", "", now=NOW)
    query = SpendQuery(span, tuple(by), tuple(filters), "requests", 200, is_compared=is_compared)
    assert asked(urlsplit(query.address()).query) == query


def test_a_click_adds_a_filter_once_and_a_time_narrows() -> None:
    query = asked("by=pool&by=day&filter=tenant%3Dacme")
    there = parse_qs(urlsplit(query.only("pool", "plain")).query)
    assert there["filter"] == ["tenant=acme", "pool=plain"]
    assert parse_qs(urlsplit(query.only("tenant", "acme")).query)["filter"] == ["tenant=acme"]
    day = parse_qs(urlsplit(query.only("day", "2026-11-30")).query)
    assert (day["from"], day["to"]) == (["2026-11-30"], ["2026-12-01"])
    # A week that begins before the period stays within it.
    week = parse_qs(urlsplit(query.only("week", "2026-10-26")).query)
    assert (week["from"], week["to"]) == (["2026-11-01"], ["2026-11-02"])
    untagged = parse_qs(urlsplit(query.only("tag:team", "untagged")).query)
    assert "tag:team=" in untagged["filter"]


def test_days_stand_in_the_order_of_time_and_all_else_by_charge() -> None:
    assert (asked("by=day").order, asked("by=tenant").order) == ("group", "charge")
    assert "order=charge" in asked("by=day").ordered("charge")
    assert "order" not in asked("by=day").ordered("group")
    assert "order" not in asked("by=day").group(("2026-11-02",))


def test_requests_are_linked_where_they_can_be_found() -> None:
    query = asked("by=tenant&by=day")
    there = query.receipts(("acme", "2026-11-02"))
    assert there == "/console/traffic?tenant=acme&from=2026-11-02&to=2026-11-03"
    assert asked("by=key").receipts(("ci (k1)",)) is None
    assert asked("by=tenant&filter=pool%3Da&filter=pool%3Db").receipts(("acme",)) is None


def test_exports_ask_for_what_is_on_the_screen() -> None:
    there = parse_qs(
        urlsplit(asked("by=tenant&by=task&filter=pool%3Dplain&period=2026-10").export("xlsx")).query
    )
    assert there == {
        "format": ["xlsx"],
        "group_by": ["tenant,task"],
        "from": ["2026-10-01T00:00:00+00:00"],
        "to": ["2026-11-01T00:00:00+00:00"],
        "filter": ["pool=plain"],
    }


def test_the_picker_knows_its_months_and_a_span_its_days() -> None:
    assert months_before(NOW)[0] == ("2026-09", "September 2026")
    assert len(days_of(asked("").span, NOW)) == NOW.day
    assert asked("period=last-month").span.before == "2026-09-01 to before 2026-10-01"
    assert title_of("tag:team") == "Tag team"


@pytest.mark.parametrize(("amount", "units", "each"), [(10, 4, 2), (14, 4, 4), (-10, 4, -2), (5, 0, None)])
def test_unit_costs_are_rounded_once_half_to_even(amount: int, units: int, each: int | None) -> None:
    assert usd_nanos_per(amount, units) == each


def test_a_million_tokens() -> None:
    assert usd_nanos_per_million(3, 2_000_000) == 2
