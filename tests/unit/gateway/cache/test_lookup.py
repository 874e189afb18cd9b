"""Which calls may be answered from the cache, and does a bad storage stay harmless?"""

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cache.key import answer_key, answer_scope
from gateway.cache.lookup import REST_S, AnswerCache, KeptAnswer, Recording, Slot, slot_for
from gateway.cache.storage import CacheBroken, CacheStorage, Failed, MemoryStorage
from gateway.inference import CacheRule, CacheWish, Call
from gateway.protocols.json_body import raw
from tests.support.clock import MovableClock
from tests.support.factories import make_call

RULE = CacheRule(is_enabled=True, temperature_max=0.0, ttl_s=600)
ANSWER = KeptAnswer(pool="plain", body=b'{"id":"1"}')


def call(temperature: float | None = 0.0, **changes: Any) -> Call:
    return make_call(facts={"temperature": temperature}, **changes)


def slot(one: Call, rule: CacheRule = RULE) -> Slot | None:
    return slot_for(one, rule, secret=b"s", scope="p@1")


def key(fields: dict[str, Any], **changes: Any) -> bytes:
    one = make_call(fields={name: raw(value) for name, value in fields.items()}, **changes)
    return answer_key(one, secret=b"s", scope="p@1")


# ------------------------------------------------------------------------------------------------ which
@pytest.mark.parametrize(
    ("temperature", "limit", "is_kept"),
    [(0.0, 0.0, True), (None, 0.0, False), (None, 2.0, False), (0.1, 0.0, False), (0.1, 0.2, True)],
)
def test_the_policys_temperature_decides(temperature: float | None, limit: float, *, is_kept: bool) -> None:
    rule = CacheRule(is_enabled=True, temperature_max=limit, ttl_s=600)
    assert (slot(call(temperature), rule) is not None) is is_kept


def test_a_policy_may_forbid_it() -> None:
    assert slot(call(), CacheRule(is_enabled=False, temperature_max=2, ttl_s=600)) is None


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (None, (True, True, 600)),
        (CacheWish(may_read=False, may_keep=True, ttl_s=None), (False, True, 600)),
        (CacheWish(may_read=True, may_keep=True, ttl_s=10), (True, True, 10)),
        (CacheWish(may_read=True, may_keep=True, ttl_s=10_000), (True, True, 600)),
        (CacheWish(may_read=True, may_keep=False, ttl_s=0), (True, False, 0)),
    ],
)
def test_a_callers_wish_only_narrows(wish: CacheWish | None, expected: tuple[bool, bool, int]) -> None:
    found = slot(call(cache_wish=wish))
    assert found is not None
    assert (found.may_read, found.may_keep, found.ttl_s) == expected


def test_no_store_leaves_the_cache_alone() -> None:
    assert slot(call(cache_wish=CacheWish(may_read=False, may_keep=False, ttl_s=None))) is None


def test_what_only_an_engine_may_understand_is_left_to_it() -> None:
    assert slot(call(fields={"seed": msgspec.Raw(b"1e999")})) is None


# ------------------------------------------------------------------------------------------------- keys
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(one=st.dictionaries(st.text(), json_values, max_size=4), other=st.dictionaries(st.text(), json_values))
def test_keys_are_equal_exactly_when_the_fields_are(one: dict[str, Any], other: dict[str, Any]) -> None:
    hidden = {"stream", "stream_options"}
    encode = msgspec.json.Encoder(order="sorted").encode
    same = encode({k: v for k, v in one.items() if k not in hidden}) == encode(
        {k: v for k, v in other.items() if k not in hidden}
    )
    assert (key(one) == key(other)) is same
    assert key(dict(reversed(one.items()))) == key(one)


def test_every_part_of_the_form_is_in_the_key() -> None:
    keys = {
        key({}),
        key({}, model_alias="other"),
        key({}, is_streaming=True),
        key({}, is_streaming=True, wants_usage=True),
        key({}, is_streaming=True, wants_continuous_usage=True),
        answer_key(make_call(), secret=b"t", scope="p@1"),
        answer_key(make_call(), secret=b"s", scope="p@2"),
    }
    assert len(keys) == 7
    assert {len(one) for one in keys} == {64}


def test_a_scope_is_made_of_policy_and_models_in_any_order() -> None:
    assert answer_scope("p@1", ["a", "b"]) == answer_scope("p@1", ["b", "a"])
    assert len({answer_scope("p@1", ["a"]), answer_scope("p@2", ["a"]), answer_scope("p@1", ["a", "b"])}) == 3


# ---------------------------------------------------------------------------------------------- memory
async def test_memory_forgets_what_is_too_old() -> None:
    clock = MovableClock()
    storage = MemoryStorage(clock, bytes_max=100)
    storage.keep(b"k", b"value", ttl_s=10)
    clock.move(9.9)
    assert await storage.get(b"k") == b"value"
    clock.move(0.1)
    assert await storage.get(b"k") is None
    assert storage.size_bytes == 0


async def test_memory_makes_room_by_forgetting_what_was_used_longest_ago() -> None:
    storage = MemoryStorage(MovableClock(), bytes_max=10)
    storage.keep(b"a", b"1234", ttl_s=10)
    storage.keep(b"b", b"1234", ttl_s=10)
    assert await storage.get(b"a")
    storage.keep(b"c", b"1234", ttl_s=10)
    assert [await storage.get(name) is not None for name in (b"a", b"b", b"c")] == [True, False, True]
    storage.keep(b"d", b"12345678901", ttl_s=10)
    assert await storage.get(b"d") is None
    assert storage.size_bytes == 8


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12)), max_size=40))
def test_memory_never_holds_more_than_it_may(puts: list[tuple[int, int]]) -> None:
    async def run() -> None:
        storage = MemoryStorage(MovableClock(), bytes_max=20)
        for name, size in puts:
            storage.keep(bytes([name]), b"x" * size, ttl_s=10)
            kept = [await storage.get(bytes([other])) or b"" for other in range(6)]
            assert storage.size_bytes == sum(len(value) for value in kept) <= 20

    asyncio.run(run())


# ----------------------------------------------------------------------------------------- bad storages
class Broken:
    """A storage that always fails."""

    def __init__(self) -> None:
        self.asked = 0
        self._taken: list[tuple[bytes, bytes, int]] = []

    async def get(self, key: bytes) -> bytes | None:
        self.asked += 1
        raise CacheBroken(f"no {key!r}")

    def keep(self, key: bytes, value: bytes, *, ttl_s: int) -> bool:
        self._taken.append((key, value, ttl_s))
        return True

    async def run(self, failed: Failed) -> None:
        for taken in self._taken:
            failed(CacheBroken(f"no {taken!r}"))

    async def flush(self) -> None:
        """Nothing waits."""


class Full(Broken):
    """A storage that takes nothing more."""

    def keep(self, key: bytes, value: bytes, *, ttl_s: int) -> bool:
        return not super().keep(key, value, ttl_s=ttl_s)


class Nonsense(Broken):
    """A storage that holds something else."""

    async def get(self, key: bytes) -> bytes | None:
        self.asked += 1
        return b"\xc1" + key


PLACE = Slot(b"k" * 64, may_read=True, may_keep=True, ttl_s=10)


def cache_of(storage: CacheStorage, clock: MovableClock, *, entry_bytes_max: int = 1000) -> AnswerCache:
    return AnswerCache(storage, clock, entry_bytes_max=entry_bytes_max)


@pytest.mark.parametrize("kind", [Broken, Nonsense])
async def test_a_bad_storage_is_a_miss_and_then_left_alone_for_a_moment(kind: type[Broken]) -> None:
    storage, clock = kind(), MovableClock()
    cache = cache_of(storage, clock)
    for _ in range(3):
        assert await cache.find(PLACE) is None
    assert (storage.asked, cache.failures) == (1, 1)
    clock.move(REST_S)
    assert await cache.find(PLACE) is None
    assert (storage.asked, cache.failures) == (2, 2)


async def test_answers_that_a_storage_could_not_keep_are_counted_and_rest_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = Broken()
    cache = cache_of(storage, MovableClock())
    cache.keep(PLACE, ANSWER)
    cache.keep(PLACE, ANSWER)
    await cache.run()
    assert (cache.failures, cache.not_kept) == (2, 0)
    assert await cache.find(PLACE) is None
    assert storage.asked == 0
    assert len(caplog.messages) == 1


async def test_what_is_kept_is_found_and_counted() -> None:
    clock = MovableClock()
    cache = cache_of(MemoryStorage(clock, bytes_max=1000), clock)
    assert await cache.find(PLACE) is None
    cache.keep(PLACE, ANSWER)
    assert await cache.find(PLACE) == ANSWER
    assert await cache.find(Slot(PLACE.key, may_read=False, may_keep=True, ttl_s=10)) is None
    assert (cache.hits, cache.misses, cache.failures, cache.not_kept) == (1, 1, 0, 0)


async def test_what_is_too_large_or_too_much_is_not_kept() -> None:
    cache = cache_of(Broken(), MovableClock(), entry_bytes_max=len(ANSWER.body))
    cache.keep(PLACE, ANSWER)
    assert cache.not_kept == 0
    cache.keep(PLACE, KeptAnswer(pool="plain", body=ANSWER.body + b"x"))
    assert cache.not_kept == 1
    full = cache_of(Full(), MovableClock())
    full.keep(PLACE, ANSWER)
    assert full.not_kept == 1


def test_a_recording_gives_up_at_its_bound() -> None:
    recording = Recording(4)
    recording.add(b"ab")
    recording.add(b"cd")
    assert recording.whole() == b"abcd"
    recording.add(b"e")
    recording.add(b"")
    assert recording.whole() is None


def test_only_the_cost_itself_is_replaced() -> None:
    body = rb'data: {"text":"\"cost_usd\":\"9.9\""}' + b'\n\ndata: {"usage":{"cost_usd":"0.000000007"}}\n\n'
    replayed = KeptAnswer(pool="plain", body=body).replayed()
    assert replayed == body.replace(b'"0.000000007"', b'"0.000000000"')
