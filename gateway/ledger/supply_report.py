"""What did supply cost, who used it, and did the charges recover it?

The bridge between charge and cost. Two bases beside each other: *usage*, engine time alone; and *allocation*,
which adds to it the pool's idle time, warm-ups and all else that is nobody's, in proportion to usage, and so
reconciles to the bill. Overhead of a pool that nobody used stays unallocated. Frozen hours are read as they
were frozen; hours that are still open are counted now and named. Corrections count where they are booked.
Never changes a charge. Integers of nano-USD; UTC, half-open, whole hours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.errors import InvalidRequest
from gateway.inference import Payer
from gateway.ledger.period_tables import LateHour
from gateway.ledger.supply import MS_PER_HOUR, LineKind, PoolHour, ReplicaMs, Terms, apportion
from gateway.ledger.supply_begin import first_instants
from gateway.ledger.supply_count import counted
from gateway.ledger.supply_store import TIMES, frontiers
from gateway.ledger.supply_tables import SupplyHour, SupplyLine
from gateway.ledger.tables import SpendHour

PERIODS: Final = ("day", "week", "month")
DIMENSIONS: Final = ("tenant", "project", "key", "model", "pool", "task", *PERIODS)
_COLUMNS: Final = {
    "tenant": "tenant_id",
    "project": "project_id",
    "key": "key_id",
    "model": "model_alias",
    "pool": "pool",
    "task": "task",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HOURS_PER_DAY = 24
_TOKENS = ("input_tokens", "cached_input_tokens", "output_tokens")

Group = tuple[str, ...]


@dataclass(slots=True)
class SupplyFigures:
    """One row."""

    attempts: int = 0
    """That were in an engine, and that tenants pay for; once for each hour that they were in."""
    engine_us: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    usage_usd_nanos: int = 0
    """Cost of its engine time."""
    allocated_usd_nanos: int = 0
    """With its part of what nobody used."""
    charge_usd_nanos: int = 0

    @property
    def recovery_usd_nanos(self) -> int:
        """What was charged beyond the allocated cost; below zero: less than that."""
        return self.charge_usd_nanos - self.allocated_usd_nanos

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.input_tokens + self.cached_input_tokens + self.output_tokens

    def usd_nanos_per_million(self) -> int | None:
        """Allocated cost of a million tokens; None without tokens."""
        return None if not self.tokens else self.allocated_usd_nanos * 1_000_000 // self.tokens


@dataclass(slots=True)
class PoolSupply:
    """A pool's bill over the period."""

    pool: str
    time_source: str = ""
    gpus_per_replica: int = 0
    weights: str = ""
    prices: dict[tuple[int, str, int], None] = field(default_factory=dict)
    """Instant, kind, nano-USD per replica-hour; in force at some time."""
    bill_usd_nanos: int = 0
    corrections_usd_nanos: int = 0
    """Part of the bill: what was found of earlier hours."""
    time: ReplicaMs = field(default_factory=ReplicaMs)
    frozen_hours: int = 0
    open_hours: int = 0
    lines: defaultdict[LineKind, int] = field(default_factory=lambda: defaultdict(int))
    """The bill by what it was for, nano-USD."""
    unallocated_usd_nanos: int = 0
    """Overhead in periods in which nobody used the pool."""

    @property
    def utilisation_ratio(self) -> float | None:
        """Busy time by paid time; None: nothing was paid."""
        return None if self.time.billed_ms <= 0 else self.time.busy_ms / self.time.billed_ms


@dataclass(slots=True)
class SupplyReport:
    """Price and cost beside each other; it foots: lines add up to bills, rows and what is unallocated too."""

    group_by: Group
    start: datetime
    end: datetime
    rows: dict[Group, SupplyFigures]
    pools: dict[str, PoolSupply]
    outside_charge_usd_nanos: int
    """Charged for targets that no pool here is: their cost is their provider's invoice."""
    high_water_ms: int
    """Attempts booked before are in every frozen hour."""

    @property
    def bill_usd_nanos(self) -> int:
        """Of all pools."""
        return sum(pool.bill_usd_nanos for pool in self.pools.values())

    @property
    def total(self) -> SupplyFigures:
        """The sum of the rows."""
        names = SupplyFigures.__slots__
        return SupplyFigures(*(sum(getattr(row, name) for row in self.rows.values()) for name in names))

    @property
    def lines(self) -> dict[LineKind, int]:
        """All bills by what they were for."""
        return {
            kind: sum(pool.lines[kind] for pool in self.pools.values())
            for kind in LineKind
            if any(pool.lines[kind] for pool in self.pools.values())
        }


@dataclass(frozen=True, slots=True)
class _Fact:
    """A line of some hours, before it is grouped."""

    hour_ms: int
    """Of the hour, or of its day: all that a group can tell apart."""
    pool: str
    line: LineKind
    about: Mapping[str, str]
    """By dimension."""
    usd_nanos: int
    engine_us: int
    attempts: int


async def supply_report(
    session: AsyncSession,
    terms: Mapping[str, Terms],
    *,
    group_by: Sequence[str],
    start: datetime,
    end: datetime,
    now_ms: int,
    names: Mapping[str, Mapping[str, str]] | None = None,
) -> SupplyReport:
    """Cost and charge between two instants.

    Args:
        session: where to ask.
        terms: of the pools; for hours that are still open.
        group_by: dimensions, in the order of the columns.
        start: first instant, a whole hour.
        end: first instant after it, a whole hour.
        now_ms: an hour that is not over is billed until now.
        names: what to show instead of ids, by dimension.

    Raises:
        InvalidRequest: an unknown dimension, no whole hours, or an end that is not after the start.
    """
    dimensions = _checked(group_by, start, end)
    start_ms, end_ms = _ms(start), _ms(end)
    report = SupplyReport(dimensions, start, end, {}, {}, 0, 0)
    facts = [fact async for fact in _frozen(session, report, within=(start_ms, end_ms))]
    facts += [
        fact
        async for fact in _open(session, report, terms, within=(start_ms, min(end_ms, now_ms)), now_ms=now_ms)
    ]
    _group(report, facts, names or {})
    await _charges(session, report, names or {})
    report.rows = dict(sorted(report.rows.items(), key=lambda row: (-row[1].allocated_usd_nanos, row[0])))
    report.pools = dict(sorted(report.pools.items()))
    return report


def _checked(group_by: Sequence[str], start: datetime, end: datetime) -> Group:
    for name in group_by:
        if name not in DIMENSIONS:
            raise InvalidRequest(
                f"Cannot group cost by {name!r}. Known: {', '.join(DIMENSIONS)}.", param="group_by"
            )
    if end <= start:
        raise InvalidRequest("The end of the report must be after its start.", param="to")
    for instant, param in ((start, "from"), (end, "to")):
        if _ms(instant) % MS_PER_HOUR:
            raise InvalidRequest("Supply is billed by the hour: give whole hours.", param=param)
    return tuple(dict.fromkeys(group_by))


def _ms(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def _pool(report: SupplyReport, name: str) -> PoolSupply:
    return report.pools.setdefault(name, PoolSupply(name))


async def _frozen(
    session: AsyncSession, report: SupplyReport, *, within: tuple[int, int]
) -> AsyncIterator[_Fact]:
    start_ms, end_ms = within
    hour = col(SupplyHour.hour_start_ms)
    bills = await session.execute(select(SupplyHour).where(hour >= start_ms, hour < end_ms).order_by(hour))
    for bill in bills.scalars():
        pool = _pool(report, bill.pool)
        pool.bill_usd_nanos += bill.bill_usd_nanos
        pool.time = pool.time + ReplicaMs(*(getattr(bill, name) for name in TIMES))
        if bill.corrects_hour_ms == bill.hour_start_ms:
            pool.frozen_hours += 1
            pool.time_source, pool.gpus_per_replica = bill.time_source, bill.gpus_per_replica
            pool.weights = bill.weights
            for price in bill.prices:
                pool.prices[price["since_ms"], price["kind"], price["usd_nanos_per_hour"]] = None
        else:
            pool.corrections_usd_nanos += bill.bill_usd_nanos
        report.high_water_ms = max(report.high_water_ms, bill.booked_before_ms)
    hour = col(SupplyLine.hour_start_ms)
    day = (hour // (MS_PER_HOUR * _HOURS_PER_DAY)).label("day")
    asked = [name for name in report.group_by if name in _COLUMNS and name != "pool"]
    keys = [getattr(SupplyLine, _COLUMNS[name]) for name in asked]
    sums = [func.sum(getattr(SupplyLine, name)) for name in ("cost_usd_nanos", "engine_us", "attempts")]
    grouping = (day, col(SupplyLine.pool), col(SupplyLine.line), *keys)
    found = await session.execute(
        select(*grouping, *sums).where(hour >= start_ms, hour < end_ms).group_by(*grouping)
    )
    for at_day, pool_name, line, *rest in found:
        about = dict(zip(asked, rest[: len(asked)], strict=True))
        amounts = [int(value) for value in rest[len(asked) :]]
        hour_ms = int(at_day) * MS_PER_HOUR * _HOURS_PER_DAY
        yield _Fact(hour_ms, pool_name, LineKind(line), about, *amounts)


async def _open(
    session: AsyncSession,
    report: SupplyReport,
    terms: Mapping[str, Terms],
    *,
    within: tuple[int, int],
    now_ms: int,
) -> AsyncIterator[_Fact]:
    start_ms, end_ms = within
    known, firsts = await frontiers(session), await first_instants(session, terms)
    for name, one in terms.items():
        if name not in firsts:
            continue
        first_ms = known[name][0] + MS_PER_HOUR if name in known else firsts[name]
        hour_ms = max(start_ms, first_ms // MS_PER_HOUR * MS_PER_HOUR)
        while hour_ms < end_ms:
            hour = await counted(session, one, hour_ms, until_ms=now_ms)
            pool = _pool(report, name)
            pool.open_hours += 1
            pool.bill_usd_nanos += hour.bill_usd_nanos
            pool.time = pool.time + hour.time
            pool.time_source, pool.gpus_per_replica = one.time_source, one.gpus_per_replica
            pool.weights = one.weights.text()
            for price in hour.prices:
                pool.prices[price.since_ms, price.kind.value, price.usd_nanos_per_hour] = None
            for fact in _facts(hour):
                yield fact
            hour_ms += MS_PER_HOUR


def _facts(hour: PoolHour) -> Iterator[_Fact]:
    for key, line in hour.lines.items():
        about = {name: getattr(key, column) for name, column in _COLUMNS.items() if name != "pool"}
        yield _Fact(
            hour.hour_start_ms, hour.pool, key.line, about, line.usd_nanos, line.engine_us, line.attempts
        )


def _shown(name: str, value: str, names: Mapping[str, Mapping[str, str]]) -> str:
    return names.get(name, {}).get(value, value)


def _period(name: str, hour_ms: int) -> str:
    day = date(1970, 1, 1) + timedelta(days=hour_ms // (MS_PER_HOUR * _HOURS_PER_DAY))
    if name == "month":
        return f"{day:%Y-%m}"
    return (day - timedelta(days=day.weekday())).isoformat() if name == "week" else day.isoformat()


def _group(report: SupplyReport, facts: Sequence[_Fact], names: Mapping[str, Mapping[str, str]]) -> None:
    """Usage by group, and overhead shared by usage: by pool and, where periods are asked for, in each."""
    used: defaultdict[tuple[str, Group], defaultdict[Group, int]] = defaultdict(lambda: defaultdict(int))
    overhead: defaultdict[tuple[str, Group], int] = defaultdict(int)
    for fact in facts:
        _pool(report, fact.pool).lines[fact.line] += fact.usd_nanos
        place = (fact.pool, tuple(_period(name, fact.hour_ms) for name in report.group_by if name in PERIODS))
        if fact.line is not LineKind.REQUEST:
            overhead[place] += fact.usd_nanos
            continue
        about = {**fact.about, "pool": fact.pool}
        group = tuple(
            _period(name, fact.hour_ms) if name in PERIODS else _shown(name, about[name], names)
            for name in report.group_by
        )
        row = report.rows.setdefault(group, SupplyFigures())
        row.attempts += fact.attempts
        row.engine_us += fact.engine_us
        row.usage_usd_nanos += fact.usd_nanos
        row.allocated_usd_nanos += fact.usd_nanos
        used[place][group] += fact.usd_nanos
    for place, amount in overhead.items():
        # A correction may have taken back more than the period used: nothing to share by is below zero.
        groups = sorted(group for group, usage in used[place].items() if usage > 0)
        if not groups:
            report.pools[place[0]].unallocated_usd_nanos += amount
            continue
        parts = apportion(amount, [used[place][group] for group in groups])
        for group, part in zip(groups, parts, strict=True):
            report.rows[group].allocated_usd_nanos += part


async def _charges(
    session: AsyncSession,
    report: SupplyReport,
    names: Mapping[str, Mapping[str, str]],
) -> None:
    """Put beside it what tenants were charged in the same hours; late usage where it counts."""
    late = col(LateHour.hour_start_ms), col(LateHour.billed_in_ms)
    sources: tuple[tuple[Any, Any, int], ...] = (
        (SpendHour, col(SpendHour.hour_start_ms), 1),
        (LateHour, late[0], -1),
        (LateHour, late[1], 1),
    )
    for table, hour, sign in sources:
        await _charges_of(session, report, names, source=(table, hour, sign))


async def _charges_of(
    session: AsyncSession,
    report: SupplyReport,
    names: Mapping[str, Mapping[str, str]],
    *,
    source: tuple[Any, Any, int],
) -> None:
    table, hour, sign = source
    start_ms, end_ms = _ms(report.start), _ms(report.end)
    day = (hour // (MS_PER_HOUR * _HOURS_PER_DAY)).label("day")
    asked = [name for name in report.group_by if name in _COLUMNS and name != "pool"]
    keys = [getattr(table, _COLUMNS[name]) for name in asked]
    grouping = (day, col(table.pool), *keys)
    output = col(table.output_tokens) + col(table.reasoning_tokens)
    read = col(table.input_tokens) + col(table.cache_write_tokens)
    sums = (read, col(table.cached_input_tokens), output, col(table.charge_usd_nanos))
    found = await session.execute(
        select(*grouping, *(func.sum(each) for each in sums))
        .where(hour >= start_ms, hour < end_ms, col(table.payer) == Payer.TENANT.value)
        .group_by(*grouping)
    )
    for at_day, pool, *rest in found:
        amounts = [sign * int(value) for value in rest[len(asked) :]]
        if pool not in report.pools:
            report.outside_charge_usd_nanos += amounts[-1]
            continue
        if not any(amounts):
            continue
        about = {**dict(zip(asked, rest[: len(asked)], strict=True)), "pool": pool}
        hour_ms = int(at_day) * MS_PER_HOUR * _HOURS_PER_DAY
        group = tuple(
            _period(name, hour_ms) if name in PERIODS else _shown(name, about[name], names)
            for name in report.group_by
        )
        row = report.rows.setdefault(group, SupplyFigures())
        for name, amount in zip((*_TOKENS, "charge_usd_nanos"), amounts, strict=True):
            setattr(row, name, getattr(row, name) + amount)
