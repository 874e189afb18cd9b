"""May this call be let through now, or has its tenant, project or key called too fast?

Decided in memory, at once (2.4): what other processes counted arrives behind the request's back
(`limit_sharing.py`). All limits of a caller hold together: a request is counted against each of them or, when
one has no room, against none. `window.py` says how a minute is counted and how far that is from exact.

Tokens are counted twice: what a request can come to when it comes (its input by size and the longest output
that it may have, as OpenAI counts), and what it used when it ends, in the minute in which it came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType

from gateway.clock import Clock
from gateway.errors import GatewayError, InvalidRequest, RateLimited
from gateway.identity.window import MINUTE_MS, Window

REQUESTS, TOKENS = 0, 1
_PARTS = 1_000_000
"""Of a limit, to compare how much of each remains."""


class Scope(StrEnum):
    """What a limit is set on."""

    TENANT = "tenant"
    PROJECT = "project"
    KEY = "key"


@dataclass(frozen=True, slots=True)
class Limit:
    """How fast one tenant, project or key may call; None: as fast as it likes."""

    scope: Scope
    scope_id: str
    """Of a key: the first one's of its line of rotations, which all of them share."""
    name: str = ""
    """What people call it."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    meter_name: str = field(init=False)
    """Under which it is counted."""

    def __post_init__(self) -> None:
        """Put the name together once: a request looks it up."""
        object.__setattr__(self, "meter_name", f"{self.scope}:{self.scope_id}")


class Meter:
    """What one tenant, project or key did in this minute and the last one, and what it has under way."""

    __slots__ = (
        "before",
        "is_changed",
        "minute",
        "now",
        "others_before",
        "others_now",
        "others_under_way",
        "under_way",
    )

    def __init__(self, minute: int) -> None:
        self.minute = minute
        """Since 1970; the counts are of this one and the one before."""
        self.now = [0, 0]
        """Requests and tokens, through this process."""
        self.before = [0, 0]
        self.under_way = 0
        self.others_now = [0, 0]
        """The same through all other processes, as far as they have been heard of."""
        self.others_before = [0, 0]
        self.others_under_way = 0
        self.is_changed = False
        """There is something that other processes have not been told."""

    def roll(self, minute: int) -> None:
        """It is that minute now; a clock that is set back by a minute stands still instead."""
        passed = minute - self.minute
        if passed in {0, -1}:
            return
        self.before = self.now if passed == 1 else [0, 0]
        self.others_before = self.others_now if passed == 1 else [0, 0]
        self.now, self.others_now = [0, 0], [0, 0]
        self.minute = minute

    def window(self, limit: int, kind: int, elapsed_ms: int) -> Window:
        """Requests or tokens of all processes against a limit."""
        return Window(
            limit,
            max(0, self.now[kind] + self.others_now[kind]),
            max(0, self.before[kind] + self.others_before[kind]),
            elapsed_ms,
        )

    def has_room(self, limit: Limit, tokens: int, elapsed_ms: int) -> bool:
        """Whether one more request with so many tokens may come: `Window.has_room` without making windows."""
        most = limit.concurrent_requests
        if most is not None and self.under_way + self.others_under_way >= most:
            return False
        most = limit.requests_per_minute
        if most is not None and self.weighed(REQUESTS, elapsed_ms) > (most - 1) * MINUTE_MS:
            return False
        most = limit.tokens_per_minute
        return most is None or self.weighed(TOKENS, elapsed_ms) <= (most - tokens) * MINUTE_MS

    def weighed(self, kind: int, elapsed_ms: int) -> int:
        """What the window counts as used, times `MINUTE_MS`."""
        before = self.before[kind] + self.others_before[kind]
        return (self.now[kind] + self.others_now[kind]) * MINUTE_MS + before * (MINUTE_MS - elapsed_ms)

    def begin(self, tokens: int) -> None:
        """One more request, with so many tokens."""
        self.now[REQUESTS] += 1
        self.now[TOKENS] += tokens
        self.under_way += 1
        self.is_changed = True

    def end(self, minute: int, surplus: int) -> None:
        """A request that came in `minute` is over and used so many tokens less than were counted."""
        self.under_way -= 1
        self.is_changed = True
        if minute == self.minute:
            self.now[TOKENS] -= surplus
        elif minute == self.minute - 1:
            self.before[TOKENS] -= surplus
        # What came earlier weighs nothing any more.

    @property
    def is_used_here(self) -> bool:
        """Requests of this process count in it."""
        return bool(self.under_way or any(self.now) or any(self.before))

    @property
    def is_idle(self) -> bool:
        """It says nothing that a new one would not say."""
        others = self.others_under_way or any(self.others_now) or any(self.others_before)
        return not (others or self.is_used_here)


class Permit:
    """One request that was let through; ends once, however the request ends.

    As a context it ends when its block fails: what was cut off keeps what it could come to, because nobody
    knows how far the engine came; what failed or was refused used no tokens. Who answers ends it with what
    was used.
    """

    __slots__ = ("_is_open", "_meters", "_minute", "_tokens")

    def __init__(self, meters: Sequence[Meter], minute: int, tokens: int) -> None:
        self._meters = meters
        self._minute = minute
        self._tokens = tokens
        self._is_open = True

    def end(self, tokens: int | None) -> None:
        """The request is over and used so many tokens; None: nobody knows, it stays as counted."""
        if not self._is_open:
            return
        self._is_open = False
        surplus = 0 if tokens is None else self._tokens - tokens
        for meter in self._meters:
            meter.end(self._minute, surplus)

    def __enter__(self) -> None:
        """It is open already."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it if the block failed."""
        if kind is not None:
            self.end(None if issubclass(kind, asyncio.CancelledError) else 0)


UNLIMITED = Permit((), 0, 0)
"""Of callers without limits: it counts nothing, so that all of them may share it."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a caller stands: of all its limits the one with the least room left; None: there is none."""

    requests: Window | None
    tokens: Window | None


class Limiter:
    """All meters of this process. Those of whoever has not called for two minutes are dropped."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.swept_minute = 0
        self.has_limits = True
        """Somebody's calls are limited, or that is not known yet: what the others count is of interest."""
        self.meters: dict[str, Meter] = {}
        """By `Limit.meter_name`."""
        self.refused = 0
        """Requests that had to come back later."""

    def admit(self, limits: Sequence[Limit], tokens: int) -> Permit:
        """Count a request against all its limits, or against none.

        Args:
            limits: the caller's, at least one.
            tokens: what the request can come to.

        Raises:
            RateLimited: one of them has no room now; says which, and when it will have.
            InvalidRequest: it asks for more tokens than one of them allows in a whole minute.
        """
        minute, elapsed_ms = divmod(self._clock.epoch_ms(), MINUTE_MS)
        if minute != self.swept_minute:
            self.sweep(minute)
        meters = [self._meter(limit, minute) for limit in limits]
        for limit, meter in zip(limits, meters, strict=True):
            if not meter.has_room(limit, tokens, elapsed_ms):
                self.refused += 1
                raise _refusal(limits, meters, tokens, elapsed_ms=elapsed_ms)
        for meter in meters:
            meter.begin(tokens)
        return Permit(meters, minute, tokens)

    def standing(self, limits: Sequence[Limit]) -> Standing:
        """How a caller with these limits stands now."""
        minute, elapsed_ms = divmod(self._clock.epoch_ms(), MINUTE_MS)
        requests = [
            (limit.requests_per_minute, self._meter(limit, minute))
            for limit in limits
            if limit.requests_per_minute is not None
        ]
        tokens = [
            (limit.tokens_per_minute, self._meter(limit, minute))
            for limit in limits
            if limit.tokens_per_minute is not None
        ]
        return Standing(_tightest(requests, REQUESTS, elapsed_ms), _tightest(tokens, TOKENS, elapsed_ms))

    def _meter(self, limit: Limit, minute: int) -> Meter:
        meter = self.meters.get(limit.meter_name)
        if meter is None:
            meter = self.meters[limit.meter_name] = Meter(minute)
        elif meter.minute != minute:
            meter.roll(minute)
        return meter

    def sweep(self, minute: int) -> None:
        """Forget those of whom nothing counts any more; it is that minute now."""
        self.swept_minute = minute
        for name, meter in list(self.meters.items()):
            meter.roll(minute)
            if meter.is_idle:
                del self.meters[name]


@dataclass(frozen=True, slots=True)
class Limits:
    """All limits of one caller, at least one, and where they are counted."""

    limiter: Limiter
    each: tuple[Limit, ...]

    def admit(self, tokens: int) -> Permit:
        """Count a request against all of them, or against none; raises as `Limiter.admit` does."""
        return self.limiter.admit(self.each, tokens)

    def standing(self) -> Standing:
        """How the caller stands now."""
        return self.limiter.standing(self.each)


def _tightest(counted: Sequence[tuple[int, Meter]], kind: int, elapsed_ms: int) -> Window | None:
    """Of several limits the one of which the greatest part is used."""
    if not counted:
        return None
    most, meter = counted[0]
    if len(counted) > 1:
        most, meter = max(counted, key=lambda one: one[1].weighed(kind, elapsed_ms) * _PARTS // one[0])
    return meter.window(most, kind, elapsed_ms)


def _refusal(
    limits: Sequence[Limit], meters: Sequence[Meter], tokens: int, *, elapsed_ms: int
) -> GatewayError:
    """Of all that stands in a request's way, what does so for longest."""
    reasons: list[tuple[int, str]] = []
    for limit, meter in zip(limits, meters, strict=True):
        who = f"The {'API key' if limit.scope is Scope.KEY else limit.scope} {limit.name!r}"
        if limit.tokens_per_minute is not None and tokens > limit.tokens_per_minute:
            return InvalidRequest(
                f"{who} may use {limit.tokens_per_minute:,} tokens a minute, and this request alone can come"
                f" to {tokens:,}: ask for fewer with `max_tokens`, or send a shorter prompt.",
                param="max_tokens",
            )
        reasons += _reasons(who, limit, meter, tokens=tokens, elapsed_ms=elapsed_ms)
    wait_ms, reason = max(reasons)
    return RateLimited(reason, retry_after_s=max(1, -(-wait_ms // 1000)))


def _reasons(who: str, limit: Limit, meter: Meter, *, tokens: int, elapsed_ms: int) -> list[tuple[int, str]]:
    """How long, in milliseconds, and why."""
    reasons: list[tuple[int, str]] = []
    most = limit.concurrent_requests
    if most is not None and meter.under_way + meter.others_under_way >= most:
        reasons.append(
            (0, f"{who} may have {most:,} requests under way at once, and has. Wait for one to end.")
        )
    most = limit.requests_per_minute
    if most is not None:
        window = meter.window(most, REQUESTS, elapsed_ms)
        if not window.has_room(1):
            wait_ms = window.wait_ms(1)
            reasons.append(
                (wait_ms, f"{who} may make {most:,} requests a minute, and has made them. {_again(wait_ms)}")
            )
    most = limit.tokens_per_minute
    if most is not None:
        window = meter.window(most, TOKENS, elapsed_ms)
        if not window.has_room(tokens):
            wait_ms = window.wait_ms(tokens)
            said = (
                f"{who} may use {most:,} tokens a minute; {window.remaining:,} are left, and this request"
                f" can come to {tokens:,}. {_again(wait_ms)}"
            )
            reasons.append((wait_ms, said))
    return reasons


def _again(wait_ms: int) -> str:
    return f"There is room for it in {max(1, -(-wait_ms // 1000))} s."
