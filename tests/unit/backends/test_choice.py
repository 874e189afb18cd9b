"""Requests with a key meet, overloaded replicas pass on, everything else goes by load."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.choice import LOOKED_AT_MAX, Chooser, Key, Rule, Why, key_of, multiplier_of, others_now


@dataclass
class Replica:
    name: str
    requests: int = 0
    copies: int = 0

    def __post_init__(self) -> None:
        self.multiplier = multiplier_of(self.name)


def asked(key: int | None) -> Key:
    return lambda: key


def drawn(*numbers: float) -> Callable[[], float]:
    return iter(numbers).__next__


def chooser(rule: Rule = Rule.AFFINITY, *, load_factor: float = 1.25, at_ease: int = 1) -> Chooser:
    return Chooser(rule, load_factor=load_factor, at_ease=at_ease)


KEYS = st.integers(0, 2**64 - 1)
REPLICAS = st.lists(
    st.builds(Replica, st.text(max_size=8), st.integers(0, 300)),
    min_size=1,
    max_size=16,
    unique_by=lambda one: one.name,
)
FACTORS = st.floats(1, 4)


@given(REPLICAS, KEYS, FACTORS, st.integers(1, 40), st.randoms())
def test_a_key_and_a_set_of_replicas_decide(
    replicas: list[Replica], key: int, factor: float, at_ease: int, shuffler: random.Random
) -> None:
    taken, why = chooser(load_factor=factor, at_ease=at_ease).choose(replicas, asked(key))
    shuffled = replicas[:]
    shuffler.shuffle(shuffled)
    again, why_again = chooser(load_factor=factor, at_ease=at_ease).choose(shuffled, asked(key))
    assert (again.name, why_again) == (taken.name, why)


@given(REPLICAS, st.lists(KEYS, min_size=1, max_size=20), st.data())
def test_a_replica_that_goes_moves_its_own_keys_and_no_others(
    replicas: list[Replica], keys: list[int], data: st.DataObject
) -> None:
    for one in replicas:
        one.requests = 0
    gone = data.draw(st.sampled_from(replicas))
    left = [one for one in replicas if one is not gone]
    if not left:
        return
    for key in keys:
        before, _ = chooser().choose(replicas, asked(key))
        after, _ = chooser().choose(left, asked(key))
        assert after is before or before is gone


@given(REPLICAS, KEYS, FACTORS, st.integers(1, 40))
def test_affinity_never_exceeds_the_bound_and_always_finds_a_place(
    replicas: list[Replica], key: int, factor: float, at_ease: int
) -> None:
    rule = chooser(load_factor=factor, at_ease=at_ease)
    taken, why = rule.choose(replicas, asked(key))
    if len(replicas) == 1:
        assert why is Why.ONLY
        return
    assert why in {Why.AFFINITY, Why.PASSED_ON}
    mean = (sum(one.requests for one in replicas) + 1) / len(replicas)
    assert taken.requests + 1 <= max(at_ease, factor * mean + 1)
    assert taken.requests + 1 <= rule.bound(replicas)
    idle = [Replica(one.name) for one in replicas]
    home, _ = chooser().choose(idle, asked(key))
    assert (why is Why.AFFINITY) == (home.name == taken.name)


@given(REPLICAS, st.lists(KEYS, min_size=1, max_size=200), FACTORS)
def test_no_stream_of_requests_overloads_anybody(
    replicas: list[Replica], keys: list[int], factor: float
) -> None:
    for one in replicas:
        one.requests = 0
    rule = chooser(load_factor=factor)
    for key in keys:
        taken, _ = rule.choose(replicas, asked(key))
        taken.requests += 1
        mean = sum(one.requests for one in replicas) / len(replicas)
        assert max(one.requests for one in replicas) < factor * mean + 1 or len(replicas) == 1


def test_what_is_passed_on_goes_to_the_same_second_replica() -> None:
    replicas = [Replica(f"r{number}") for number in range(5)]
    for key in map(key_of, (b"a", b"b", b"c", b"d")):
        home, _ = chooser().choose(replicas, asked(key))
        home.requests = 100
        second, why = chooser().choose(replicas, asked(key))
        home.requests = 0
        without_it = [one for one in replicas if one is not home]
        assert why is Why.PASSED_ON
        assert chooser().choose(without_it, asked(key))[0] is second


def test_so_many_requests_are_no_reason_to_pass_on() -> None:
    replicas = [Replica("a"), Replica("b")]
    home, _ = chooser().choose(replicas, lambda: 7)
    home.requests = 3
    assert chooser(at_ease=4).choose(replicas, lambda: 7) == (home, Why.AFFINITY)
    home.requests = 4
    assert chooser(at_ease=4).choose(replicas, lambda: 7)[1] is Why.PASSED_ON


@pytest.mark.parametrize("count", [2, 3, 4, 8, 16])
def test_keys_are_spread_evenly(count: int) -> None:
    replicas = [Replica(f"http://10.0.0.{number}:8000") for number in range(count)]
    keys = [key_of(str(number).encode()) for number in range(4_000)]
    found = Counter(chooser().choose(replicas, asked(key))[0].name for key in keys)
    mean = len(keys) / count
    assert len(found) == count
    assert all(abs(share - mean) < 5 * mean**0.5 for share in found.values())


@given(REPLICAS)
def test_two_choices_never_take_the_most_loaded(replicas: list[Replica]) -> None:
    taken, why = chooser(Rule.TWO_CHOICES).choose(replicas, asked(5))
    if len(replicas) == 1:
        assert why is Why.ONLY
    else:
        assert why is Why.TWO_CHOICES
        assert taken.requests <= sorted(one.requests for one in replicas)[-2]


@given(REPLICAS)
def test_what_has_no_key_goes_to_the_least_loaded(replicas: list[Replica]) -> None:
    for rule, key in ((Rule.AFFINITY, None), (Rule.AFFINITY, asked(None)), (Rule.LEAST_LOADED, asked(5))):
        taken, why = chooser(rule).choose(replicas, key)
        assert why is (Why.ONLY if len(replicas) == 1 else Why.LEAST_LOADED)
        assert taken.requests == min(one.requests for one in replicas)


def test_of_replicas_that_are_alike_each_has_its_turn() -> None:
    replicas = [Replica("a"), Replica("b"), Replica("c"), Replica("d", 1)]
    names: Counter[str] = Counter()
    for place in range(100):
        rule = Chooser(Rule.LEAST_LOADED, load_factor=1, at_ease=1, draw=drawn(place / 100))
        names[rule.choose(replicas)[0].name] += 1
    assert set(names) == {"a", "b", "c"}
    assert min(names.values()) >= 20


def test_among_very_many_two_are_drawn() -> None:
    replicas = [Replica(str(number)) for number in range(LOOKED_AT_MAX + 1)]
    assert chooser(Rule.LEAST_LOADED).choose(replicas)[1] is Why.TWO_CHOICES
    assert chooser(Rule.LEAST_LOADED).choose(replicas[1:])[1] is Why.LEAST_LOADED


def test_two_choices_reach_every_pair() -> None:
    replicas = [Replica("a"), Replica("b"), Replica("c")]
    pairs = set()
    for first, second in itertools.product((0.0, 0.34, 0.67, 0.999), repeat=2):
        names = []
        for _ in range(2):
            rule = Chooser(Rule.TWO_CHOICES, load_factor=1, at_ease=1, draw=drawn(first, second))
            taken, _ = rule.choose(replicas)
            taken.requests += 1
            names.append(taken.name)
        for one in replicas:
            one.requests = 0
        pairs.add(frozenset(names))
    assert pairs == {frozenset(pair) for pair in itertools.combinations("abc", 2)}


def test_round_robin_takes_turns_whatever_the_loads_and_keys_are() -> None:
    replicas = [Replica("a", 9), Replica("b"), Replica("c", 4)]
    rule = chooser(Rule.ROUND_ROBIN)
    names = [rule.choose(replicas, lambda: 5)[0].name for _ in range(6)]
    assert names[:3] == names[3:]
    assert set(names[:3]) == {"a", "b", "c"}


@given(st.one_of(st.none(), st.floats(0, 1000)), st.floats(-50, 1000))
def test_what_others_have_follows_what_is_seen_of_them_slowly(before: float | None, seen: float) -> None:
    now = others_now(before, seen)
    assert now >= 0
    if before is None:
        assert now == max(0, seen)
        return
    assert min(before, max(seen, 0)) <= now <= max(before, seen)
    for _ in range(40):
        now = others_now(now, seen)
    assert abs(now - max(seen, 0)) <= 0.01


def test_keys_are_the_same_in_every_process() -> None:
    # Gateways agree on them, whatever version of this program they are: other values are another version.
    assert key_of(b"Tollgate") == 6471794046313390686
    assert multiplier_of("plain-0") == 7374192221014901469


def test_copies_are_no_reason_to_leave_prefixes() -> None:
    first, second = replicas = [Replica("one"), Replica("two")]
    key = next(k for k in range(100) if chooser().choose(replicas, asked(k))[0] is first)
    first.requests = 5
    assert chooser().choose(replicas, asked(key)) == (second, Why.PASSED_ON)
    first.copies = 5
    assert chooser().choose(replicas, asked(key)) == (first, Why.AFFINITY)
    by_load = chooser(Rule.LEAST_LOADED)
    assert by_load.choose(replicas)[0] is second, "where nothing is left behind they count"


def test_copies_are_no_reason_to_stay_or_to_pass_a_replica_by() -> None:
    first, second = replicas = [Replica("one", 2), Replica("two")]
    key = next(k for k in range(100) if chooser().choose([Replica("one"), second], asked(k))[0] is not second)
    second.requests = second.copies = 10
    assert chooser().bound(replicas) == 2, "of the mean of tenants' requests, this one counted"
    assert chooser().choose(replicas, asked(key)) == (second, Why.PASSED_ON)
    first.requests = 1
    assert chooser().choose(replicas, asked(key)) == (first, Why.AFFINITY)
