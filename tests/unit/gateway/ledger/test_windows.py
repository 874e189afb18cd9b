"""Is every instant in exactly one window, the one that a calendar says, and in one hour?"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.ledger.buckets import Account, Bucket, BudgetBook, BudgetRecord, Scope, Window, window_at
from gateway.ledger.posting import _hours
from tests.support.spend_rows import attempt_row, ended_of

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MS = timedelta(milliseconds=1)


def ms(text: str) -> int:
    return (datetime.fromisoformat(text) - EPOCH) // MS


INSTANTS = st.integers(0, ms("2199-12-31T23:59:59.999Z"))
BORDERS = (
    "2026-11-30T23:59:59.999Z",
    "2026-12-01T00:00:00Z",
    "2026-12-31T23:59:59.999Z",  # a Thursday of week 53
    "2027-01-01T00:00:00Z",
    "2028-02-29T23:59:59.999Z",
    "2026-03-29T01:00:00Z",  # clocks of Europe/Berlin go forward
    "2026-10-25T01:00:00Z",  # and back
    "1970-01-01T00:00:00Z",  # a Thursday: its week began in 1969
)


def calendar_window(window: Window, epoch_ms: int) -> tuple[datetime, datetime]:
    """By names of days, not by arithmetic on milliseconds."""
    day = (EPOCH + epoch_ms * MS).date()
    if window is Window.DAY:
        first, following = day, day + timedelta(days=1)
    elif window is Window.WEEK:
        year, week, _ = day.isocalendar()
        first = date.fromisocalendar(year, week, 1)
        following = first + timedelta(days=7)
    else:
        first = date(day.year, day.month, 1)
        following = date(day.year + day.month // 12, day.month % 12 + 1, 1)
    return tuple(datetime(each.year, each.month, each.day, tzinfo=UTC) for each in (first, following))  # type: ignore[return-value]  # two of them


def check(epoch_ms: int) -> None:
    for window in (Window.DAY, Window.WEEK, Window.MONTH):
        start_ms, end_ms = window_at(window, epoch_ms)
        assert end_ms is not None
        assert (EPOCH + start_ms * MS, EPOCH + end_ms * MS) == calendar_window(window, epoch_ms)
        assert start_ms <= epoch_ms < end_ms
        # In exactly one: its neighbours meet it and do not overlap.
        assert window_at(window, end_ms)[0] == end_ms
        assert window_at(window, start_ms - 1)[1] == start_ms
        assert window_at(window, start_ms) == window_at(window, end_ms - 1) == (start_ms, end_ms)
    assert window_at(Window.TOTAL, epoch_ms) == (0, None)


@given(INSTANTS)
def test_windows_are_those_of_the_calendar(epoch_ms: int) -> None:
    check(epoch_ms)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("offset_ms", [-1, 0, 1])
def test_windows_at_borders(border: str, offset_ms: int) -> None:
    check(max(0, ms(border) + offset_ms))


@given(st.lists(INSTANTS, min_size=1, max_size=20))
@example([ms("2026-11-30T23:59:59.999Z"), ms("2026-12-01T00:00:00Z")])
def test_each_instant_is_in_one_hour(instants: list[int]) -> None:
    hours = _hours(
        [ended_of(attempt_row(number, started_at_ms=instant)) for number, instant in enumerate(instants)]
    )
    expected: dict[datetime, int] = {}
    for instant in instants:
        hour = (EPOCH + instant * MS).replace(minute=0, second=0, microsecond=0)
        expected[hour] = expected.get(hour, 0) + 1
    assert {EPOCH + hour["hour_start_ms"] * MS: hour["attempts"] for hour in hours} == expected


def test_a_request_counts_in_the_windows_of_the_instant_in_which_it_was_reserved() -> None:
    last_ms, first_ms = ms("2026-12-31T23:59:59.999Z"), ms("2027-01-01T00:00:00Z")
    records = [
        BudgetRecord(
            id=f"bud_{window}",
            name=window.value,
            scope=Scope.TENANT,
            scope_id="ten_1",
            tenant_id="ten_1",
            window=window,
            limit_usd_nanos=1,
            is_hard=True,
        )
        for window in Window
    ]
    book = BudgetBook(records)
    account = Account(tenant_id="ten_1", project_id="prj_1", key_ids=("key1",))

    def starts(epoch_ms: int) -> dict[str, int]:
        # Asked in turn: what is remembered of one window must not be used in the next, nor in the last.
        counted: tuple[Bucket, ...] = book.binding(account, epoch_ms).counted
        return {bucket.budget_id.removeprefix("bud_"): bucket.window_start_ms for bucket in counted}

    week = ms("2026-12-28T00:00:00Z")
    old = {"day": ms("2026-12-31T00:00:00Z"), "week": week, "month": ms("2026-12-01T00:00:00Z"), "total": 0}
    new = {"day": first_ms, "week": week, "month": first_ms, "total": 0}
    assert starts(last_ms) == old
    assert starts(first_ms) == new
    assert starts(first_ms + 1) == new
    assert starts(last_ms) == old
