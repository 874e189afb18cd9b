"""When a breaker opens, when it may be tried, and what closes it."""

from __future__ import annotations

import pytest

from backends.breaker import Breaker, BreakerRule, BreakerState

RULE = BreakerRule(backoff_s=1.0, backoff_s_max=8.0)


def opened(times: int = 1) -> Breaker:
    breaker = Breaker(RULE)
    for _ in range(times):
        breaker.open(100.0)
    return breaker


def state_of(breaker: Breaker) -> BreakerState:
    return breaker.standing.state


def test_failures_in_a_row_open_it_and_a_success_ends_the_row() -> None:
    breaker = Breaker(RULE)
    assert [breaker.failed() for _ in range(2)] == [False, False]
    assert breaker.succeeded()
    assert [breaker.failed() for _ in range(3)] == [False, False, True]


def test_a_share_of_failures_opens_it_without_three_in_a_row() -> None:
    breaker = Breaker(RULE)
    outcomes = []
    for _ in range(60):  # two of three
        outcomes += [breaker.failed(), breaker.failed()]
        breaker.succeeded()
    assert True in outcomes
    assert outcomes.index(True) > 10, "a few failures are no share"


def test_one_failure_in_five_never_opens_it() -> None:
    breaker = Breaker(RULE)
    for _ in range(200):
        assert not breaker.failed()
        for _ in range(4):
            breaker.succeeded()


def test_a_success_that_changes_nothing_says_so() -> None:
    breaker = Breaker(RULE)
    assert not breaker.succeeded()
    breaker.failed()
    assert breaker.succeeded()
    assert not breaker.succeeded()


@pytest.mark.parametrize(("openings", "longest_s"), [(1, 1), (2, 2), (3, 4), (4, 8), (9, 8), (500, 8)])
def test_the_backoff_doubles_up_to_a_limit_and_is_drawn(openings: int, longest_s: float) -> None:
    waits = {opened(openings).standing.retry_at_s - 100.0 for _ in range(50)}
    assert all(longest_s / 2 <= wait_s <= longest_s for wait_s in waits)
    assert len(waits) > 10


def test_it_is_on_trial_after_a_token() -> None:
    breaker = opened()
    assert (breaker.standing.state, breaker.standing.opened) == (BreakerState.OPEN, 1)
    breaker.proved()
    assert state_of(breaker) is BreakerState.HALF_OPEN
    assert breaker.failed(), "on trial one failure is enough"
    breaker.open(200.0)
    assert breaker.standing.retry_at_s >= 201.0, "for longer than the first time"
    breaker.proved()
    assert breaker.succeeded()
    assert state_of(breaker) is BreakerState.CLOSED
    assert not breaker.failed()
    breaker.open(300.0)
    assert breaker.standing.retry_at_s <= 301.0, "the past is over"
    assert breaker.standing.opened == 3


def test_where_nobody_listens_there_is_no_backoff_and_no_trial() -> None:
    breaker = Breaker(RULE)
    breaker.open(100.0, backs_off=False)
    assert breaker.standing.retry_at_s == 100.0
    breaker.proved()
    assert breaker.standing.state is BreakerState.CLOSED


def test_the_spared_are_suspected_until_they_prove_themselves() -> None:
    breaker = Breaker(RULE)
    breaker.spare()
    assert (breaker.standing.spared, breaker.standing.is_suspected) == (1, True)
    assert breaker.standing.state is BreakerState.CLOSED
    breaker.proved()
    assert not breaker.standing.is_suspected
