"""Does the list of requests show each once, by what ended it, and never read more than it says?"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.db import create_engine, session_factory
from gateway.ledger.pool_history import hours_of_pool, pools_lately
from gateway.ledger.traffic import TrafficFilter, page_requests, pulse
from gateway.paging import PageRequest
from tests.support.spend_rows import attempt_row, book_rows

NOON_MS = 1_795_867_200_000
MINUTE_MS = 60_000


def row(number: int, **values: Any) -> dict[str, Any]:
    start_ms = NOON_MS + number * 1_000
    return attempt_row(number, started_at_ms=start_ms, ended_at_ms=start_ms + 50, **values)


ROWS = [
    row(0, total_ms=900),
    row(
        1,
        request_id="req_back",
        state="failed",
        payer="platform",
        pool="plain",
        error_code="upstream_timeout",
    ),
    row(2, request_id="req_back", attempt_number=2),
    row(3, request_id="req_hedge"),
    row(
        4, request_id="req_hedge", attempt_number=2, state="failed", payer="platform", error_code="hedge_lost"
    ),
    row(5, state="failed", payer="platform", error_code="no_target", status_code=503, task="chat"),
    row(6, tenant_id="platform", payer="platform", task="chat"),
    row(7, tenant_id="ten_2", pool="plain", client_request_id="theirs"),
]


@pytest.fixture
async def books(database_url: str) -> AsyncIterator[AsyncSession]:
    engine = create_engine(database_url)
    async with session_factory(engine)() as session:
        await book_rows(session, ROWS)
        await session.commit()
        yield session
    await engine.dispose()


async def listed(session: AsyncSession, **wanted: Any) -> list[str]:
    found = await page_requests(session, TrafficFilter(**wanted), PageRequest())
    return [each.attempt_id for each in found.rows]


async def test_each_request_is_there_once_by_the_attempt_that_ended_it(books: AsyncSession) -> None:
    assert await listed(books) == ["att_7", "att_5", "att_3", "att_2", "att_0"]
    assert await listed(books, outcome="errors") == ["att_5"]
    assert await listed(books, pool="plain") == ["att_7"]  # the other one was answered elsewhere
    assert await listed(books, tenant_id="ten_2", client_request_id="theirs") == ["att_7"]
    assert await listed(books, slower_than_ms=899) == ["att_0"]
    assert await listed(books, slower_than_ms=900) == []
    assert await listed(books, tenant_id="platform") == ["att_6"]
    assert await listed(books, since_ms=NOON_MS + 2_000, until_ms=NOON_MS + 5_000) == ["att_3", "att_2"]


async def test_pages_go_on_where_the_last_one_ended(books: AsyncSession) -> None:
    seen: list[str] = []
    cursor = None
    for _ in range(3):
        page = await page_requests(books, TrafficFilter(), PageRequest(limit=2, cursor=cursor))
        seen += [each.attempt_id for each in page.rows]
        cursor = page.next_cursor
    assert cursor is None
    assert seen == await listed(books)


async def test_a_question_stops_after_so_many_attempts_and_says_how_far_it_got(books: AsyncSession) -> None:
    wanted = TrafficFilter(slower_than_ms=899)
    first = await page_requests(books, wanted, PageRequest(), scanned_max=3)
    assert (first.rows, first.looked_back_to_ms) == ([], NOON_MS + 4_000)
    cursor, found = first.next_cursor, []
    while cursor is not None:
        page = await page_requests(books, wanted, PageRequest(cursor=cursor), scanned_max=3)
        found += [each.attempt_id for each in page.rows]
        cursor = page.next_cursor
    assert found == ["att_0"]


async def test_minutes_and_pools_add_up(books: AsyncSession) -> None:
    seen = await pulse(books, TrafficFilter(), now_ms=NOON_MS + 90_000, minutes=3)
    assert [(one.start_ms, one.requests, one.errors) for one in seen.minutes] == [
        (NOON_MS - MINUTE_MS, 0, 0),
        (NOON_MS, 5, 1),
        (NOON_MS + MINUTE_MS, 0, 0),
    ]
    assert (seen.minutes[1].p50_ms, seen.minutes[1].p95_ms, seen.is_cut) == (50, 900, False)
    assert (await pulse(books, TrafficFilter(), now_ms=NOON_MS + 90_000, scanned_max=3)).is_cut
    lately = await pools_lately(books, since_ms=NOON_MS)
    assert (lately["plain"].attempts, lately["plain"].codes) == (2, {"upstream_timeout": 1})
    assert (lately["speculative"].faults, lately["speculative"].ttft_p95_ms) == (1, 10)
    assert await pools_lately(books, since_ms=NOON_MS + 60_000) == {}
    (hour,) = [
        one
        for one in await hours_of_pool(books, "plain", from_ms=NOON_MS - 3_600_000, to_ms=NOON_MS + 3_600_000)
        if one.requests
    ]
    assert (hour.start_ms, hour.requests, hour.failed_attempts, hour.busy_ratio) == (NOON_MS, 2, 1, None)
