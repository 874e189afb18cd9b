"""What may a report group by, and how do its figures add up? The query itself is tested with a database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from gateway.errors import InvalidRequest
from gateway.ledger.cuts import check_dimensions, month_of
from gateway.ledger.reports import NOTHING, SpendFigures, SpendReport

ONE = SpendFigures(1, 2, 3, 4, 5, 6, 7, 8, 9)


@pytest.mark.parametrize(
    ("moment", "start", "end"),
    [
        (datetime(2026, 11, 22, 17, tzinfo=UTC), (2026, 11), (2026, 12)),
        (datetime(2026, 12, 31, 23, 59, tzinfo=UTC), (2026, 12), (2027, 1)),
        (datetime(2028, 2, 29, tzinfo=UTC), (2028, 2), (2028, 3)),
        (datetime(2026, 3, 1, 1, tzinfo=timezone(timedelta(hours=2))), (2026, 2), (2026, 3)),
    ],
)
def test_a_month_is_a_calendar_month_in_utc(
    moment: datetime, start: tuple[int, int], end: tuple[int, int]
) -> None:
    assert month_of(moment) == (datetime(*start, 1, tzinfo=UTC), datetime(*end, 1, tzinfo=UTC))


def test_dimensions_keep_their_order_without_repeats() -> None:
    assert check_dimensions(["day", "tag:team", "tenant", "day"]) == ("day", "tag:team", "tenant")


@pytest.mark.parametrize("name", ["colour", "", "tag:", "Tenant"])
def test_an_unknown_dimension_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InvalidRequest, match="Known: tenant, project, ") as caught:
        check_dimensions(["tenant", name])
    assert caught.value.param == "group_by"


def test_figures_add_up_column_by_column() -> None:
    assert SpendFigures(2, 4, 6, 8, 10, 12, 14, 16, 18) == ONE + ONE
    assert ONE + NOTHING == ONE


def test_a_total_is_the_sum_of_the_rows() -> None:
    start, end = month_of(datetime(2026, 11, 22, tzinfo=UTC))
    report = SpendReport(("tenant",), start, end, rows=((("a",), ONE), (("b",), ONE)))
    assert report.total == ONE + ONE
    assert SpendReport(("tenant",), start, end, rows=()).total == NOTHING
