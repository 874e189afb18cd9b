"""Do several processes hold one limit together, on a real Redis in each of its forms?

Each process here is a limiter with its exchange; only that they share this one's event loop is not real.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from gateway.errors import RateLimited
from gateway.identity.limit_sharing import BEAT_S, DEAD_S, EXCHANGE_S, FORGOTTEN_S, PREFIX, LimitSharing
from gateway.identity.limits import Limit, Limiter, Permit, Scope
from gateway.redis_client import RedisClient, close_redis, redis_client
from tests.integration.gateway.rig import eventually
from tests.support.clock import MovableClock
from tests.support.servers import free_port, redis_server

LIMIT = Limit(Scope.PROJECT, "prj_1", "search", requests_per_minute=10, tokens_per_minute=1000)
BUSY = Limit(Scope.KEY, "key1", "ci", concurrent_requests=3)


class Process:
    """One of several gateways."""

    def __init__(self, client: RedisClient, clock: MovableClock) -> None:
        self.limiter = Limiter(clock)
        self.sharing = LimitSharing(self.limiter, client, clock)

    def admit(self, limit: Limit = LIMIT, tokens: int = 10) -> Permit | None:
        try:
            return self.limiter.admit([limit], tokens)
        except RateLimited:
            return None

    def passed(self, times: int) -> int:
        """How many of so many requests pass."""
        permits = [self.admit() for _ in range(times)]
        for permit in permits:
            if permit is not None:
                permit.end(None)
        return sum(permit is not None for permit in permits)


@pytest.fixture
async def client(redis: str) -> AsyncIterator[RedisClient]:
    async with connected(redis) as client:
        await client.flushdb()
        yield client


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[RedisClient]:
    client = redis_client(url)
    try:
        yield client
    finally:
        await close_redis(client)


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


def some(client: RedisClient, clock: MovableClock, number: int = 3) -> list[Process]:
    return [Process(client, clock) for _ in range(number)]


async def exchange(*processes: Process) -> None:
    """Everybody tells, then everybody hears."""
    for process in (*processes, *processes):
        await process.sharing.exchange()


async def test_clients_slower_than_the_exchange_get_the_limit_exactly(
    client: RedisClient, clock: MovableClock
) -> None:
    processes = some(client, clock)
    passed = 0
    for number in range(30):
        passed += processes[number % 3].passed(1)
        await exchange(*processes)
    assert passed == 10
    clock.move(60 + 30)  # half of what the last minute counted is over
    for number in range(30):
        passed += processes[number % 3].passed(1)
        await exchange(*processes)
    assert passed == 15


async def test_within_two_exchanges_each_other_process_can_let_through_the_limit_and_no_more(
    client: RedisClient, clock: MovableClock
) -> None:
    processes = some(client, clock)
    assert [process.passed(20) for process in processes] == [10, 10, 10], "nobody has heard of anybody"
    await exchange(*processes)
    assert [process.passed(20) for process in processes] == [0, 0, 0]
    clock.move(60 + 59)  # three times the limit was counted: that is not forgiven with the minute
    await exchange(*processes)
    assert sum(process.passed(20) for process in processes[:1]) == 9


async def test_what_is_under_way_anywhere_counts_and_ends(client: RedisClient, clock: MovableClock) -> None:
    one, two, three = processes = some(client, clock)
    permits = [one.admit(BUSY), one.admit(BUSY), two.admit(BUSY)]
    await exchange(*processes)
    assert [process.admit(BUSY) for process in processes] == [None, None, None]
    first = permits.pop()
    assert first is not None
    first.end(0)
    await exchange(*processes)
    assert three.admit(BUSY) is not None
    assert three.admit(BUSY) is None
    for _ in range(4):  # under way for longer than anything is counted
        clock.move(60)
        await exchange(*processes)
    assert two.admit(BUSY) is None
    for permit in permits:
        assert permit is not None
        permit.end(0)
    await exchange(*processes)
    assert two.admit(BUSY) is not None


async def test_what_a_dead_process_had_under_way_vanishes_and_what_it_counted_stays(
    client: RedisClient, clock: MovableClock
) -> None:
    alive, dead = some(client, clock, 2)
    both = Limit(Scope.KEY, "key1", requests_per_minute=5, concurrent_requests=2)
    assert dead.admit(both)
    assert dead.admit(both)
    await exchange(alive, dead)
    assert alive.admit(both) is None
    await alive.sharing.exchange()
    assert alive.admit(both) is None
    for _ in range(2):  # as long as it speaks it counts, though nothing changes
        clock.move(DEAD_S - BEAT_S)
        await exchange(alive, dead)
        assert alive.admit(both) is None
    clock.move(DEAD_S)
    await alive.sharing.exchange()
    passed = [alive.admit(both) for _ in range(2)]
    assert all(passed)
    for permit in passed:
        assert permit is not None
        permit.end(0)
    assert alive.admit(both) is not None
    assert alive.admit(both) is None, "five in this minute, two of them the dead one's"
    for _ in range(2):
        clock.move(FORGOTTEN_S)
        alive.passed(1)
        alive.admit(both)
        await alive.sharing.exchange()
    assert await client.hkeys(f"{PREFIX}{both.meter_name}") == [alive.sharing.process.encode()]


async def test_tokens_are_shared_as_they_are_corrected(client: RedisClient, clock: MovableClock) -> None:
    one, two = some(client, clock, 2)
    permit = one.admit(tokens=900)
    await exchange(one, two)
    assert two.admit(tokens=101) is None, "heard of by those who never used it"
    assert two.admit(tokens=100) is not None
    assert permit is not None
    permit.end(100)
    await exchange(one, two)
    assert two.admit(tokens=800) is not None
    assert two.admit(tokens=1) is None


async def test_without_redis_each_goes_on_alone_and_catches_up(
    clock: MovableClock, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.ExitStack() as stack:
        port = free_port()
        async with connected(stack.enter_context(redis_server(port=port))) as client:
            one, two = processes = some(client, clock, 2)
            assert (one.passed(2), two.passed(1)) == (2, 1)
            await exchange(*processes)
            stack.close()  # Redis ends
            for _ in range(2):
                await exchange(*processes)
            assert [process.sharing.is_alone for process in processes] == [True, True]
            said = [record for record in caplog.records if "limits are not shared" in record.getMessage()]
            assert len(said) == 2, "one warning each"
            assert [process.passed(20) for process in processes] == [7, 7], "with what was heard before"
            stack.enter_context(redis_server(port=port))  # it has forgotten everything
            await exchange(*processes)
            assert [process.sharing.is_alone for process in processes] == [False, False]
            clock.move(60 + 30)
            await exchange(*processes)
            assert one.passed(20) == 1, "17 of the last minute, half of it over: everything was told again"


async def test_a_clock_that_is_a_little_ahead_loses_nothing(client: RedisClient) -> None:
    early, late = MovableClock(), MovableClock()
    late.move(-1)
    ahead, behind = Process(client, early), Process(client, late)
    assert (ahead.passed(4), behind.passed(2)) == (4, 2)
    await exchange(ahead, behind)
    assert behind.passed(20) == 4
    await exchange(ahead, behind)
    await client.hset(PREFIX + LIMIT.meter_name, "another version", "what is this?")
    await exchange(ahead, behind)
    early.move(30)  # of the other's minute, which is over here, half is over
    assert ahead.passed(20) == 3


@pytest.mark.parametrize("form", ["cluster", "sentinel"])
async def test_it_works_with_each_form_of_redis(
    form: str, clock: MovableClock, request: pytest.FixtureRequest
) -> None:
    async with connected(request.getfixturevalue(form)) as client:
        one, two = some(client, clock, 2)
        limits = [Limit(Scope.KEY, f"key{number}", requests_per_minute=2) for number in range(20)]
        assert all(one.admit(limit) and one.admit(limit) for limit in limits)
        await exchange(one, two)
        assert not any(two.admit(limit) for limit in limits)
        assert (one.sharing.failures, two.sharing.failures) == (0, 0)


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster", "redis+sentinel"])
async def test_a_redis_that_never_answers_holds_nobody_up(scheme: str, clock: MovableClock) -> None:
    path = "/master" if scheme.endswith("sentinel") else ""
    async with connected(f"{scheme}://127.0.0.1:{free_port()}{path}") as client:
        (alone,) = some(client, clock, 1)
        await exchange(alone)
        assert alone.passed(20) == 10
        await exchange(alone)
        assert (alone.sharing.is_alone, alone.sharing.failures) == (True, 4)


async def test_it_runs_by_itself_and_leaves_a_last_word(client: RedisClient) -> None:
    clock = MovableClock()
    one, two = some(client, clock, 2)
    assert two.admit(BUSY) is not None
    permits = [one.admit(BUSY), one.admit(BUSY)]
    running = [asyncio.create_task(each.sharing.run()) for each in (one, two)]  # noqa: TID251 - a test
    await eventually(lambda: two.limiter.meters[BUSY.meter_name].others_under_way == 2)
    for permit in permits:
        assert permit is not None
        permit.end(0)
    one.sharing.stop()
    await running[0]
    two.sharing.stop()
    await running[1]
    assert two.limiter.meters[BUSY.meter_name].others_under_way == 0
    assert 0 < await client.ttl(PREFIX + BUSY.meter_name) <= FORGOTTEN_S


async def test_redis_is_not_asked_while_nobody_is_limited(clock: MovableClock) -> None:
    async with connected(f"redis://127.0.0.1:{free_port()}/0") as client:  # where nobody answers
        (one,) = some(client, clock, 1)
        one.limiter.has_limits = False
        running = asyncio.create_task(one.sharing.run())  # noqa: TID251 - a test
        await asyncio.sleep(5 * EXCHANGE_S)
        assert one.sharing.failures == 0
        one.limiter.has_limits = True
        await eventually(lambda: one.sharing.failures)
        one.sharing.stop()
        await running
