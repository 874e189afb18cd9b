"""Where are answers kept? In this process, or in a Redis that several processes share.

Both are bounded: by bytes here, by Redis' own `maxmemory` there, by a time to live everywhere. What lies in
Redis is sealed (AES-GCM) under a key that only the same request of the same tenant can give again, so that
neither a dump of Redis nor its operator shows a prompt or an answer.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from gateway.cache.sealing import name_of, seal, unseal
from gateway.clock import Clock
from gateway.redis_client import REDIS_ERRORS, RedisClient

KEEPING_MAX = 1_000
"""Answers that may wait for a storage; more are not kept."""

Failed = Callable[[Exception], None]
"""Is told of each answer that a storage took and could not keep."""


class CacheBroken(Exception):
    """The storage could not be asked; the request goes to a model instead."""


class CacheStorage(Protocol):
    """Keeps bytes by key for a time."""

    async def get(self, key: bytes) -> bytes | None:
        """What is kept under the key; None if nothing is.

        Raises:
            CacheBroken: it cannot be asked, or does not answer in time.
        """

    def keep(self, key: bytes, value: bytes, *, ttl_s: int) -> bool:
        """Keep it soon, for so many seconds; false: there is no room to wait in. Never waits itself."""

    async def run(self, failed: Failed) -> None:
        """Do what `keep` was told, until cancelled."""

    async def flush(self) -> None:
        """Wait until everything that was taken is kept, or has failed."""


class MemoryStorage:
    """Answers in this process; the least recently used ones make room for new ones."""

    def __init__(self, clock: Clock, *, bytes_max: int) -> None:
        self._clock = clock
        self._bytes_max = bytes_max
        self._entries: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()
        self.size_bytes = 0

    async def get(self, key: bytes) -> bytes | None:
        """What is kept under the key and has not grown too old."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[0] <= self._clock.monotonic_s():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry[1]

    def keep(self, key: bytes, value: bytes, *, ttl_s: int) -> bool:
        """Keep it now; what is larger than the whole storage is not kept."""
        self._drop(key)
        if len(value) > self._bytes_max:
            return False
        self._entries[key] = (self._clock.monotonic_s() + ttl_s, value)
        self.size_bytes += len(value)
        while self.size_bytes > self._bytes_max:
            self._drop(next(iter(self._entries)))
        return True

    async def run(self, failed: Failed) -> None:
        """Nothing is left to do."""

    async def flush(self) -> None:
        """Everything is kept."""

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.size_bytes -= len(entry[1])


class RedisStorage:
    """Answers in Redis, sealed, by redis-py: each look-up takes a connection of its own from a pool.

    For clusters and for masters that sentinels name; `PipelinedStorage` is for one server.
    """

    def __init__(self, client: RedisClient, *, within_s: float) -> None:
        """Not connected.

        Args:
            client: who asks.
            within_s: the longest that a look-up takes.
        """
        self._client = client
        self._within_s = within_s
        self._keeping: asyncio.Queue[tuple[bytes, bytes, int]] = asyncio.Queue(KEEPING_MAX)

    async def get(self, key: bytes) -> bytes | None:
        """What Redis has under the key; an entry that does not open is none."""
        try:
            async with asyncio.timeout(self._within_s):
                sealed = await self._client.get(name_of(key))
        except (*REDIS_ERRORS, TimeoutError) as error:
            raise CacheBroken(str(error) or repr(error)) from error
        # The client could decode to text, but is not told to.
        return unseal(key, sealed) if isinstance(sealed, bytes) else None

    def keep(self, key: bytes, value: bytes, *, ttl_s: int) -> bool:
        """Queue it."""
        if self._keeping.full():
            return False
        self._keeping.put_nowait((key, value, ttl_s))
        return True

    async def run(self, failed: Failed) -> None:
        """Seal what is queued and hand it to Redis, one after the other."""
        while True:
            key, value, ttl_s = await self._keeping.get()
            try:
                await self._client.set(name_of(key), seal(key, value), ex=ttl_s)
            except REDIS_ERRORS as error:
                failed(CacheBroken(str(error) or repr(error)))
            finally:
                self._keeping.task_done()

    async def flush(self) -> None:
        """Wait for the queue."""
        await self._keeping.join()
