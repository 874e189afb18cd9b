"""Is there an answer that can be given again?

Only what the policy allows is looked up and kept, by default requests at temperature 0. Whoever asks gets a
value, not an exception: a broken or slow storage is a miss, is counted, and is left alone for a moment. A
lookup may take a few milliseconds before the request goes on; keeping happens behind the answer's back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from gateway.cache.key import answer_key
from gateway.cache.storage import CacheBroken, CacheStorage
from gateway.clock import Clock
from gateway.inference import CacheRule, Call

REST_S = 1.0
"""How long a storage that failed is not asked."""

_COST = re.compile(rb'"cost_usd":"[0-9.]+"')
"""The usage event's cost. Generated text cannot contain this: its quotes are escaped inside JSON strings."""

_log = logging.getLogger(__name__)


class CacheStatus(StrEnum):
    """What the header `x-tollgate-cache` says."""

    MISS = "miss"
    """No answer was kept; this one is."""
    HIT = "hit"
    BYPASS = "bypass"
    """The cache was not asked."""


class KeptAnswer(msgspec.Struct, frozen=True):
    """An answer as it is kept."""

    pool: str
    """Who gave it."""
    body: bytes
    """As the client saw it: one JSON object, or a whole stream."""

    def replayed(self) -> bytes:
        """The body for another reader, whom it costs nothing."""
        return _COST.sub(b'"cost_usd":"0.000000000"', self.body)


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one call's answer in the cache."""

    key: bytes
    may_read: bool
    may_keep: bool
    ttl_s: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(KeptAnswer)


def slot_for(call: Call, rule: CacheRule, *, secret: bytes, scope: str) -> Slot | None:
    """Where the call's answer would be kept; None if the policy or the caller wants it left out.

    Args:
        call: what was asked.
        rule: what the policy allows.
        secret: the tenant's own, see `answer_key`.
        scope: see `answer_key`.
    """
    wish, temperature = call.cache_wish, call.facts.temperature
    # A request that states no temperature is sampled at the engine's default, which is not 0.
    if not rule.is_enabled or temperature is None or temperature > rule.temperature_max:
        return None
    may_read, may_keep, ttl_s = True, True, rule.ttl_s
    if wish is not None:
        may_read, may_keep = wish.may_read, wish.may_keep
        ttl_s = min(ttl_s, wish.ttl_s) if wish.ttl_s is not None else ttl_s
    if not (may_read or may_keep):
        return None
    try:
        key = answer_key(call, secret=secret, scope=scope)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):  # an engine may still understand it
        return None
    return Slot(key, may_read, may_keep, ttl_s)


class AnswerCache:
    """Finds and keeps answers."""

    def __init__(self, storage: CacheStorage, clock: Clock, *, entry_bytes_max: int) -> None:
        self._storage = storage
        self._clock = clock
        self.entry_bytes_max = entry_bytes_max
        self._rests_until_s = 0.0
        self.hits = 0
        self.misses = 0
        self.failures = 0
        """Lookups and writes that failed or took too long."""
        self.not_kept = 0
        """Answers that were too large, or came faster than the storage takes them."""

    async def find(self, slot: Slot) -> KeptAnswer | None:
        """The answer that is kept, if one is and it is there in time."""
        if not slot.may_read or self._clock.monotonic_s() < self._rests_until_s:
            return None
        try:
            value = await self._storage.get(slot.key)
            if value is None:
                self.misses += 1
                return None
            answer = _decoder.decode(value)
        except (CacheBroken, msgspec.DecodeError) as error:
            self._failed(error)
            return None
        self.hits += 1
        return answer

    def keep(self, slot: Slot, answer: KeptAnswer) -> None:
        """Keep it soon; the caller does not wait."""
        is_kept = len(answer.body) <= self.entry_bytes_max and self._storage.keep(
            slot.key, _encoder.encode(answer), ttl_s=slot.ttl_s
        )
        if not is_kept:
            self.not_kept += 1

    async def run(self) -> None:
        """Let the storage keep what it is given, until cancelled."""
        await self._storage.run(self._failed)

    async def flush(self, *, timeout_s: float) -> None:
        """Wait until everything is kept, for so long at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._storage.flush()

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        now_s = self._clock.monotonic_s()
        if now_s >= self._rests_until_s:  # a lost connection fails for many at once
            _log.warning("the cache is left alone for %g s: %r", REST_S, error)
        self._rests_until_s = now_s + REST_S


class Recording:
    """Collects a stream while it passes, up to a bound."""

    __slots__ = ("_bytes_max", "_pieces", "_size")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._pieces: list[bytes] | None = []
        self._size = 0

    def add(self, piece: bytes) -> None:
        """One more piece."""
        if self._pieces is None:
            return
        self._size += len(piece)
        if self._size > self._bytes_max:
            self._pieces = None
        else:
            self._pieces.append(piece)

    def whole(self) -> bytes | None:
        """The whole stream; None if it was too large."""
        return None if self._pieces is None else b"".join(self._pieces)
