"""Do savings add up, claim nothing without data, and count nothing twice?"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.ledger.savings import (
    Comparison,
    Engine,
    Hits,
    Line,
    Naive,
    PoolFacts,
    What,
    Work,
    against_list_price,
    against_naive_pool,
    seconds,
)
from tests.support.factories import make_rates

HOUR_NANOS = 3600 * 10**9
"""A dollar a second."""
SLOW = Engine(0.02, 0.001, 0.0, 0.0, error_ratio=0.1, source="a paper", is_quantized=False)
QUANTIZED = Engine(0.01, 0.001, 0.0, 0.0, error_ratio=0.2, source="bench", is_quantized=True)
DRAFTING = replace(QUANTIZED, proposed_token_s=0.0001)
NAIVE = Naive(SLOW, HOUR_NANOS, batch=1, source="a paper")
PLAIN = Work("plain", "auto", "chat", 10, 100, 0, 1000, 0.0, 10 * 110.0**2, 0, 0, 0, 0, 0.0)
SPECULATED = Work("fast", "auto", "code", 5, 50, 0, 900, 0.0, 5 * 190.0**2, 5, 300, 1200, 900, 0.0)
POOLS = {"plain": PoolFacts(HOUR_NANOS, 2.0, 20 * 10**9), "fast": PoolFacts(HOUR_NANOS, 1.0, 5 * 10**9)}
ENGINES = {"plain": QUANTIZED, "fast": DRAFTING}
HITS = [Hits("auto", "chat", 4)]


def made(**changes: object) -> Comparison:
    asked = {
        "naive": NAIVE,
        "works": [PLAIN, SPECULATED],
        "hits": HITS,
        "pools": POOLS,
        "engines": ENGINES,
        "home_pool": "plain",
        **changes,
    }
    naive, works, hits = (asked.pop(name) for name in ("naive", "works", "hits"))
    return against_naive_pool(naive, works, hits, **asked)  # type: ignore[arg-type]  # what a test names


def line(of: Comparison, what: What) -> Line:
    (found,) = (one for one in of.lines if one.what is what)
    return found


def test_each_line_is_what_one_change_makes_of_the_same_work() -> None:
    found = made()
    plain_naive, fast_naive = seconds(SLOW, PLAIN, 1), seconds(SLOW, SPECULATED, 1)
    dollars = {one.what: one.usd_nanos / 1e9 for one in found.lines}
    assert found.baseline_usd_nanos / 1e9 == pytest.approx(plain_naive * 1.4 + fast_naive)
    assert dollars[What.CACHE] == pytest.approx(0.4 * plain_naive)
    assert dollars[What.BATCHING] == pytest.approx(plain_naive - seconds(SLOW, PLAIN, 2))
    halved = seconds(SLOW, PLAIN, 2) - seconds(QUANTIZED, PLAIN, 2)
    assert dollars[What.QUANTIZATION] == pytest.approx(
        halved + fast_naive - seconds(QUANTIZED, SPECULATED, 1)
    )
    assert dollars[What.ROUTING] == pytest.approx(0), "both pools cost and take the same without drafts"
    # 900 steps become 300, in which 1200 tokens more are computed and proposed.
    assert dollars[What.SPECULATION] == pytest.approx(600 * 0.01 + 900 * 0.001 - 1500 * 0.001 - 1200 * 0.0001)
    assert found.actual_usd_nanos == 25 * 10**9


def test_intervals_come_from_the_constants_and_from_what_the_cache_stands_for() -> None:
    found = made()
    for one in found.lines[:5]:
        assert one.low_usd_nanos is not None
        assert one.high_usd_nanos is not None
        assert one.low_usd_nanos <= one.usd_nanos <= one.high_usd_nanos
    batching = line(found, What.BATCHING)
    assert batching.high_usd_nanos == pytest.approx(1.1 * batching.usd_nanos)
    scattered = made(works=[replace(PLAIN, squares=10 * 200.0**2), SPECULATED])
    assert (line(scattered, What.CACHE).low_usd_nanos or 0) < (line(found, What.CACHE).low_usd_nanos or 0)
    unsure = made(naive=replace(NAIVE, engine=replace(SLOW, error_ratio=None)))
    assert line(unsure, What.BATCHING).low_usd_nanos is None
    assert line(unsure, What.SPECULATION).low_usd_nanos is not None, "it needs the pools' profiles only"


@pytest.mark.parametrize(
    ("changes", "what", "why"),
    [
        ({"hits": []}, What.CACHE, "the cache answered nothing"),
        ({"naive": replace(NAIVE, batch=None)}, What.BATCHING, "declares no batch"),
        ({"home_pool": None}, What.QUANTIZATION, "declares no home_pool"),
        ({"home_pool": None}, What.ROUTING, "declares no home_pool"),
        ({"engines": {"fast": DRAFTING}}, What.QUANTIZATION, "no profile of plain"),
        ({"engines": {"plain": QUANTIZED}}, What.SPECULATION, "no profile of fast"),
        ({"engines": {**ENGINES, "plain": SLOW}}, What.QUANTIZATION, "are not quantized"),
        (
            {"engines": {**ENGINES, "plain": replace(SLOW, is_quantized=None)}},
            What.QUANTIZATION,
            "is not known here",
        ),
        ({"works": [PLAIN]}, What.SPECULATION, "no engine counted"),
        ({"pools": {**POOLS, "plain": PoolFacts(0, 2.0, 0)}}, What.ROUTING, "cost nothing"),
    ],
)
def test_a_line_without_data_claims_nothing(changes: dict[str, object], what: What, why: str) -> None:
    found = made(**changes)
    one = line(found, what)
    assert (one.is_claimed, one.usd_nanos) == (False, 0)
    assert why in one.why_not
    assert sum(each.usd_nanos for each in found.lines) == found.baseline_usd_nanos - found.actual_usd_nanos


def test_what_could_not_be_claimed_is_not_given_to_the_next_line() -> None:
    whole, without_home = made(), made(home_pool=None)
    for what in (What.CACHE, What.BATCHING, What.SPECULATION):
        assert line(without_home, what).usd_nanos == line(whole, what).usd_nanos
    lost = line(whole, What.QUANTIZATION).usd_nanos + line(whole, What.ROUTING).usd_nanos
    rest = line(whole, What.UNEXPLAINED).usd_nanos
    assert line(without_home, What.UNEXPLAINED).usd_nanos == rest + lost


def test_hits_that_no_computed_request_is_like_are_not_claimed() -> None:
    found = made(hits=[*HITS, Hits("other", "chat", 100)])
    assert line(found, What.CACHE).usd_nanos == line(made(), What.CACHE).usd_nanos
    assert line(found, What.CACHE).measured == "4 answers from the cache"


def test_a_pool_that_is_none_of_ours_is_not_compared() -> None:
    outside = replace(PLAIN, pool="openai")
    assert made(works=[PLAIN, SPECULATED, outside]) == made()


_COUNT = st.integers(0, 10**9)
_WORKS = st.builds(
    Work,
    pool=st.sampled_from(["plain", "fast"]),
    model_alias=st.just("auto"),
    task=st.sampled_from(["chat", "code"]),
    attempts=st.integers(1, 10**6),
    input_tokens=_COUNT,
    cached_input_tokens=_COUNT,
    output_tokens=_COUNT,
    context_tokens=st.floats(0, 1e15),
    squares=st.floats(0, 1e18),
    measured=st.integers(0, 10),
    steps=_COUNT,
    drafted_tokens=_COUNT,
    measured_output_tokens=st.just(0),
    measured_context_tokens=st.just(0.0),
)

_HITS = st.builds(Hits, st.just("auto"), st.sampled_from(["chat", "math"]), st.integers(1, 10**6))


@given(
    st.lists(_WORKS, max_size=6),
    st.lists(
        st.builds(Hits, st.just("auto"), st.sampled_from(["chat", "math"]), st.integers(1, 10**6)), max_size=2
    ),
    st.sampled_from([None, "plain", "gone"]),
    st.sampled_from([{}, {"plain": QUANTIZED}, ENGINES]),
    st.integers(0, 10**15),
)
def test_lines_add_up_to_baseline_minus_actual(
    works: list[Work], hits: list[Hits], home: str | None, engines: dict[str, Engine], bill: int
) -> None:
    found = made(works=works, hits=hits, home_pool=home, engines=engines)
    listed = against_list_price("mini", make_rates(), "a list", works=works, hits=hits, bill_usd_nanos=bill)
    for one in (found, listed):
        assert sum(each.usd_nanos for each in one.lines) == one.baseline_usd_nanos - one.actual_usd_nanos


def test_a_list_price_is_set_against_the_whole_bill() -> None:
    rates = replace(make_rates(), per_request=7)
    found = against_list_price("mini", rates, "a list", works=[PLAIN], hits=HITS, bill_usd_nanos=1_000)
    served = 100 * 100 + 1000 * 600 + 10 * 7
    assert line(found, What.SELF_HOSTING).usd_nanos == served - 1_000
    assert line(found, What.CACHE).usd_nanos == round(served * 0.4)
    none = against_list_price("mini", rates, "a list", works=[PLAIN], hits=[], bill_usd_nanos=1_000)
    assert not line(none, What.CACHE).is_claimed
