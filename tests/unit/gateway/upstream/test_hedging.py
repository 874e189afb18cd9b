"""What is slow is known from a pool's own streams, and of two tries the first decisive one counts."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import UpstreamRejected, UpstreamUnavailable
from gateway.upstream.hedging import SAMPLES_MAX, SAMPLES_MIN, Hedging, first_decisive, outcome_of

REJECTED = UpstreamRejected("no", status_code=400, upstream_code="bad", param=None)
BROKEN = UpstreamUnavailable("broken")


def hedging(quantile: float = 0.9) -> Hedging:
    return Hedging(ratio=0.1, quantile=quantile, delay_s_min=0.05)


def test_before_enough_streams_nothing_is_slow() -> None:
    one = hedging()
    for _ in range(SAMPLES_MIN - 1):
        one.saw("plain", 1.0)
    assert one.delay_s("plain") is None
    one.saw("plain", 1.0)
    assert one.delay_s("plain") == 1.0
    assert one.delay_s("other") is None


def test_the_percentile_of_the_last_streams() -> None:
    one = hedging()
    for number in range(100):
        one.saw("plain", number / 100)
    assert one.delay_s("plain") == 0.9
    for _ in range(SAMPLES_MAX):
        one.saw("plain", 0.2)
    assert one.delay_s("plain") == 0.2, "what is long past counts no more"


def test_no_hedge_is_earlier_than_the_least_delay() -> None:
    one = hedging()
    for _ in range(SAMPLES_MIN):
        one.saw("plain", 0.001)
    assert one.delay_s("plain") == 0.05


async def _after(seconds: float, result: str | Exception) -> str:
    await asyncio.sleep(seconds)
    if isinstance(result, Exception):
        raise result
    return result


Try = tuple[float, str | Exception]


@pytest.mark.parametrize(
    ("first", "second", "winner"),
    [
        ((0.0, "a"), (60, "b"), 0),
        ((60, "a"), (0.0, "b"), 1),
        ((0.0, BROKEN), (0.05, "b"), 1),
        ((0.05, "a"), (0.0, BROKEN), 0),
        ((60, "a"), (0.0, REJECTED), 1),
        ((0.0, BROKEN), (0.05, BROKEN), None),
    ],
)
async def test_the_first_that_settles_it_wins_and_the_other_is_cancelled(
    first: Try, second: Try, winner: int | None
) -> None:
    async with asyncio.TaskGroup() as group:
        tries = [group.create_task(outcome_of(_after(*each))) for each in (first, second)]
        found = await first_decisive(tries)
    assert found is (None if winner is None else tries[winner])
    if (first if winner else second)[0] == 60:
        assert tries[1 - (winner or 0)].cancelled()
