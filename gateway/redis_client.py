"""How do we reach Redis: one server, a cluster, or the master that sentinels name?

`redis://` and `rediss://` (TLS) are one server, `redis+cluster://` and `rediss+cluster://` a cluster by any
of its nodes, `redis+sentinel://host:26379,other:26379/mymaster/0` the master of that name, database 0.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, RedisError

from gateway.errors import ConfigurationError

RedisClient = Redis | RedisCluster
REDIS_ERRORS = (RedisError, RedisClusterException, OSError)
"""What a call to Redis can fail with; a cluster without a node in reach is no RedisError (redis-py 8)."""
CONNECT_S = 2.0
ANSWER_S = 2.0
SENTINEL_PORT = 26379
_FORMS = "redis://host:6379/0, rediss://…, redis+cluster://host:6379, redis+sentinel://host:26379/master/0"


def redis_client(url: str) -> RedisClient:
    """A client that has not connected yet.

    Raises:
        ConfigurationError: not an address of Redis; the message holds no password.
    """
    options: dict[str, Any] = {"socket_connect_timeout": CONNECT_S, "socket_timeout": ANSWER_S}
    scheme, _, rest = url.partition("://")
    try:
        if scheme in {"redis", "rediss"}:
            return Redis.from_url(url, **options)
        if scheme in {"redis+cluster", "rediss+cluster"}:
            return RedisCluster.from_url(f"{scheme.removesuffix('+cluster')}://{rest}", **options)
        if scheme == "redis+sentinel":
            return _by_sentinel(rest, options)
    except (ValueError, RedisError) as error:
        raise ConfigurationError(
            f"TOLLGATE_REDIS_URL cannot be understood ({type(error).__name__}); it looks like {_FORMS}"
        ) from None
    raise ConfigurationError(f"TOLLGATE_REDIS_URL begins with {scheme[:32]!r}; it looks like {_FORMS}")


async def close_redis(client: RedisClient) -> None:
    """Close its connections, those to sentinels too."""
    if isinstance(client, RedisCluster):
        await client.aclose()
        return
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        for sentinel in pool.sentinel_manager.sentinels:
            await sentinel.aclose()
    await client.aclose(close_connection_pool=True)


async def require_redis(client: RedisClient) -> None:
    """Check that it answers.

    Raises:
        ConfigurationError: it does not; says why.
    """
    try:
        if isinstance(client, RedisCluster):
            await client.initialize()
        await client.ping()
    except REDIS_ERRORS as error:
        raise ConfigurationError(
            f"Redis does not answer ({error or type(error).__name__}): is it running, and is"
            " TOLLGATE_REDIS_URL its address?"
        ) from error


def is_one_server(client: RedisClient) -> bool:
    """Whether it asks one server, whose address does not change."""
    return isinstance(client, Redis) and not isinstance(client.connection_pool, SentinelConnectionPool)


@contextlib.asynccontextmanager
async def open_line(client: Redis, line: asyncio.Protocol) -> AsyncIterator[None]:
    """A connection of its own, opened as the client opens its own, whose bytes then go to `line`.

    redis-py connects, with TLS, password, user, database and name; `connection_made` comes after all that.
    From then on RESP2 is spoken, and redis-py reads nothing of it. Its connection is closed at the end.

    Raises:
        RedisError: it could not be opened; OSError and TimeoutError too.
    """
    pool = client.connection_pool
    # Notices of maintenance would come between the replies; who calls tries again by its own rule.
    options = {name: value for name, value in pool.connection_kwargs.items() if not name.startswith("maint_")}
    options |= {"protocol": 2, "retry": Retry(NoBackoff(), 0)}
    connection: Any = pool.connection_class(**options)
    try:
        await connection.connect()
        # redis-py 8.1 has no way to hand on an open connection; every test with Redis notices if it changes.
        writer = connection._writer  # noqa: SLF001
        if writer is None or writer.transport.is_closing():
            raise RedisConnectionError("closed at once")
        writer.transport.set_protocol(line)
        line.connection_made(writer.transport)
        yield
    finally:
        await connection.disconnect(nowait=True)


def _by_sentinel(rest: str, options: dict[str, Any]) -> Redis:
    parts = urlsplit(f"redis://{rest}")
    hosts = parts.netloc.rpartition("@")[2].split(",")
    sentinels = []
    for host in hosts:
        name, _, port = host.partition(":")
        sentinels.append((name, int(port or SENTINEL_PORT)))
    master, _, database = parts.path.strip("/").partition("/")
    if not master:
        raise ValueError("no master's name")
    credentials = parts.netloc.rpartition("@")[0]
    user, _, password = credentials.partition(":")
    sentinel: Any = Sentinel(sentinels, sentinel_kwargs=dict(options))  # type: ignore[no-untyped-call]
    master_client: Redis = sentinel.master_for(
        master,
        db=int(database or 0),
        username=unquote(user) or None,
        password=unquote(password) or None,
        **options,
    )
    return master_client
