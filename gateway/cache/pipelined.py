"""How does one Redis server keep answers for many requests at once, over one connection?

Look-ups and answers to be kept share a connection (`redis_line`), which is opened when the program starts
and again when it was lost, at most once a second. redis-py opens it, so that TLS, passwords, users, database
numbers and sockets are understood as everywhere else. Large answers go by redis-py's own connections: on
the shared one every look-up behind them would wait.
"""

from __future__ import annotations

import asyncio
from functools import partial

from redis.asyncio import Redis

from gateway.cache.redis_line import RedisLine
from gateway.cache.resp import set_command
from gateway.cache.sealing import name_of, seal, unseal
from gateway.cache.storage import CacheBroken, CacheStorage, Failed, RedisStorage
from gateway.redis_client import REDIS_ERRORS, RedisClient, is_one_server, open_line

LARGE_BYTES = 64_000
"""Longer answers do not go by the shared connection."""
REST_S = 1.0
"""From one connection to the next, at least."""
FRAME_BYTES = 200
"""About what a SET has beside its value."""


class PipelinedStorage:
    """Answers in one Redis server, sealed."""

    def __init__(self, client: Redis, *, within_s: float) -> None:
        """Not connected; `run` connects.

        Args:
            client: knows how to reach the server.
            within_s: the longest that a look-up takes.
        """
        self._client = client
        self._within_s = within_s
        self._line: RedisLine | None = None
        self._large = RedisStorage(client, within_s=within_s)

    async def get(self, key: bytes) -> bytes | None:
        """What Redis has under the key; an entry that does not open is none."""
        if self._line is None:
            raise CacheBroken("no connection to Redis")
        sealed = await self._line.ask(name_of(key))
        return None if sealed is None else unseal(key, sealed)

    def keep(self, key: bytes, value: bytes, *, ttl_s: int) -> bool:
        """Seal it and send it, soon."""
        if self._line is None:
            return False
        if len(value) > LARGE_BYTES:
            return self._large.keep(key, value, ttl_s=ttl_s)
        return self._line.write(partial(_command, key, value, ttl_s), len(value) + FRAME_BYTES)

    async def run(self, failed: Failed) -> None:
        """Hold the connection, and open it again when it is lost."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._large.run(failed))
            loop = asyncio.get_running_loop()
            while True:
                began_s = loop.time()
                await self._hold(RedisLine(loop, failed, within_s=self._within_s))
                await asyncio.sleep(began_s + REST_S - loop.time())

    async def flush(self) -> None:
        """Wait until everything is kept or has failed."""
        if self._line is not None:
            await self._line.drain()
        await self._large.flush()

    async def _hold(self, line: RedisLine) -> None:
        """One connection, from its opening to its end."""
        self._line = line
        error = CacheBroken("the cache was stopped")
        try:
            async with open_line(self._client, line):
                await asyncio.shield(line.ended)  # who stops waiting must not end it: `end` tells why
        except (*REDIS_ERRORS, TimeoutError) as caught:
            error = CacheBroken(str(caught) or repr(caught))
        finally:
            self._line = None
            line.end(error)


def _command(key: bytes, value: bytes, ttl_s: int) -> bytes:
    return set_command(name_of(key), seal(key, value), ttl_s)


def redis_storage(client: RedisClient, *, within_s: float) -> CacheStorage:
    """The storage for this kind of Redis; a look-up takes `within_s` at most."""
    if isinstance(client, Redis) and is_one_server(client):
        return PipelinedStorage(client, within_s=within_s)
    return RedisStorage(client, within_s=within_s)
