"""What does a caller wish of the cache? The headers `cache-control` and `x-tollgate-cache-ttl`.

`no-cache`: ask a model, and keep what it says. `no-store`: ask a model, and keep nothing (RFC 9111, section
5.2.1). Other directives are about caches on the way and mean nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.errors import InvalidRequest
from gateway.inference import CacheWish

TTL_HEADER = "x-tollgate-cache-ttl"
CACHE_HEADERS = ("cache-control", TTL_HEADER)


def read_cache_wish(headers: Mapping[str, str]) -> CacheWish | None:
    """What these headers (lower-case names) say; None if nothing.

    Raises:
        InvalidRequest: the time to live is not a whole number of seconds.
    """
    control, ttl = headers.get("cache-control"), headers.get(TTL_HEADER)
    if control is None and ttl is None:
        return None
    directives = {part.strip().lower() for part in (control or "").split(",")}
    ttl_s: int | None = None
    if ttl is not None:
        text = ttl.strip()
        if not (text.isascii() and text.isdigit() and len(text) <= 9):  # noqa: PLR2004 - 30 years
            raise InvalidRequest(
                f"`{TTL_HEADER}` must be a whole number of seconds such as 600, not {ttl[:64]!r}.",
                param=TTL_HEADER,
            )
        ttl_s = int(text)
    is_stored = "no-store" not in directives
    return CacheWish(
        may_read=is_stored and "no-cache" not in directives,
        may_keep=is_stored and ttl_s != 0,
        ttl_s=ttl_s,
    )
