"""Are spans of time read as people write them, and long lists to their end?"""

from __future__ import annotations

import pytest

from gateway.commands.keys import seconds_of
from gateway.commands.terminal import all_rows
from gateway.errors import InvalidRequest
from gateway.paging import ROWS_MAX, Page, PageRequest


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("90", 90), ("90s", 90), ("90m", 5400), ("24h", 86400), (" 7d ", 604800)]
)
def test_spans_of_time(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "1w", "1.5h", "9999999999", "h"])
def test_what_is_no_span_of_time(text: str) -> None:
    with pytest.raises(InvalidRequest, match="must be a span such as"):
        seconds_of(text)


@pytest.mark.parametrize("count", [0, 1, ROWS_MAX, ROWS_MAX + 1, 3 * ROWS_MAX])
@pytest.mark.parametrize("at_most", [None, 1, ROWS_MAX, ROWS_MAX + 1])
async def test_every_page_is_read_and_no_more(count: int, at_most: int | None) -> None:
    async def read(page: PageRequest) -> Page[int]:
        assert 1 <= page.limit <= ROWS_MAX
        start = int(page.cursor or 0)
        end = min(start + page.limit, count)
        return Page(list(range(start, end)), None if end == count else str(end))

    assert await all_rows(read, at_most=at_most) == list(range(count))[:at_most]
