"""How does an answer say how its caller stands against its limits?

OpenAI's `x-ratelimit-*` (its guide "Rate limits", section "Rate limits in headers"): the limit, what is left
of it, and when all of it will be. Of several limits the one speaks of which the least part is left. Requests
under way have no such headers there, and none here.
"""

from __future__ import annotations

from gateway.api.error_bodies import Headers
from gateway.identity.limits import Limits
from gateway.identity.window import Window

_SECOND_MS = 1_000
_MINUTE_S = 60


def rate_limit_headers(limits: Limits | None) -> Headers:
    """The headers for a caller with these limits, as it stands now; none for one without."""
    if limits is None:
        return []
    standing = limits.standing()
    headers: Headers = []
    for kind, window in ((b"requests", standing.requests), (b"tokens", standing.tokens)):
        if window is not None:
            headers += _headers(kind, window)
    return headers


def _headers(kind: bytes, window: Window) -> Headers:
    return [
        (b"x-ratelimit-limit-" + kind, b"%d" % window.limit),
        (b"x-ratelimit-remaining-" + kind, b"%d" % window.remaining),
        (b"x-ratelimit-reset-" + kind, duration(window.reset_ms).encode()),
    ]


def duration(milliseconds: int) -> str:
    """A span as OpenAI writes it: `20ms`, `1s`, `1.5s`, `6m0s`; `0s` for none."""
    if 0 < milliseconds < _SECOND_MS:
        return f"{milliseconds}ms"
    seconds, rest = divmod(milliseconds, _SECOND_MS)
    minutes, seconds = divmod(seconds, _MINUTE_S)
    fraction = f".{rest:03d}".rstrip("0") if rest else ""
    return f"{f'{minutes}m' if minutes else ''}{seconds}{fraction}s"
