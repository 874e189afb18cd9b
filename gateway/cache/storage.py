"""Where are answers kept? In this process, or in a Redis that several processes share.

Both are bounded: by bytes here, by Redis' own `maxmemory` there, by a time to live everywhere. What lies in
Redis is sealed (AES-GCM) under a key that only the same request of the same tenant can give again, so that
neither a dump of Redis nor its operator shows a prompt or an answer.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.clock import Clock
from gateway.redis_client import REDIS_ERRORS, RedisClient

PREFIX = b"tollgate:answer:"
NONCE_BYTES = 12
HALF = 32


class CacheBroken(Exception):
    """The storage could not be asked; the request goes to a model instead."""


class CacheStorage(Protocol):
    """Keeps bytes by key for a time."""

    async def get(self, key: bytes) -> bytes | None:
        """What is kept under the key; None if nothing is.

        Raises:
            CacheBroken: it cannot be asked.
        """

    async def put(self, key: bytes, value: bytes, *, ttl_s: int) -> None:
        """Keep it for so many seconds.

        Raises:
            CacheBroken: it cannot be kept.
        """


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

    async def put(self, key: bytes, value: bytes, *, ttl_s: int) -> None:
        """Keep it; what is larger than the whole storage is not kept."""
        self._drop(key)
        if len(value) > self._bytes_max:
            return
        self._entries[key] = (self._clock.monotonic_s() + ttl_s, value)
        self.size_bytes += len(value)
        while self.size_bytes > self._bytes_max:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.size_bytes -= len(entry[1])


class RedisStorage:
    """Answers in Redis, sealed."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def get(self, key: bytes) -> bytes | None:
        """What Redis has under the key; an entry that does not open is none."""
        try:
            sealed = await self._client.get(PREFIX + key[:HALF].hex().encode())
        except REDIS_ERRORS as error:
            raise CacheBroken(str(error) or repr(error)) from error
        if not isinstance(sealed, bytes):  # the client could decode to text, but is not told to
            return None
        try:
            return AESGCM(key[HALF:]).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None)
        except (InvalidTag, ValueError):
            return None

    async def put(self, key: bytes, value: bytes, *, ttl_s: int) -> None:
        """Seal it and hand it to Redis."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = nonce + AESGCM(key[HALF:]).encrypt(nonce, value, None)
        try:
            await self._client.set(PREFIX + key[:HALF].hex().encode(), sealed, ex=ttl_s)
        except REDIS_ERRORS as error:
            raise CacheBroken(str(error) or repr(error)) from error
