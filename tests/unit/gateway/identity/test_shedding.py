"""Who is refused when the process is full: the lower class first, within it whoever uses most."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import Overloaded
from gateway.identity.shedding import RETRY_AFTER_S, Seat, Shares, Shedder


def shedder(bound: int = 100, *, reserved: float = 0.1, **weights: float) -> Shedder:
    return Shedder(lambda: bound, shares=Shares(reserved=reserved), weights=weights)


def fill(process: Shedder, latency_class: str, tenant: str, most: int = 1_000) -> list[Seat]:
    """As many calls as are let in."""
    seats: list[Seat] = []
    while len(seats) < most:
        try:
            seats.append(process.admit(latency_class, tenant))
        except Overloaded:
            break
    return seats


def test_the_lower_class_is_refused_first() -> None:
    process = shedder(reserved=0)
    seats = [fill(process, name, "acme") for name in ("flex", "default", "priority")]
    assert [len(each) for each in seats] == [70, 20, 10]
    assert process.under_way == process.in_flight_max == 100
    for name, least_s in RETRY_AFTER_S.items():
        with pytest.raises(Overloaded) as caught:
            process.admit(name, "other")
        error = caught.value
        assert (error.status_code, error.code, error.is_retryable) == (503, "overloaded", True)
        assert error.retry_after_s is not None
        assert least_s <= error.retry_after_s <= 2 * least_s
    assert process.shed == {"flex": 2, "default": 2, "priority": 2}
    seats[2].pop().leave()
    with pytest.raises(Overloaded):
        process.admit("default", "acme")  # the room is priority's
    process.admit("priority", "acme")


def test_what_the_dearer_class_uses_is_not_left_for_the_others() -> None:
    process = shedder(reserved=0)
    assert len(fill(process, "priority", "acme")) == 100
    assert not fill(process, "flex", "acme")
    assert not fill(process, "default", "acme")


def test_the_last_tenth_is_for_tenants_below_their_share() -> None:
    process = shedder()
    greedy = fill(process, "priority", "greedy")
    assert len(greedy) == 90, "alone it gets all but what is kept for others"
    modest = fill(process, "priority", "modest")
    assert len(modest) == 10, "below its share it gets that too"
    for seat in greedy[:50]:
        seat.leave()
    assert len(fill(process, "priority", "modest", most=30)) == 30
    assert process.under_way == 80
    # 40 and 40: both at their share, who comes first fills up to the tenth.
    assert len(fill(process, "priority", "greedy")) == 10


def test_a_weight_is_that_many_shares() -> None:
    process = shedder(big=3)
    fill(process, "priority", "big", most=45)
    fill(process, "priority", "small", most=45)
    assert not fill(process, "priority", "small"), "a half is more than its quarter"
    assert len(fill(process, "priority", "big")) == 10, "a half is less than its three quarters"


def test_a_seat_is_left_once() -> None:
    process = shedder(bound=1, reserved=0)
    seat = process.admit("priority", "acme")
    seat.leave()
    seat.leave()
    assert process.under_way == 0
    with process.admit("priority", "acme"):
        assert process.under_way == 1
    assert process.under_way == 0


def test_there_is_always_room_for_one() -> None:
    assert len(fill(shedder(bound=1, reserved=0), "flex", "acme")) == 1


CALLS = st.lists(
    st.tuples(st.sampled_from(["flex", "default", "priority"]), st.sampled_from("abc"), st.booleans()),
    max_size=200,
)


@settings(deadline=None)
@given(CALLS, st.integers(1, 30))
def test_counts_never_drift_and_the_bound_holds(calls: list[tuple[str, str, bool]], bound: int) -> None:
    process = shedder(bound, a=0.1, b=2.7)
    seats: list[Seat] = []
    refused_at: list[int] = []
    for latency_class, tenant, leaves in calls:
        if leaves and seats:
            seats.pop(0).leave()
            continue
        try:
            seats.append(process.admit(latency_class, tenant))
        except Overloaded:
            refused_at.append(process.under_way)
        assert process.under_way == len(seats) <= bound
    # Where the part of `flex` ends that is not kept for those below their share.
    assert min(refused_at, default=bound) >= int(max(1, int(bound * 0.7)) * 0.9)
    for seat in seats:
        seat.leave()
    assert process.under_way == 0
    for room in process._rooms.values():
        assert (room.under_way, room.whose, room.weight) == (0, {}, 0.0)
