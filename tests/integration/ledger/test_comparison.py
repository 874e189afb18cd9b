"""Is every first attempt of a version read once, however late and however much is booked at a time?"""

from __future__ import annotations

from typing import Any

import pytest

from gateway.inference import AttemptState, Payer
from gateway.ledger.comparison import OVERLAP_MS, Bookings, Fared, fared_before, fared_since
from gateway.ledger.posting import book
from gateway.ledger.records import Ended
from gateway.routing.receipts import insert_receipts
from tests.integration.ledger.site import Site
from tests.support.factories import make_end, make_start

START_MS = 1_800_000_000_000
VERSIONS = ("a@1", "b@1")


def ended(number: int, *, ended_ms: int = 1_000, version: str = "a@1", **end: Any) -> Ended:
    """A request that started with the canary and ended so long after."""
    more = {
        name: end.pop(name)
        for name in ("cache", "tenant_id", "is_streaming", "attempt_number")
        if name in end
    }
    start = make_start(
        f"att_{number:05d}",
        request_id=f"req_{number:05d}",
        policy_version=version,
        started_at_ms=START_MS + number,
        **more,
    )
    return Ended(start, make_end(start.attempt_id, ended_at_ms=START_MS + ended_ms, **end))


class Books:
    """Books that are read as a guard reads them."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.bookings = Bookings(START_MS)

    async def book(self, *batch: Ended, at_ms: int) -> None:
        async with self._site.sessions() as session:
            now_ms = START_MS + at_ms
            await book(session, batch, owner_id="o", now_ms=now_ms, insert_receipts=insert_receipts)
            await session.commit()

    async def read(self, **bounds: int) -> list[Fared]:
        async with self._site.sessions() as session:
            since_ms = START_MS - 60_000
            return await fared_since(session, VERSIONS, self.bookings, started_after_ms=since_ms, **bounds)

    async def read_ids(self, **bounds: int) -> list[str]:
        return [one.request_id for one in await self.read(**bounds)]


@pytest.fixture
def books(site: Site) -> Books:
    return Books(site)


async def test_what_is_booked_late_is_read_once(books: Books) -> None:
    await books.book(ended(1), ended(2, version="b@1"), at_ms=2_000)
    assert await books.read_ids() == ["req_00001", "req_00002"]
    assert await books.read_ids() == []
    # A gateway died; its spool is found an hour later. Its requests ended before those that were read.
    await books.book(ended(3, ended_ms=10), at_ms=3_600_000)
    # Another process's transaction was stamped before, and committed after that one.
    await books.book(ended(4), at_ms=3_600_000 - OVERLAP_MS + 1)
    assert await books.read_ids() == ["req_00003", "req_00004"]
    await books.book(ended(5), at_ms=3_600_001)
    assert await books.read_ids() == ["req_00005"]
    assert await books.read_ids() == []
    assert len(books.bookings.seen) == 3, "what is out of reach is forgotten"


async def test_more_than_a_look_reads_is_left_to_the_next(books: Books) -> None:
    for number in range(10):
        await books.book(ended(number), ended(100 + number, version="other@1"), at_ms=number)
    looks = []
    while found := await books.read_ids(rows_max=4, at_once=3):
        looks.append(found)
    assert [len(each) for each in looks] == [6, 4]
    assert [name for each in looks for name in each] == [f"req_{number:05d}" for number in range(10)]


async def test_who_got_nothing_and_how_long_others_took(books: Books) -> None:
    gone: dict[str, Any] = {"state": AttemptState.CANCELLED, "ttft_ms": None, "total_ms": None}
    failed: dict[str, Any] = {"state": AttemptState.FAILED, "payer": Payer.PLATFORM, "ttft_ms": None}
    answered: dict[str, Any] = {
        "state": AttemptState.ANSWERED,
        "ttft_ms": 20,
        "total_ms": 90,
        "charge_usd_nanos": 7,
    }
    await books.book(
        ended(1, **answered, is_streaming=True),
        ended(2, **answered, is_streaming=False),
        ended(3, **gone, is_streaming=False, ended_ms=30_003),
        ended(4, **gone, is_streaming=True, ended_ms=30_004),
        ended(5, **{**gone, "ttft_ms": 20, "total_ms": 800}, is_streaming=True),
        ended(6, **failed, error_code="upstream_rejected", is_streaming=True),
        ended(7, **failed, error_code="hedge_lost", total_ms=400, is_streaming=True),
        ended(8, state=AttemptState.INTERRUPTED, payer=Payer.PLATFORM, error_code="gateway_died"),
        ended(9, **answered, cache="hit"),
        ended(10, **failed, attempt_number=2),
        ended(11, **answered, tenant_id="platform"),
        at_ms=40_000,
    )
    found = {
        int(one.request_id[4:]): (one.is_failure, one.ttft_ms, one.total_ms, one.charge_usd_nanos)
        for one in await books.read()
    }
    assert found == {
        1: (False, 20, 90, 7),
        2: (False, None, 90, 7),
        3: (True, None, 30_000, None),
        4: (True, 30_000, 30_000, None),
        5: (False, 20, 800, None),
        6: (True, None, None, None),
        7: (False, 400, 400, None),
        8: (True, None, None, None),
    }


async def test_of_the_time_before_the_last_are_read(books: Books, site: Site) -> None:
    await books.book(*(ended(number, version=VERSIONS[number % 2]) for number in range(6)), at_ms=9)
    async with site.sessions() as session:
        found = await fared_before(session, "a@1", after_ms=START_MS - 9, until_ms=START_MS + 3)
        last = await fared_before(session, "a@1", after_ms=START_MS - 9, until_ms=START_MS + 9, rows_max=2)
    assert [one.request_id for one in found] == ["req_00000", "req_00002"]
    assert [one.request_id for one in last] == ["req_00002", "req_00004"]
