"""Does a receipt's page say where the time went and what became of each target?"""

from __future__ import annotations

from typing import Any

from gateway.console.receipt import fates, waterfall
from gateway.ledger.tables import Attempt
from gateway.routing.receipts import Candidate, Dropped, Forecast, ReceiptFacts
from tests.support.spend_rows import attempt_row

FORECAST = Forecast(
    queue_us=1_000,
    ttft_us=20_000,
    tpot_us=5_000,
    total_us=70_000,
    cost_usd_nanos=900,
    read_us=2_000,
    share_hundredths=200,
    usd_nanos_per_hour=3_600_000,
)


def attempt(number: int = 1, **values: Any) -> Attempt:
    return Attempt(**attempt_row(number, attempt_number=number, **values))


def facts(**values: Any) -> ReceiptFacts:
    shown: dict[str, Any] = {
        "task": "chat",
        "source": "signal",
        "confidence": 1.0,
        "nature": "creative",
        "reason": "creative work",
        "candidates": [
            Candidate("plain", 500, is_external=False, forecast=FORECAST),
            Candidate("speculative", 600, is_external=False),
            Candidate("outside", None, is_external=True),
        ],
        "drops": [Dropped("old", "no replica is up")],
        "policy": "default@1",
        "baseline": None,
        "max_tokens": 9,
        "removed": [],
    }
    return ReceiptFacts(**shown | values)


def test_an_attempt_is_queue_first_token_and_generation_on_one_scale() -> None:
    failed = attempt(1, pool="plain", state="failed", ttft_ms=None, total_ms=100)
    answered = attempt(
        2, started_at_ms=150, queue_ms=10.0, ttft_ms=50, total_ms=250, generation_ms=200.0, output_tokens=11
    )
    one, other = waterfall([failed, answered], facts())
    assert [(span.kind, span.ms, span.x, span.width) for span in one.spans] == [
        ("waiting", 100.0, 0.0, 250.0)
    ]
    assert [(span.kind, span.ms, span.x) for span in other.spans] == [
        ("queue", 10.0, 375.0),
        ("first", 40.0, 400.0),
        ("generation", 200.0, 500.0),
    ]
    assert sum(span.width for span in other.spans) == 625.0


def test_a_whole_answer_has_its_first_token_where_generation_began() -> None:
    row = attempt(pool="plain", ttft_ms=None, total_ms=100, generation_ms=60.0, output_tokens=11)
    (one,) = waterfall([row], facts())
    assert [(span.kind, span.ms) for span in one.spans] == [("first", 40.0), ("generation", 60.0)]
    assert one.actual is not None
    assert (one.actual.first_token_ms, one.actual.token_ms) == (40.0, 6.0)
    assert one.actual.cost_usd_nanos == 32  # 2 ms of reading and half of 60 ms, at 1 nano a millisecond


def test_each_target_says_what_became_of_it() -> None:
    failed = attempt(1, pool="plain", state="failed", error_code="upstream_timeout")
    answered = attempt(2, pool="speculative")
    known = facts()
    found = fates(waterfall([failed, answered], known), known)
    assert [(one.target, one.outcome, one.is_taken) for one in found] == [
        ("plain", "first choice; failed (upstream_timeout)", False),
        ("speculative", "answered", True),
        ("outside", "not needed: one before it answered", False),
        ("old", "dropped: no replica is up", False),
    ]
    assert fates(waterfall([failed], None), None) == []


def test_what_the_cache_answered_and_who_left() -> None:
    known = facts()
    (hit,) = waterfall([attempt(pool="plain", cache="hit")], known)
    assert fates([hit], known)[0].outcome == "first choice; answered from the cache, without a model"
    (left,) = waterfall([attempt(pool="plain", state="cancelled")], known)
    assert fates([left], known)[0].outcome == "first choice; cut off: the caller left"
