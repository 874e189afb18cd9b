"""Are requests counted against all their limits or none, and does each of them end once?"""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import InvalidRequest, RateLimited
from gateway.identity.auth import KeyRing
from gateway.identity.limits import UNLIMITED, Limit, Limiter, Meter, Scope
from tests.support.clock import MovableClock
from tests.support.factories import KEY, make_key_record

TENANT = Limit(Scope.TENANT, "ten_1", "acme", requests_per_minute=3)
PROJECT = Limit(Scope.PROJECT, "prj_1", "search", tokens_per_minute=100)
OF_KEY = Limit(Scope.KEY, "key1", "ci", concurrent_requests=2)
ALL = (TENANT, PROJECT, OF_KEY)


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()  # at the beginning of a minute


@pytest.fixture
def limiter(clock: MovableClock) -> Limiter:
    return Limiter(clock)


def meter(limiter: Limiter, limit: Limit) -> Meter:
    return limiter.meters[limit.meter_name]


def state(limiter: Limiter) -> list[tuple[list[int], int]]:
    return [(list(each.now), each.under_way) for each in limiter.meters.values()]


def refusal(limiter: Limiter, *limits: Limit, tokens: int = 1) -> tuple[int | None, str]:
    before = state(limiter)
    with pytest.raises(RateLimited) as caught:
        limiter.admit(limits, tokens)
    assert state(limiter) == before, "a refused request counts nowhere"
    return caught.value.retry_after_s, caught.value.caller_detail


def test_one_that_refuses_keeps_the_others_from_counting(limiter: Limiter, clock: MovableClock) -> None:
    permits = [limiter.admit(ALL, 40) for _ in range(2)]
    said = "The API key 'ci' may have 2 requests under way at once, and has. Wait for one to end."
    assert refusal(limiter, TENANT, OF_KEY) == (1, said)
    permits.pop().end(40)
    # Of several reasons the one that holds for longest is told: 80 of 100 tokens are counted.
    said = (
        "The project 'search' may use 100 tokens a minute; 20 are left, and this request can come to 40."
        " There is room for it in 75 s."
    )
    assert refusal(limiter, *ALL, tokens=40) == (75, said)
    limiter.admit(ALL, 20).end(20)
    wait_s, said = refusal(limiter, *ALL, tokens=1)
    assert (wait_s, "may make 3 requests a minute, and has made them" in said) == (80, True)
    assert limiter.refused == 3
    clock.move(79.999)
    with pytest.raises(RateLimited):
        limiter.admit([TENANT], 1)
    clock.move(0.001)
    limiter.admit([TENANT], 1)


def test_more_than_a_whole_minute_allows_is_no_use_to_repeat(limiter: Limiter) -> None:
    limiter.admit([TENANT], 10**6).end(0)
    with pytest.raises(
        InvalidRequest, match=r"may use 100 tokens a minute, and this .* come to 101: ask"
    ) as caught:
        limiter.admit(ALL, 101)
    assert caught.value.param == "max_tokens"
    assert meter(limiter, TENANT).now == [1, 0]


@pytest.mark.parametrize(("used", "counted"), [(7, 7), (0, 0), (60, 60), (None, 50)])
def test_a_request_ends_once_and_counts_what_it_used(
    limiter: Limiter, used: int | None, counted: int
) -> None:
    permit = limiter.admit(ALL, 50)
    assert (meter(limiter, PROJECT).now, meter(limiter, OF_KEY).under_way) == ([1, 50], 1)
    permit.end(used)
    permit.end(3)
    for limit in ALL:
        assert (meter(limiter, limit).now, meter(limiter, limit).under_way) == ([1, counted], 0)


@pytest.mark.parametrize(("error", "counted"), [(ValueError, 0), (asyncio.CancelledError, 50)])
def test_what_failed_used_nothing_and_of_what_was_cut_nobody_knows(
    limiter: Limiter, error: type[BaseException], counted: int
) -> None:
    with pytest.raises(error), limiter.admit([PROJECT], 50):
        raise error
    assert (meter(limiter, PROJECT).now, meter(limiter, PROJECT).under_way) == ([1, counted], 0)
    with limiter.admit([PROJECT], 30):
        pass
    assert meter(limiter, PROJECT).under_way == 1, "who answers says what it used"


def test_tokens_are_corrected_in_the_minute_in_which_they_came(limiter: Limiter, clock: MovableClock) -> None:
    first, second = limiter.admit([PROJECT], 50), limiter.admit([PROJECT], 50)
    clock.move(60)
    limiter.admit([TENANT, PROJECT], 0)
    first.end(20)
    assert (meter(limiter, PROJECT).before, meter(limiter, PROJECT).now) == ([2, 70], [1, 0])
    clock.move(60)
    limiter.admit([PROJECT], 5)
    second.end(20)
    assert (meter(limiter, PROJECT).before, meter(limiter, PROJECT).now) == ([1, 0], [1, 5])


def test_who_has_not_called_for_two_minutes_is_forgotten(limiter: Limiter, clock: MovableClock) -> None:
    open_one = limiter.admit([OF_KEY], 1)
    limiter.admit([TENANT], 1).end(1)
    for minutes, names in [(1, 3), (1, 2), (60, 2)]:
        clock.move(60 * minutes)
        limiter.admit([PROJECT], 1).end(1)
        assert len(limiter.meters) == names
    open_one.end(1)
    clock.move(120)
    limiter.admit([PROJECT], 1)
    assert list(limiter.meters) == ["project:prj_1"]


def test_a_clock_that_is_set_back_loses_no_count_and_one_that_jumps_starts_anew(
    limiter: Limiter, clock: MovableClock
) -> None:
    for _ in range(3):
        limiter.admit([TENANT], 1).end(1)
    clock.move(-1)
    refusal(limiter, TENANT)
    clock.move(-3600)
    limiter.admit([TENANT], 1)


def test_callers_without_limits_share_a_permit_that_counts_nothing() -> None:
    for _ in range(2):
        with UNLIMITED:
            UNLIMITED.end(5)


def test_the_limit_of_a_key_follows_its_rotations(clock: MovableClock) -> None:
    names = [f"tg-key{number}-" + str(number) * 32 for number in range(3)]
    records = [
        make_key_record(
            name,
            id=f"key{number}",
            rotated_from=f"key{number - 1}" if number else None,
            tags=(("team", "a"),) if number else (),
            project_tags=(("feature", "search"), ("team", "b")),
        )
        for number, name in enumerate(names)
    ]
    other = make_key_record(KEY, project_id="prj_2", tenant_id="ten_2")
    keys = KeyRing(b"r" * 64, clock, stale_max_s=900)
    keys.replace([*records, other], [Limit(Scope.KEY, "key0", concurrent_requests=1), PROJECT])
    callers = [keys.authenticate({"x-api-key": name}) for name in names]
    assert [caller.key_lineage for caller in callers] == [
        ("key0",),
        ("key1", "key0"),
        ("key2", "key1", "key0"),
    ]
    assert callers[0].fixed_tags == (("feature", "search"), ("team", "b"))
    assert callers[2].fixed_tags == (("feature", "search"), ("team", "a"))
    assert keys.authenticate({"x-api-key": KEY}).limits is None
    limits = [caller.limits for caller in callers if caller.limits is not None]
    assert [[limit.scope for limit in each.each] for each in limits] == [[Scope.PROJECT, Scope.KEY]] * 3
    permit = limits[0].admit(1)
    with pytest.raises(RateLimited, match="The API key 'laptop' may have 1 requests under way"):
        limits[2].admit(1)
    permit.end(1)
    limits[2].admit(1)


def test_what_others_count_is_of_interest_once_anybody_is_limited() -> None:
    keys = KeyRing(b"r" * 64, MovableClock(), stale_max_s=900)
    assert keys.limiter.has_limits, "before the first look nobody knows"
    keys.replace([make_key_record()])
    assert not keys.limiter.has_limits
    keys.replace([make_key_record()], [PROJECT])
    assert keys.limiter.has_limits
