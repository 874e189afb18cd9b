"""What did a pool's hour cost, and who used it?

Pure. A bill is replica time times price, in integers: `units` are milliseconds times nano-USD per hour, and
the bill of a pool-hour is their sum divided by 3,600,000, rounded once, half up. It is shared by largest
remainder, so that its lines add up to it to the nano-USD.

*Engine time of an attempt*: while an attempt is in a replica's engine (from when it left the engine's queue
until it ended), the replica's time is divided among the attempts that are in it at that moment, in proportion
to their pace: their tokens, weighted by what the pool's profile says that reading and writing one takes,
per millisecond that they were in. So attempts that run together share, no time is counted twice, and what
is left when none is in the engine is idle. An attempt that spans hours has its part in each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

from backends.replica_time import Phase
from backends.supply_spec import Count, PriceKind
from gateway.money import round_half_up

METHOD = "engine-time/1"
"""Named on every bill: another way to share gets another name."""
MS_PER_HOUR = 3_600_000
_FINE = 64
"""Bits after the point of what is shared: far below a nano-USD."""
_US_PER_MS = 1000


class LineKind(StrEnum):
    """What a part of a bill was for."""

    REQUEST = "request"
    """Answers that a tenant pays for."""
    FAILED = "failed"
    """Attempts at tenants' requests that the platform pays for."""
    WARM_UP = "warm_up"
    """Replicas that start, and the requests that warm them up."""
    HEARTBEAT = "heartbeat"
    """Tokens to see that an engine lives."""
    EVALUATION = "evaluation"
    IDLE = "idle"
    """Up, and nobody used it."""
    ASLEEP = "asleep"
    BROKEN = "broken"
    """Hung, crashed, between two starts."""
    UNUSED = "unused"
    """Reserved, and no replica ran on it."""


OF_PHASE: Mapping[Phase, LineKind] = {
    Phase.STARTING: LineKind.WARM_UP,
    Phase.ASLEEP: LineKind.ASLEEP,
    Phase.BROKEN: LineKind.BROKEN,
}
"""Where time goes that no attempt can use; what is off costs nothing unless it is reserved."""


class Key(NamedTuple):
    """What a line is about; nobody's lines have empty ids."""

    line: LineKind
    tenant_id: str = ""
    project_id: str = ""
    key_id: str = ""
    model_alias: str = ""
    task: str = ""


@dataclass(frozen=True, slots=True)
class Price:
    """What one replica costs from an instant on."""

    since_ms: int
    kind: PriceKind
    usd_nanos_per_hour: int


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """What tokens weigh against each other in an engine; integers, any unit."""

    input: int = 1000
    cached_input: int = 10
    output: int = 2500
    source: str = "OpenCost's fallback: an output token takes as long as 2.5 of input"

    def text(self) -> str:
        """For the books; `parse` reads it."""
        return f"{self.input}:{self.cached_input}:{self.output} {self.source}"[:256]

    @classmethod
    def parse(cls, text: str) -> TokenWeights:
        """What `text` wrote."""
        numbers, _, source = text.partition(" ")
        read, cached, written = map(int, numbers.split(":"))
        return cls(read, cached, written, source)

    def units(self, input_tokens: int, cached_tokens: int, output_tokens: int) -> int:
        """Of an attempt."""
        return input_tokens * self.input + cached_tokens * self.cached_input + output_tokens * self.output


@dataclass(frozen=True, slots=True)
class Terms:
    """How a pool is paid for, and how its time is shared."""

    pool: str
    prices: tuple[Price, ...]
    """By instant; the first one holds since ever."""
    count: Count
    time_source: str
    """driver, observed or declared."""
    replicas: tuple[str, ...]
    """Those that the pool's file declares."""
    gpus_per_replica: int
    weights: TokenWeights = TokenWeights()
    since_ms: int | None = None
    """Stated by the file: what is paid for unseen is paid from then on."""

    @property
    def is_declared(self) -> bool:
        """It is paid for whether anything was seen or not."""
        return self.count is Count.DECLARED or any(price.kind is PriceKind.RESERVED for price in self.prices)

    def declared_from_ms(self, declared_at_ms: int) -> int:
        """Since when it is paid for unseen, if its file was first read at an instant, epoch ms."""
        return declared_at_ms if self.since_ms is None else self.since_ms


@dataclass(frozen=True, slots=True)
class Span:
    """A replica was in a phase between two instants, half-open, epoch ms."""

    replica: str
    phase: Phase
    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class Work:
    """An attempt in a replica's engine."""

    attempt_id: str
    replica: str
    start_ms: int
    end_ms: int
    """Half-open; an attempt that took no measurable time is in for a millisecond."""
    units: int
    """Its weighted tokens."""
    key: Key

    @property
    def pace(self) -> int:
        """Weighted tokens per 1,000 s in the engine; at least 1: who is in it takes part."""
        return max(1, self.units * 1_000_000 // max(1, self.end_ms - self.start_ms))


@dataclass(frozen=True, slots=True)
class Line:
    """A part of a bill."""

    usd_nanos: int
    engine_us: int = 0
    attempts: int = 0

    def __add__(self, other: Line) -> Line:
        """Both together."""
        return Line(
            self.usd_nanos + other.usd_nanos,
            self.engine_us + other.engine_us,
            self.attempts + other.attempts,
        )

    def __sub__(self, other: Line) -> Line:
        """The difference."""
        return Line(
            self.usd_nanos - other.usd_nanos,
            self.engine_us - other.engine_us,
            self.attempts - other.attempts,
        )


NOTHING = Line(0)


@dataclass(slots=True)
class ReplicaMs:
    """Replica time of a pool-hour, milliseconds of one replica."""

    starting_ms: int = 0
    serving_ms: int = 0
    busy_ms: int = 0
    """Part of serving: an attempt was in the engine."""
    asleep_ms: int = 0
    broken_ms: int = 0
    unused_ms: int = 0

    def __add__(self, other: ReplicaMs) -> ReplicaMs:
        """Both together."""
        return ReplicaMs(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    def __sub__(self, other: ReplicaMs) -> ReplicaMs:
        """The difference."""
        return ReplicaMs(*(getattr(self, name) - getattr(other, name) for name in self.__slots__))

    @property
    def billed_ms(self) -> int:
        """All that is paid for."""
        return self.starting_ms + self.serving_ms + self.asleep_ms + self.broken_ms + self.unused_ms


@dataclass(slots=True)
class PoolHour:
    """A pool's bill for an hour, and its lines."""

    pool: str
    hour_start_ms: int
    bill_usd_nanos: int
    time: ReplicaMs
    lines: dict[Key, Line]
    prices: tuple[Price, ...]
    """Those that were in force in it."""
    attempts: int


@dataclass(slots=True)
class _Tally:
    """What has been added up so far, in units shifted by `_FINE`."""

    units: int = 0
    """Of the whole bill, not shifted."""
    fine: defaultdict[Key, int] = field(default_factory=lambda: defaultdict(int))
    """Of nobody's lines."""
    shares: dict[str, tuple[Work, int, int]] = field(default_factory=dict)
    """By attempt: its part of the units, and of busy time in microseconds, both shifted."""
    time: ReplicaMs = field(default_factory=ReplicaMs)


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Whole parts of a total in proportion to weights, which add up to it: largest remainder.

    Of equal remainders the earlier one's part is larger. A negative total is shared as its positive one.

    Raises:
        ValueError: a weight below zero, or a total with nothing to share it by.
    """
    if total < 0:
        return [-part for part in apportion(-total, weights)]
    whole = sum(weights)
    if min(weights, default=0) < 0 or (whole == 0 and total != 0):
        raise ValueError(f"{total} cannot be shared by {len(weights)} weights that add up to {whole}")
    if whole == 0:
        return [0] * len(weights)
    parts, remainders = [], []
    for index, weight in enumerate(weights):
        part, remainder = divmod(total * weight, whole)
        parts.append(part)
        remainders.append((-remainder, index))
    for _, index in sorted(remainders)[: total - sum(parts)]:
        parts[index] += 1
    return parts


def pool_hour(
    terms: Terms,
    hour_start_ms: int,
    spans: Sequence[Span],
    *,
    works: Sequence[Work] = (),
    until_ms: int | None = None,
) -> PoolHour:
    """A pool's hour: what it costs, and who used it.

    Args:
        terms: how it is paid for.
        hour_start_ms: the hour.
        spans: replica time around it; what lies outside is cut off.
        works: attempts around it, likewise.
        until_ms: an hour that is not over is billed until then; None: it is over.
    """
    end_ms = hour_start_ms + MS_PER_HOUR
    if until_ms is not None:
        end_ms = max(hour_start_ms, min(end_ms, until_ms))
    if terms.count is Count.DECLARED:
        spans = [Span(name, Phase.SERVING, hour_start_ms, end_ms) for name in terms.replicas]
    tally = _Tally()
    by_replica: defaultdict[str, list[Span]] = defaultdict(list)
    for span in _cut(spans, hour_start_ms, end_ms):
        by_replica[span.replica].append(span)
    works_of: defaultdict[str, list[Work]] = defaultdict(list)
    for work in sorted(works, key=lambda each: each.attempt_id):
        works_of[work.replica].append(work)
    for replica in sorted(by_replica):
        _replica(tally, terms, by_replica[replica], works=works_of[replica], bounds=(hour_start_ms, end_ms))
    _unused(
        tally, terms, [span for one in by_replica.values() for span in one], bounds=(hour_start_ms, end_ms)
    )
    bill = round_half_up(tally.units, MS_PER_HOUR)
    return PoolHour(
        pool=terms.pool,
        hour_start_ms=hour_start_ms,
        bill_usd_nanos=bill,
        time=tally.time,
        lines=_lines(tally, bill),
        prices=_prices_in(terms.prices, hour_start_ms, end_ms),
        attempts=len(tally.shares),
    )


def _cut(spans: Sequence[Span], start_ms: int, end_ms: int) -> list[Span]:
    cut = (
        Span(span.replica, span.phase, max(start_ms, span.start_ms), min(end_ms, span.end_ms))
        for span in spans
        if span.phase is not Phase.OFF
    )
    return [span for span in cut if span.start_ms < span.end_ms]


def _prices_in(prices: Sequence[Price], start_ms: int, end_ms: int) -> tuple[Price, ...]:
    """Those that hold at some instant between."""
    ends = [later.since_ms for later in prices[1:]]
    found = [
        price
        for price, over_ms in zip(prices, [*ends, None], strict=True)
        if (over_ms is None or over_ms > start_ms) and (price.since_ms < max(end_ms, start_ms + 1))
    ]
    return tuple(found) or tuple(prices[:1])


def _price_at(prices: Sequence[Price], at_ms: int) -> Price:
    return next((price for price in reversed(prices) if price.since_ms <= at_ms), prices[0])


def _replica(
    tally: _Tally, terms: Terms, spans: Sequence[Span], *, works: Sequence[Work], bounds: tuple[int, int]
) -> None:
    """Walk along a replica's time, from one change to the next.

    `level` is what one unit of pace has had so far: an attempt's share is its pace times how much the level
    rose while it was in.
    """
    start_ms, end_ms = bounds
    present: list[tuple[Work, int, int]] = []
    changes: list[tuple[int, int, int]] = []
    """Instant, 0 leaves or 1 enters, index of the attempt."""
    for work in works:
        came_ms, left_ms = max(start_ms, work.start_ms), min(end_ms, max(work.end_ms, work.start_ms + 1))
        if came_ms < left_ms:
            changes += [(came_ms, 1, len(present)), (left_ms, 0, len(present))]
            present.append((work, 0, 0))
    changes.sort()
    instants = {at for at, _, _ in changes} | {price.since_ms for price in terms.prices}
    instants |= {at for span in spans for at in (span.start_ms, span.end_ms)}
    level = busy_level = pace = position = 0
    for from_ms, to_ms in pairwise(sorted(at for at in instants if start_ms <= at <= end_ms)):
        while position < len(changes) and changes[position][0] <= from_ms:
            _, enters, index = changes[position]
            position += 1
            work, before, busy_before = present[index]
            pace += work.pace if enters else -work.pace
            sign = -1 if enters else 1
            present[index] = (work, before + sign * level, busy_before + sign * busy_level)
        units, serving_ms = _spend(tally, terms, spans, from_ms=from_ms, to_ms=to_ms)
        if serving_ms and pace:
            level += (units << _FINE) // pace
            busy_level += ((serving_ms * _US_PER_MS) << _FINE) // pace
            tally.time.busy_ms += serving_ms
        else:
            tally.fine[Key(LineKind.IDLE)] += units << _FINE
    for _, enters, index in changes[position:]:
        if not enters:  # whoever leaves at the end of the last piece
            work, before, busy_before = present[index]
            present[index] = (work, before + level, busy_before + busy_level)
    for work, risen, busy_risen in present:
        if risen > 0:
            tally.shares[work.attempt_id] = (work, risen * work.pace, busy_risen * work.pace)


def _spend(
    tally: _Tally, terms: Terms, spans: Sequence[Span], *, from_ms: int, to_ms: int
) -> tuple[int, int]:
    """Pay for a piece of a replica's time in which nothing changes: units and ms that attempts may share.

    Two machines may have a replica of the same name: both are paid for, and they share as one.
    """
    length_ms = to_ms - from_ms
    rate = _price_at(terms.prices, from_ms).usd_nanos_per_hour
    serving_ms = 0
    for span in spans:
        if not span.start_ms <= from_ms < span.end_ms:
            continue
        tally.units += length_ms * rate
        name = f"{span.phase.value}_ms"
        setattr(tally.time, name, getattr(tally.time, name) + length_ms)
        if span.phase is Phase.SERVING:
            serving_ms += length_ms
        else:
            tally.fine[Key(OF_PHASE[span.phase])] += (length_ms * rate) << _FINE
    return serving_ms * rate, serving_ms


def _unused(tally: _Tally, terms: Terms, spans: Sequence[Span], *, bounds: tuple[int, int]) -> None:
    """Pay for reserved replicas that do not run."""
    start_ms, end_ms = bounds
    instants = {start_ms, end_ms} | {price.since_ms for price in terms.prices}
    instants |= {at for span in spans for at in (span.start_ms, span.end_ms)}
    for from_ms, to_ms in pairwise(sorted(at for at in instants if start_ms <= at <= end_ms)):
        price = _price_at(terms.prices, from_ms)
        if price.kind is not PriceKind.RESERVED:
            continue
        running = sum(span.start_ms <= from_ms < span.end_ms for span in spans)
        missing_ms = max(0, len(terms.replicas) - running) * (to_ms - from_ms)
        tally.units += missing_ms * price.usd_nanos_per_hour
        tally.time.unused_ms += missing_ms
        tally.fine[Key(LineKind.UNUSED)] += (missing_ms * price.usd_nanos_per_hour) << _FINE


def _lines(tally: _Tally, bill: int) -> dict[Key, Line]:
    """The bill's parts: shared among attempts and nobody's lines, then added up by key."""
    shares = [tally.shares[attempt_id] for attempt_id in sorted(tally.shares)]
    nobodys = sorted(key for key, fine in tally.fine.items() if fine)
    weights = [fine for _, fine, _ in shares] + [tally.fine[key] for key in nobodys]
    amounts = apportion(bill, weights)
    busy = apportion(tally.time.busy_ms * _US_PER_MS, [fine for _, _, fine in shares]) if shares else []
    lines: dict[Key, Line] = {
        key: Line(amount) for key, amount in zip(nobodys, amounts[len(shares) :], strict=True)
    }
    for (work, _, _), amount, engine_us in zip(shares, amounts, busy, strict=False):
        lines[work.key] = lines.get(work.key, NOTHING) + Line(amount, engine_us, 1)
    return lines


def difference(now: Mapping[Key, Line], before: Mapping[Key, Line]) -> dict[Key, Line]:
    """What has to be added to lines that are booked for them to be those of now."""
    changed = {key: now.get(key, NOTHING) - before.get(key, NOTHING) for key in {*now, *before}}
    return {key: changed[key] for key in sorted(changed) if changed[key] != NOTHING}
