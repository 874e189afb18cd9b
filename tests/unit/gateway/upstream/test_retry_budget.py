"""Retries are a share of requests and a few more, and the past is forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.upstream.retry_budget import WINDOW_S, RetryBudget


def granted(budget: RetryBudget, now_s: float, asked: int) -> int:
    return sum(budget.allows(now_s) for _ in range(asked))


def test_a_share_of_the_requests_and_the_floor() -> None:
    budget = RetryBudget(ratio=0.2, floor_per_s=1)
    for _ in range(100):
        budget.began(5.0)
    assert granted(budget, 5.0, 100) == 20 + WINDOW_S
    assert (budget.made, budget.refused) == (30, 70)


def test_without_requests_the_floor_is_allowed_and_with_a_floor_of_nothing_none_is() -> None:
    assert granted(RetryBudget(ratio=0.2, floor_per_s=0.3), 1.0, 10) == 3
    assert granted(RetryBudget(ratio=0.2, floor_per_s=0), 1.0, 10) == 0


def test_what_is_past_counts_no_more() -> None:
    budget = RetryBudget(ratio=0.5, floor_per_s=0)
    for _ in range(10):
        budget.began(0.0)
    assert granted(budget, WINDOW_S - 1, 10) == 5
    assert granted(budget, WINDOW_S + 1, 10) == 0, "the half before still counts, with its retries"
    for _ in range(4):
        budget.began(WINDOW_S + 1)
    assert granted(budget, WINDOW_S + 2, 10) == 2
    assert granted(budget, 4 * WINDOW_S, 10) == 0, "requests are forgotten too"


@given(st.lists(st.tuples(st.floats(0, 8), st.booleans()), max_size=300))
def test_in_no_window_there_are_more_than_allowed(steps: list[tuple[float, bool]]) -> None:
    budget = RetryBudget(ratio=0.25, floor_per_s=0.5)
    now_s, requests, retries = 0.0, [], []
    for pause_s, is_request in steps:
        now_s += pause_s
        if is_request:
            budget.began(now_s)
            requests.append(now_s)
        elif budget.allows(now_s):
            retries.append(now_s)
    for end_s in retries:
        inside = [at for at in retries if end_s - WINDOW_S < at <= end_s]
        asked = [at for at in requests if end_s - 3 * WINDOW_S <= at <= end_s]
        assert len(inside) <= 2 * (0.25 * len(asked) + 0.5 * WINDOW_S)
