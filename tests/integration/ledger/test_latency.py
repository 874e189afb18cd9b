"""Is the latency of late that of the newest requests that an engine answered, by class?"""

from typing import Any

from gateway.ledger.latency import latency_by_class
from tests.integration.ledger.site import Site
from tests.support.spend_rows import attempt_row, book_rows

HOUR = 3_600_000


async def test_classes_have_the_quantiles_of_their_answers(site: Site) -> None:
    answers: list[dict[str, Any]] = [
        {"total_ms": 10 * number, "ttft_ms": number, "is_streaming": True, "started_at_ms": HOUR + number}
        for number in range(1, 101)
    ]
    others: list[dict[str, Any]] = [
        {"total_ms": 99_999, "started_at_ms": HOUR - 1},
        {"total_ms": 99_999, "started_at_ms": HOUR, "state": "failed", "payer": "platform"},
        {"total_ms": 99_999, "started_at_ms": HOUR, "cache": "hit"},
        {"total_ms": 99_999, "started_at_ms": HOUR, "attempt_number": 2},
        {"total_ms": 7, "ttft_ms": 3, "is_streaming": False, "started_at_ms": HOUR, "service_tier": "flex"},
    ]
    rows = [attempt_row(number, **row) for number, row in enumerate([*answers, *others])]
    async with site.sessions() as session:
        await book_rows(session, rows)
        await session.commit()
        default, flex = await latency_by_class(session, since_ms=HOUR)
    assert (default.latency_class, default.requests, default.since_ms) == ("default", 100, HOUR + 1)
    assert (default.ttft_p95_ms, default.total_p50_ms, default.total_p95_ms) == (95, 500, 950)
    assert (flex.latency_class, flex.ttft_p95_ms, flex.total_p95_ms) == ("flex", None, 7)
