"""How do several processes hold one limit together? Each tells Redis what it counted, and reads the others.

One hash for each tenant, project or key with a limit; in it one field for each process: its counts of this
minute and the last one and its requests under way. A field says all, not what was added: telling it twice, or
again to a Redis that forgot everything, changes nothing. A hash is one key, so that a cluster needs no tags,
and it goes away by itself 150 s after the last word.

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
import logging
import secrets
from collections.abc import Sequence
from typing import NamedTuple

from redis.exceptions import RedisError

from gateway.clock import Clock
from gateway.identity.limits import REQUESTS, TOKENS, Limiter, Meter
from gateway.redis_client import RedisClient

PREFIX = "tollgate:limit:"
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
        self._said_under_way: set[str] = set()
        """Of which the others believe that this process has requests under way."""
        self._beat = 0
        self._beat_at_s = 0.0
        self.is_alone = False
        """Redis did not answer the last time."""
        self.failures = 0

    async def run(self) -> None:
        """Exchange at intervals until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            started_s = loop.time()
            await self.exchange()
            pause_s = REST_S if self.is_alone else EXCHANGE_S
            await asyncio.sleep(max(pause_s, (loop.time() - started_s) * (SHARE - 1)))

    async def exchange(self) -> None:
        """Tell the others what changed, hear of all that is in use here; a Redis that is away is survived."""
        now_s = self._clock.monotonic_s()
        is_beat = now_s - self._beat_at_s >= BEAT_S
        minute = self._limiter.minute()
        meters = self._limiter.meters
        for meter in meters.values():
            meter.roll(minute)
        keys = [key for key, meter in meters.items() if not meter.is_idle or meter.is_changed]
        keys += [key for key in self._said_under_way if key not in meters]
        try:
            if self.is_alone and not keys:
                await self._client.ping()
            for first in range(0, len(keys), AT_ONCE):
                await self._exchange(keys[first : first + AT_ONCE], is_beat=is_beat)
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(error)
            return
        finally:
            self._forget()
        if is_beat:
            self._beat_at_s = now_s
        if self.is_alone:
            self.is_alone = False
            _log.warning("limits are shared again")

    async def close(self) -> None:
        """A last word: nothing is under way here any more."""
        await self.exchange()

    async def _exchange(self, keys: Sequence[str], *, is_beat: bool) -> None:
        meters = self._limiter.meters
        self._beat += 1
        told: list[str] = []
        pipeline = self._client.pipeline(transaction=False)
        for key in keys:
            name, meter = PREFIX + key, meters.get(key)
            if meter is None or meter.is_changed or (is_beat and meter.under_way):
                told.append(key)
                pipeline.hset(name, self.process, _text(meter, self._beat))
                pipeline.expire(name, FORGOTTEN_S)
                if meter is not None:
                    meter.is_changed = False
            for process in self._silent(key):
                pipeline.hdel(name, process)
            pipeline.hgetall(name)
        try:
            async with asyncio.timeout(ANSWER_S):
                answers = await pipeline.execute()
        except BaseException:
            for key in told:
                if key in meters:
                    meters[
                        key
                    ].is_changed = True  # perhaps it arrived, perhaps not: said again it is the same
            raise
        for key in told:
            under_way = key in meters and meters[key].under_way
            (self._said_under_way.add if under_way else self._said_under_way.discard)(key)
        found = [answer for answer in answers if isinstance(answer, dict)]
        for key, fields in zip(keys, found, strict=True):
            self._hear(key, fields)

    def _hear(self, key: str, fields: dict[bytes, bytes]) -> None:
        """Take over what all processes said of one limit."""
        meter = self._limiter.meters.get(key)
        if meter is None:
            return
        now_s = self._clock.monotonic_s()
        heard = self._heard.setdefault(key, {})
        there = set()
        for field, text in fields.items():
            process = field.decode()
            there.add(process)
            known = heard.get(process)
            if process != self.process and (known is None or known.text != text):
                heard[process] = _Heard(text, now_s)
        for process in heard.keys() - there:
            del heard[process]
        if self.process not in there and not meter.is_idle:
            meter.is_changed = True  # Redis forgot it
        meter.roll(self._limiter.minute())
        _take_over(meter, heard, now_s)

    def _silent(self, key: str) -> list[str]:
        now_s = self._clock.monotonic_s()
        heard = self._heard.get(key, {})
        return [process for process, said in heard.items() if now_s - said.at_s > FORGOTTEN_S]

    def _forget(self) -> None:
        for key in self._heard.keys() - self._limiter.meters.keys():
            del self._heard[key]

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        now_s = self._clock.monotonic_s()
        for key, heard in self._heard.items():
            meter = self._limiter.meters.get(key)
            if meter is not None:
                _take_over(meter, heard, now_s)  # nobody's requests stay under way for ever
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
