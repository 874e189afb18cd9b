"""How do several processes hold one limit together? Each tells Redis what it counted, and reads the others.

One hash for each tenant, project or key with a limit; in it one field for each process: its counts of this
minute and the last one and its requests under way. A field says all, not what was added: telling it twice, or
again to a Redis that forgot everything, changes nothing. A sorted set names what was told of lately, so that
each process hears of every limit in use, also of those that nobody has used through it, and reads no others.
Each command has one key, so that a cluster needs no tags; what is not told of goes away after 150 s.

**How much too much can pass.** A request that one process lets through is known to the others after at most
two exchanges, its own and theirs. Within that time each other process can let through what it believes to be
left: what the callers of one limit send to the others within two exchanges (0.2 s), and never more than the
limit by each of them. Callers who wait that long between requests get the limit exactly.

While Redis is away each process goes on with its own counts and what it last heard, which ages by itself:
every process lets through the limit alone, at most. It says so, and catches up when Redis is back. A process
that died has its requests under way forgotten after 3 s without a word, by its readers' clocks, so that
clocks need not agree; what it counted stays counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Sequence
from typing import NamedTuple

from gateway.clock import Clock
from gateway.identity.limits import REQUESTS, TOKENS, Limiter, Meter
from gateway.identity.window import MINUTE_MS
from gateway.redis_client import REDIS_ERRORS, RedisClient

PREFIX = "tollgate:limit:"
INDEX = "tollgate:limits"
"""Names of meters, by when somebody told of them last (epoch ms, by the teller's clock)."""
EXCHANGE_S = 0.1
BEAT_S = 1.0
"""A process with requests under way says so at least this often."""
DEAD_S = 3.0
"""Without a word for so long a process has nothing under way."""
FORGOTTEN_S = 150
"""Older counts weigh nothing, whatever the minute was."""
ANSWER_S = 1.0
REST_S = 1.0
"""Between two looks whether Redis is back."""
SKEW_MS = 2_000
"""So far apart may the clocks of two processes be; beyond that news takes up to `BEAT_S`."""
SAME_MS = 250
"""What is this fresh is read again: two processes may have told of it within one millisecond."""
SAME_PARTS = 1_000
AT_ONCE = 256
"""Limits in one round trip: packing more would hold up the streams of this process."""
SHARE = 10
"""At most one part in so many of the time goes into exchanges: a slow one is followed by a longer pause."""

_log = logging.getLogger(__name__)


class Report(NamedTuple):
    """What one process says of one tenant, project or key."""

    minute: int
    requests: int
    tokens: int
    requests_before: int
    tokens_before: int
    under_way: int
    beat: int
    """Differs from word to word."""


NOTHING = Report(0, 0, 0, 0, 0, 0, 0)


class _Heard:
    """The last word of another process."""

    __slots__ = ("at_s", "report", "text")

    def __init__(self, text: bytes, at_s: float) -> None:
        self.text = text
        self.at_s = at_s
        self.report = _read(text)


class LimitSharing:
    """Keeps the meters of this process and those of the others in step."""

    def __init__(self, limiter: Limiter, client: RedisClient, clock: Clock) -> None:
        self._limiter = limiter
        self._client = client
        self._clock = clock
        self.process = secrets.token_hex(8)
        """Names this process among the others."""
        self._heard: dict[str, dict[str, _Heard]] = {}
        self._told: set[str] = set()
        """Meters that were told of and have not been told of as gone."""
        self._told_at: dict[str, float] = {}
        """What the last look at the index found."""
        self._looked_at_ms: int | None = None
        self._beat = secrets.randbelow(SAME_PARTS)
        self._beat_at_s = 0.0
        self.is_alone = False
        """Redis did not answer the last time."""
        self.failures = 0
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Exchange at intervals until stopped, and once more then: nothing is under way here any more."""
        loop = asyncio.get_running_loop()
        while not self._stop.is_set():
            started_s = loop.time()
            if self._limiter.has_limits or self._limiter.meters or self._told:
                await self.exchange()
            pause_s = REST_S if self.is_alone else EXCHANGE_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    self._stop.wait(), max(pause_s, (loop.time() - started_s) * (SHARE - 1))
                )
        await self.exchange()

    def stop(self) -> None:
        """End `run` after the exchange under way and a last one; each takes seconds at most."""
        self._stop.set()

    async def exchange(self) -> None:
        """Tell the others what changed and hear what they told; a Redis that is away is survived."""
        now_s, now_ms = self._clock.monotonic_s(), self._clock.epoch_ms()
        is_beat = now_s - self._beat_at_s >= BEAT_S
        if now_ms // MINUTE_MS != self._limiter.swept_minute:
            self._limiter.sweep(now_ms // MINUTE_MS)
        try:
            news = await self._tell(self._to_tell(is_beat=is_beat), now_ms)
            meters = self._limiter.meters
            if is_beat:
                news |= {name for name, meter in meters.items() if meter.is_used_here}
            names = sorted(news)
            for first in range(0, len(names), AT_ONCE):
                await self._hear(names[first : first + AT_ONCE])
        except (*REDIS_ERRORS, TimeoutError) as error:
            self._failed(error)
            return
        finally:
            self._age(now_s)
        self._looked_at_ms = now_ms
        if is_beat:
            self._beat_at_s = now_s
        if self.is_alone:
            self.is_alone = False
            _log.warning("limits are shared again")

    def _to_tell(self, *, is_beat: bool) -> list[str]:
        meters = self._limiter.meters
        names = [name for name, meter in meters.items() if meter.is_changed or (is_beat and meter.under_way)]
        return names + [name for name in self._told if name not in meters]

    async def _tell(self, names: Sequence[str], now_ms: int) -> set[str]:
        """Tell of these meters; which ones anybody told of since the last look."""
        self._beat += 1
        for first in range(0, len(names), AT_ONCE):
            await self._tell_some(names[first : first + AT_ONCE], now_ms)
        since_ms = now_ms - FORGOTTEN_S * 1000 if self._looked_at_ms is None else self._looked_at_ms
        pipeline = self._client.pipeline(transaction=False)
        pipeline.zremrangebyscore(INDEX, "-inf", now_ms - FORGOTTEN_S * 1000)
        pipeline.zrangebyscore(INDEX, since_ms - SKEW_MS, "+inf", withscores=True)
        async with asyncio.timeout(ANSWER_S):
            _, found = await pipeline.execute()
        told_at = {name.decode(): float(at_ms) for name, at_ms in found}
        news = {
            name
            for name, at_ms in told_at.items()
            if at_ms != self._told_at.get(name) or at_ms >= now_ms - SAME_MS
        }
        self._told_at = told_at
        return news

    async def _tell_some(self, names: Sequence[str], now_ms: int) -> None:
        meters = self._limiter.meters
        pipeline = self._client.pipeline(transaction=False)
        for name in names:
            meter = meters.get(name)
            pipeline.hset(PREFIX + name, self.process, _text(meter, self._beat))
            pipeline.expire(PREFIX + name, FORGOTTEN_S)
            if meter is not None:
                meter.is_changed = False
            (self._told.discard if meter is None else self._told.add)(name)
        # The fraction tells apart what was told within one millisecond, nearly always.
        told_at = now_ms + (self._beat % SAME_PARTS) / SAME_PARTS
        pipeline.zadd(INDEX, dict.fromkeys(names, told_at))
        pipeline.expire(INDEX, FORGOTTEN_S)
        try:
            async with asyncio.timeout(ANSWER_S):
                await pipeline.execute()
        except BaseException:
            # Perhaps it arrived, perhaps not: said again it is the same.
            for name in names:
                if name in meters:
                    meters[name].is_changed = True
                else:
                    self._told.add(name)
            raise

    async def _hear(self, names: Sequence[str]) -> None:
        """Read what all processes said of these meters."""
        pipeline = self._client.pipeline(transaction=False)
        for name in names:
            for process in self._silent(name):
                pipeline.hdel(PREFIX + name, process)
            pipeline.hgetall(PREFIX + name)
        async with asyncio.timeout(ANSWER_S):
            answers = await pipeline.execute()
        found = [answer for answer in answers if isinstance(answer, dict)]
        now_s, minute = self._clock.monotonic_s(), self._clock.epoch_ms() // MINUTE_MS
        for name, fields in zip(names, found, strict=True):
            meter = self._limiter.meters.setdefault(name, Meter(minute))
            heard = self._heard.setdefault(name, {})
            there = {field.decode(): text for field, text in fields.items()}
            if there.pop(self.process, None) is None and meter.is_used_here:
                meter.is_changed = True  # Redis forgot it
            for process, text in there.items():
                known = heard.get(process)
                if known is None or known.text != text:
                    heard[process] = _Heard(text, now_s)
            for process in heard.keys() - there.keys():
                del heard[process]
            meter.roll(minute)
            _take_over(meter, heard, now_s)

    def _age(self, now_s: float) -> None:
        """Let go of what dead processes had under way, and of what is not counted any more."""
        meters = self._limiter.meters
        for name, heard in list(self._heard.items()):
            meter = meters.get(name)
            if meter is None:
                del self._heard[name]
            elif meter.others_under_way:
                _take_over(meter, heard, now_s)

    def _silent(self, name: str) -> list[str]:
        now_s = self._clock.monotonic_s()
        heard = self._heard.get(name, {})
        return [process for process, said in heard.items() if now_s - said.at_s > FORGOTTEN_S]

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        if not self.is_alone:
            self.is_alone = True
            _log.warning(
                "limits are not shared with other processes (each holds them alone until Redis is back): %r",
                error,
            )


def _take_over(meter: Meter, heard: dict[str, _Heard], now_s: float) -> None:
    now, before, under_way = [0, 0], [0, 0], 0
    for said in heard.values():
        report = said.report
        ahead = report.minute - meter.minute
        if ahead == 0:
            _add(now, report.requests, report.tokens)
            _add(before, report.requests_before, report.tokens_before)
        elif ahead == -1:
            _add(before, report.requests, report.tokens)
        elif ahead == 1:  # its clock is a little ahead
            _add(now, report.requests + report.requests_before, report.tokens + report.tokens_before)
        if now_s - said.at_s < DEAD_S:
            under_way += report.under_way
    meter.others_now, meter.others_before, meter.others_under_way = now, before, under_way


def _add(counts: list[int], requests: int, tokens: int) -> None:
    counts[REQUESTS] += requests
    counts[TOKENS] += tokens


def _text(meter: Meter | None, beat: int) -> str:
    if meter is None:
        return " ".join(map(str, NOTHING._replace(beat=beat)))
    return " ".join(map(str, (meter.minute, *meter.now, *meter.before, meter.under_way, beat)))


def _read(text: bytes) -> Report:
    """A field's content; what another version of the program may have written there is nothing."""
    parts = text.split()
    try:
        return Report(*map(int, parts))
    except (TypeError, ValueError):
        return NOTHING
