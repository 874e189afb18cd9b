"""Are a candidate's figures right, and does a difference's interval hold the truth as often as it says?"""

import random

import pytest

from gateway.ledger.pairs import Fate, Pair
from gateway.shadow_figures import difference, differences_of, quantile, side_of, student_t


def fate(request_id: str = "req_1", **more: object) -> Fate:
    values: dict[str, object] = {
        "request_id": request_id,
        "started_at_ms": 0,
        "target": "plain",
        "is_answered": True,
        "error_code": None,
        "ttft_ms": 10,
        "total_ms": 100,
        "charge_usd_nanos": 1000,
        "input_tokens": 20,
        "output_tokens": 16,
        "drafted_tokens": 0,
        "accepted_tokens": 0,
        **more,
    }
    return Fate(**values)  # type: ignore[arg-type]  # of a test's own making


def test_a_side_counts_errors_and_speaks_of_answers_alone() -> None:
    failed = fate(is_answered=False, error_code="upstream_timeout", ttft_ms=None, total_ms=None)
    side = side_of([fate(total_ms=100), fate(total_ms=300, target="other"), failed])
    assert (side.requests, side.errors, side.targets) == (3, 1, {"other": 1, "plain": 2})
    assert (side.total_p50_ms, side.total_p95_ms, side.ttft_p50_ms) == (100, 300, 10)
    assert (side.charge_usd_nanos_mean, side.output_tokens_mean, side.acceptance) == (1000, 16, None)
    drafting = side_of([fate(drafted_tokens=30, accepted_tokens=12), fate(drafted_tokens=10)])
    assert drafting.acceptance == 0.3
    empty = side_of([])
    assert (empty.requests, empty.total_p50_ms, empty.charge_usd_nanos_mean) == (0, None, None)
    assert quantile([3, 1, 2], 0.95) == 3


def test_differences_are_taken_pair_by_pair_and_only_where_both_sides_have_the_measure() -> None:
    pairs = [
        Pair(
            fate(f"req_{number}", total_ms=1000 * number, ttft_ms=None),
            fate(f"req_c{number}", total_ms=1000 * number - 50, is_answered=number != 3),
        )
        for number in range(1, 13)
    ]
    found = {one.measure: one for one in differences_of(pairs, {})}
    total = found["total_ms"]
    assert (total.mean, total.low, total.high, total.units) == (-50, -50, -50, 12)
    assert (found["ttft_ms"].pairs, found["ttft_ms"].mean) == (0, None)
    assert found["errors"].mean == pytest.approx(1 / 12)
    assert (found["output_tokens"].pairs, found["charge_usd_nanos"].mean) == (11, 0)


def test_nothing_is_claimed_of_few_conversations_however_many_requests_they_have() -> None:
    units = {f"req_c{number}": str(number % 9) for number in range(90)}
    pairs = [Pair(fate(f"req_{number}"), fate(f"req_c{number}", total_ms=90)) for number in range(90)]
    total = next(one for one in differences_of(pairs, units) if one.measure == "total_ms")
    assert (total.pairs, total.units, total.mean, total.low, total.high) == (90, 9, -10, None, None)


def test_student_t_is_the_published_one() -> None:
    for freedom, published in ((9, 2.2622), (14, 2.1448), (29, 2.0452), (99, 1.9842), (10_000, 1.9602)):
        assert student_t(freedom) == pytest.approx(published, abs=2e-4)


def test_the_interval_holds_the_truth_where_conversations_are_alike_in_themselves() -> None:
    draw, held, worlds = random.Random(7), 0, 400
    for _ in range(worlds):
        by_unit = []
        for _ in range(25):
            own = draw.gauss(0, 30)
            by_unit.append([5 + own + draw.gauss(0, 20) for _ in range(draw.randint(1, 6))])
        found = difference("total_ms", by_unit)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 5 <= found.high
    assert 0.92 <= held / worlds <= 0.985, held


def test_no_error_seen_is_not_no_error_ever() -> None:
    pairs = [Pair(fate(f"req_{number}"), fate(f"req_c{number}")) for number in range(30)]
    (errors,) = (one for one in differences_of(pairs, {}) if one.measure == "errors")
    assert (errors.mean, errors.low, errors.high) == (0, -0.1, 0.1)
