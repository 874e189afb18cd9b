"""Does every pool-hour add up to its bill, and does who used it pay for it? By property, exactly."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.replica_time import Phase
from backends.supply_spec import Count, PriceKind
from gateway.ledger.supply import (
    MS_PER_HOUR,
    Key,
    Line,
    LineKind,
    PoolHour,
    Price,
    Span,
    Terms,
    TokenWeights,
    Work,
    apportion,
    difference,
    pool_hour,
)
from gateway.money import round_half_up

HOUR = 100 * MS_PER_HOUR
END = HOUR + MS_PER_HOUR
ON_DEMAND = (Price(0, PriceKind.ON_DEMAND, 3_600_000),)
"""A nano-USD for each millisecond."""
ACME = Key(LineKind.REQUEST, "acme", "search", "key1", "auto", "chat")
GLOBEX = Key(LineKind.REQUEST, "globex", "import", "key2", "auto", "code")
IDLE, WARM_UP, UNUSED = Key(LineKind.IDLE), Key(LineKind.WARM_UP), Key(LineKind.UNUSED)


def terms(prices: tuple[Price, ...] = ON_DEMAND, *, count: Count = Count.SEEN, replicas: int = 1) -> Terms:
    names = tuple(f"plain-{index}" for index in range(replicas))
    return Terms("plain", prices, count, "driver", names, gpus_per_replica=1)


def up(start_ms: int = 0, end_ms: int = MS_PER_HOUR, phase: Phase = Phase.SERVING, replica: int = 0) -> Span:
    return Span(f"plain-{replica}", phase, HOUR + start_ms, HOUR + end_ms)


def work(
    name: str, start_ms: int, end_ms: int, *, units: int = 1000, key: Key = ACME, replica: int = 0
) -> Work:
    return Work(name, f"plain-{replica}", HOUR + start_ms, HOUR + end_ms, units, key)


def test_who_is_alone_pays_for_the_time_and_the_rest_is_idle() -> None:
    hour = pool_hour(terms(), HOUR, [up()], works=[work("a", 1000, 3000)])
    assert hour.bill_usd_nanos == MS_PER_HOUR
    assert hour.lines == {ACME: Line(2000, 2_000_000, 1), IDLE: Line(MS_PER_HOUR - 2000)}
    assert (hour.time.serving_ms, hour.time.busy_ms) == (MS_PER_HOUR, 2000)


def test_who_runs_together_shares_by_tokens_per_time() -> None:
    # Three times the tokens in the same time: three quarters of what both had; alone before and after.
    both = [work("a", 0, 4000, units=12_000), work("b", 0, 4000, units=4_000, key=GLOBEX)]
    hour = pool_hour(terms(), HOUR, [up()], works=both)
    assert (hour.lines[ACME].usd_nanos, hour.lines[GLOBEX].usd_nanos) == (3000, 1000)
    apart = [work("a", 0, 4000), work("b", 2000, 6000, key=GLOBEX)]
    hour = pool_hour(terms(), HOUR, [up()], works=apart)
    assert hour.lines[ACME].usd_nanos == hour.lines[GLOBEX].usd_nanos == 3000
    assert hour.lines[ACME].engine_us == 3_000_000


def test_a_start_is_a_warm_up_and_what_is_off_costs_nothing() -> None:
    spans = [up(0, 60_000, Phase.STARTING), up(60_000, 100_000), up(100_000, MS_PER_HOUR, Phase.OFF)]
    hour = pool_hour(terms(), HOUR, spans, works=[work("w", 10_000, 20_000)])
    assert hour.lines == {WARM_UP: Line(60_000), IDLE: Line(40_000)}


@pytest.mark.parametrize(
    ("phase", "kind"), [(Phase.ASLEEP, LineKind.ASLEEP), (Phase.BROKEN, LineKind.BROKEN)]
)
def test_who_holds_hardware_without_serving_is_a_line_of_its_own(phase: Phase, kind: LineKind) -> None:
    hour = pool_hour(terms(), HOUR, [up(0, 5000, phase)])
    assert hour.lines == {Key(kind): Line(5000)}


def test_an_attempt_over_the_hour_has_its_part_in_each() -> None:
    across = Work("a", "plain-0", END - 1000, END + 3000, 4000, ACME)
    span = Span("plain-0", Phase.SERVING, HOUR, END + MS_PER_HOUR)
    first, second = (pool_hour(terms(), at, [span], works=[across]) for at in (HOUR, END))
    assert (first.lines[ACME].usd_nanos, second.lines[ACME].usd_nanos) == (1000, 3000)


def test_a_price_holds_from_its_instant() -> None:
    change = (*ON_DEMAND, Price(HOUR + 1_000_000, PriceKind.SPOT, 2 * 3_600_000))
    hour = pool_hour(terms(change), HOUR, [up()], works=[work("a", 999_000, 1_002_000)])
    assert hour.bill_usd_nanos == 1_000_000 + 2 * 2_600_000
    assert hour.lines[ACME].usd_nanos == 1000 + 2 * 2000
    assert hour.prices == change
    assert pool_hour(terms(change), END, [], works=[]).prices == change[1:]


def test_reserved_hardware_is_paid_for_whether_it_runs_or_not() -> None:
    reserved = (*ON_DEMAND, Price(HOUR, PriceKind.RESERVED, 3_600_000))
    hour = pool_hour(terms(reserved, replicas=2), HOUR, [up(0, 600_000)])
    assert hour.bill_usd_nanos == 2 * MS_PER_HOUR
    assert hour.lines == {IDLE: Line(600_000), UNUSED: Line(2 * MS_PER_HOUR - 600_000)}
    more = pool_hour(terms(reserved), HOUR, [up(), up(replica=7)])
    assert (more.bill_usd_nanos, more.time.unused_ms) == (2 * MS_PER_HOUR, 0)


def test_what_a_file_declares_is_up_all_the_time_until_now() -> None:
    declared = terms(count=Count.DECLARED, replicas=2)
    hour = pool_hour(declared, HOUR, [], works=[work("a", 0, 1000, replica=1)])
    assert hour.bill_usd_nanos == 2 * MS_PER_HOUR
    assert hour.lines[ACME].usd_nanos == 1000
    now = pool_hour(declared, HOUR, [], until_ms=HOUR + 5000)
    assert now.lines == {IDLE: Line(10_000)}
    assert pool_hour(declared, HOUR, [], until_ms=HOUR - 5).lines == {}


def test_two_machines_with_a_replica_of_one_name_are_both_paid_for() -> None:
    hour = pool_hour(terms(), HOUR, [up(), up(0, 1000)], works=[work("a", 0, 2000)])
    assert hour.bill_usd_nanos == MS_PER_HOUR + 1000
    assert hour.lines[ACME] == Line(3000, 3_000_000, 1)


def test_who_took_no_time_takes_part_for_a_millisecond() -> None:
    hour = pool_hour(terms(), HOUR, [up()], works=[work("a", 500, 500, units=0)])
    assert hour.lines[ACME] == Line(1, 1000, 1)


def test_weights_survive_the_books() -> None:
    weights = TokenWeights(1000, 10, 1711, "profile of plain, 2026-11-28")
    assert TokenWeights.parse(weights.text()) == weights
    assert weights.units(2, 1, 3) == 2000 + 10 + 3 * 1711


@given(st.integers(-(10**15), 10**15), st.lists(st.integers(0, 10**20), min_size=1, max_size=30))
def test_parts_add_up_and_none_is_a_nano_off(total: int, weights: list[int]) -> None:
    whole = sum(weights)
    if whole == 0 and total:
        with pytest.raises(ValueError, match="cannot be shared"):
            apportion(total, weights)
        return
    parts = apportion(total, weights)
    assert sum(parts) == total
    assert all(
        abs(part - Fraction(total * weight, whole or 1)) < 1
        for part, weight in zip(parts, weights, strict=True)
    )


def test_a_weight_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be shared"):
        apportion(1, [2, -1])


_INSTANTS = st.integers(-MS_PER_HOUR // 2, 3 * MS_PER_HOUR // 2)
_KEYS = st.sampled_from(
    [ACME, GLOBEX, ACME._replace(line=LineKind.FAILED), Key(LineKind.HEARTBEAT, "platform", task="heartbeat")]
)


@st.composite
def _spans(draw: st.DrawFn) -> list[Span]:
    spans = []
    for replica in range(draw(st.integers(0, 3))):
        instants = sorted(draw(st.lists(_INSTANTS, min_size=2, max_size=5, unique=True)))
        spans += [
            up(start, end, draw(st.sampled_from(list(Phase))), replica) for start, end in pairwise(instants)
        ]
    return spans


@st.composite
def _works(draw: st.DrawFn) -> list[Work]:
    count = draw(st.integers(0, 8))
    found = []
    for number in range(count):
        start = draw(_INSTANTS)
        length = draw(st.integers(0, MS_PER_HOUR))
        found.append(
            work(
                f"att_{number}",
                start,
                start + length,
                units=draw(st.integers(0, 10**9)),
                key=draw(_KEYS),
                replica=draw(st.integers(0, 3)),
            )
        )
    return found


_PRICES = st.lists(
    st.tuples(_INSTANTS, st.sampled_from(list(PriceKind)), st.integers(1, 10**11)),
    max_size=3,
    unique_by=lambda p: p[0],
).map(lambda later: (*ON_DEMAND, *(Price(HOUR + at, kind, nanos) for at, kind, nanos in sorted(later))))


@settings(max_examples=150, deadline=None)
@given(_PRICES, _spans(), _works(), st.sampled_from(list(Count)))
def test_every_pool_hour_adds_up(
    prices: tuple[Price, ...], spans: list[Span], works: list[Work], count: Count
) -> None:
    of = terms(prices, count=count, replicas=2)
    hour = pool_hour(of, HOUR, spans, works=works)
    assert sum(line.usd_nanos for line in hour.lines.values()) == hour.bill_usd_nanos
    assert sum(line.engine_us for line in hour.lines.values()) == hour.time.busy_ms * 1000
    assert all(line.usd_nanos >= 0 and line.engine_us >= 0 for line in hour.lines.values())
    assert hour.time.busy_ms <= hour.time.serving_ms
    assert hour == pool_hour(of, HOUR, spans[::-1], works=works[::-1]), "whatever the order"
    _is_nearly_exact(hour, of, spans, works)
    # The same hour without the last attempt differs by lines that add up to nothing: a correction.
    before = pool_hour(of, HOUR, spans, works=works[:-1])
    assert hour.bill_usd_nanos == before.bill_usd_nanos, "who used it does not change what it costs"
    changed = difference(hour.lines, before.lines)
    assert sum(line.usd_nanos for line in changed.values()) == 0
    assert {key: before.lines.get(key, Line(0)) + line for key, line in changed.items()} == {
        key: hour.lines.get(key, Line(0)) for key in changed
    }


def _is_nearly_exact(hour: PoolHour, of: Terms, spans: list[Span], works: list[Work]) -> None:
    """Against rational numbers, millisecond piece by millisecond piece."""
    if of.count is Count.DECLARED:
        spans = [Span(name, Phase.SERVING, HOUR, END) for name in of.replicas]
    instants = {HOUR, END} | {price.since_ms for price in of.prices}
    for span in spans:
        instants |= {span.start_ms, span.end_ms}
    for one in works:
        instants |= {one.start_ms, max(one.end_ms, one.start_ms + 1)}
    exact: dict[str, Fraction] = {}
    total = 0
    cut = sorted(at for at in instants if HOUR <= at <= END)
    for start, end in pairwise(cut):
        price = next(price for price in reversed(of.prices) if price.since_ms <= start)
        paid = [s for s in spans if s.start_ms <= start < s.end_ms and s.phase is not Phase.OFF]
        piece = (end - start) * price.usd_nanos_per_hour
        missing = max(0, len(of.replicas) - len(paid)) if price.kind is PriceKind.RESERVED else 0
        total += piece * (len(paid) + missing)
        for span in paid:
            inside = [
                w
                for w in works
                if w.replica == span.replica and w.start_ms <= start < max(w.end_ms, w.start_ms + 1)
            ]
            if span.phase is Phase.SERVING:
                for one in inside:
                    share = Fraction(piece * one.pace, sum(w.pace for w in inside))
                    exact[one.attempt_id] = exact.get(one.attempt_id, Fraction(0)) + share
    assert hour.bill_usd_nanos == round_half_up(total, MS_PER_HOUR)
    by_key: dict[Key, list[Fraction]] = {}
    for one in works:
        if one.attempt_id in exact:
            by_key.setdefault(one.key, []).append(exact[one.attempt_id] / MS_PER_HOUR)
    for key, shares in by_key.items():
        # Each attempt is rounded once, by less than a nano-USD, and the bill once.
        assert abs(hour.lines.get(key, Line(0)).usd_nanos - sum(shares, Fraction(0))) <= len(shares) + 1
