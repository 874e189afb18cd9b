"""What does the ledger have beside a bill, and where is the comparison kept? All SQL of it.

A provider's invoice is compared with the tokens and charges of the pool that is theirs, attempts on the
platform's account included, by when they were used; a GPU bill with replica time and what it cost.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.audit import Act, write
from gateway.errors import InvalidRequest, NotFound
from gateway.inference import new_id
from gateway.ledger.adjustments import NewAdjustment, propose, standing_proposals, withdraw
from gateway.ledger.bills import GPU, BillLine, Reading, bill_hash, hashes_before, read_bill
from gateway.ledger.cuts import MS_PER_DAY, MS_PER_HOUR, period_text
from gateway.ledger.period_tables import Proposal, Reconciliation
from gateway.ledger.periods import Month, month_named
from gateway.ledger.posting import PLATFORM
from gateway.ledger.reconcile import TOLERANCE_USD_NANOS, Amount, Comparison, Gap, Hours, compare
from gateway.ledger.supply_tables import SupplyHour
from gateway.ledger.tables import SpendHour
from gateway.money import usd_text

ZONE_HOURS = 14
"""Days may begin so many hours earlier or later than in UTC."""
_LOCK = 4_701_920_262
_NOT_PROPOSED = frozenset({Gap.ROUNDING, Gap.TIME_ZONE})
"""Nothing is missing or wrong there."""


@dataclass(frozen=True, slots=True)
class Bill:
    """A file that somebody sent, read."""

    sha256: str
    """See `bill_hash`."""
    reading: Reading
    months: Mapping[Month, Sequence[BillLine]]
    """Its lines by the UTC month of their day, the first month first; those that are to be compared."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Lines of other months, which nobody asked for."""
    tolerance_usd_nanos: int = TOLERANCE_USD_NANOS
    pools: frozenset[str] = frozenset()
    """Pools that it should have lines of, beside those that it names."""
    known_as: frozenset[str] = frozenset()
    """Every hash by which an earlier comparison of it may be known."""


@dataclass(frozen=True, slots=True)
class Reconciled:
    """A comparison that is written down, and what is proposed."""

    row: Reconciliation
    comparison: Comparison
    proposals: Sequence[Proposal]
    """New ones: what earlier comparisons of the month have proposed is not proposed again."""
    standing: Sequence[Proposal] = ()
    """Those earlier ones, open or approved."""
    is_new: bool = True
    """False: the same file was compared before, and nothing has changed since."""


def read_file(
    content: str,
    reading: Reading,
    month: Month | None,
    *,
    tolerance_usd_nanos: int = TOLERANCE_USD_NANOS,
    pools: frozenset[str] = frozenset(),
) -> Bill:
    """Read a bill and split it by month; takes seconds for a large one, so not on a loop that serves.

    Args:
        content: the file.
        reading: how to read it.
        month: the only one to compare; None: every month that the file has lines of.
        tolerance_usd_nanos: of one line.
        pools: that it should have lines of.

    Raises:
        InvalidRequest: the file cannot be read, or has no line of the month; names the line, the column and
            what to write.
    """
    by_month: defaultdict[str, list[BillLine]] = defaultdict(list)
    for line in read_bill(content, reading):
        by_month[period_text("month", line.day)].append(line)
    months = {month_named(name): by_month[name] for name in sorted(by_month)}
    left_out = {}
    if month is not None:
        if month not in months:
            raise InvalidRequest(
                f"{reading.name} has no line of {month.id}; it has lines of {', '.join(sorted(by_month))}:"
                " say `period` accordingly, or leave it out and every month is compared.",
                param="period",
            )
        left_out = {each.id: len(lines) for each, lines in months.items() if each != month}
        months = {month: months[month]}
    return Bill(
        sha256=bill_hash(content),
        reading=reading,
        months=months,
        left_out=left_out,
        tolerance_usd_nanos=tolerance_usd_nanos,
        pools=pools,
        known_as=hashes_before(content),
    )


async def reconcile(session: AsyncSession, bill: Bill, *, act: Act) -> list[Reconciled]:
    """Compare a bill with the ledger, each month apart, write it down and propose what should be booked.

    Once: a file that was compared before says so, and of what is off only that is proposed which no earlier
    comparison of the month (of this file or its successor) has proposed. The caller begins by
    `begin_writing`, so that two do not propose at once, and commits.
    """
    return [await _of_month(session, bill, month, act=act) for month in bill.months]


async def _of_month(session: AsyncSession, bill: Bill, month: Month, *, act: Act) -> Reconciled:
    reading, lines = bill.reading, bill.months[month]
    await _lock(session)
    hours = await _hours(
        session, month, kind=reading.kind, pools={*bill.pools, *(line.pool for line in lines)}
    )
    days = range(month.start_ms // MS_PER_DAY, month.end_ms // MS_PER_DAY)
    made = await asyncio.to_thread(
        compare, lines, hours, days=days, tolerance_usd_nanos=bill.tolerance_usd_nanos
    )
    result = msgspec.json.encode(comparison_json(made))
    standing = await standing_proposals(session, kind=reading.kind, month=month.id)
    before = await _made_before(session, bill, month)
    wanted = _wanted(made, standing)
    if before is not None and before.result == result and not _is_off(wanted, standing):
        return Reconciled(before, made, (), standing, is_new=False)
    row = Reconciliation(
        id=new_id("rec_", act.at_ms),
        name=reading.name[-128:],
        kind=reading.kind,
        period=month.id,
        file_sha256=bill.sha256,
        bill_usd_nanos=made.bill_usd_nanos,
        ledger_usd_nanos=made.ledger_usd_nanos,
        result=result,
        made_by=act.actor.id,
        made_at_ms=act.at_ms,
    )
    await write(session, act, "reconciliation.make", row=row)
    return await _propose(session, row, made, wanted=wanted, standing=standing, act=act)


_Key = tuple[str, str]
"""A pool and why its bill differs."""


def _wanted(made: Comparison, standing: Sequence[Proposal]) -> dict[_Key, int]:
    """What all proposals should come to; also of what was proposed and is not off any more."""
    pools = {line.pool for line in made.lines}
    earlier = {(each.pool or "", each.gap or ""): 0 for each in standing if each.pool in pools}
    now = {
        (pool, gap.value): amount
        for (pool, gap), amount in made.by_pool_and_class().items()
        if gap not in _NOT_PROPOSED
    }
    return earlier | now


def _is_off(wanted: Mapping[_Key, int], standing: Sequence[Proposal]) -> bool:
    return any(
        amount != sum(each.amount_usd_nanos for each in _of(key, standing)) for key, amount in wanted.items()
    )


def _of(key: _Key, standing: Sequence[Proposal]) -> list[Proposal]:
    return [each for each in standing if (each.pool, each.gap) == key]


async def _propose(
    session: AsyncSession,
    row: Reconciliation,
    made: Comparison,
    *,
    wanted: Mapping[_Key, int],
    standing: Sequence[Proposal],
    act: Act,
) -> Reconciled:
    """Propose what is missing; an open proposal of another amount gives way to the new one."""
    proposals: list[Proposal] = []
    kept: list[Proposal] = []
    for key, amount in sorted(wanted.items()):
        earlier = _of(key, standing)
        missing = amount - sum(each.amount_usd_nanos for each in earlier)
        if missing:
            for each in [each for each in earlier if each.state == "proposed"]:
                await withdraw(session, each, act=act)
                earlier.remove(each)
                missing += each.amount_usd_nanos
        kept += earlier
        if missing:
            pool, gap = key
            reason = f"{row.name[-100:]}: {gap.replace('_', ' ')} of {pool} in {row.period}"
            new = NewAdjustment(
                kind="reconciliation",
                tenant_id=PLATFORM,
                amount_usd_nanos=missing,
                reason=reason,
                charge_month=row.period,
                pool=pool,
                reconciliation_id=row.id,
                gap=gap,
            )
            proposals.append(await propose(session, new, act=act))
    return Reconciled(row, made, proposals, kept)


async def _lock(session: AsyncSession) -> None:
    """One comparison at a time until the transaction ends: two would propose the same."""
    if session.get_bind().dialect.name == "postgresql":
        await session.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))


async def _made_before(session: AsyncSession, bill: Bill, month: Month) -> Reconciliation | None:
    """The newest comparison of the same file and month."""
    found = await session.execute(
        select(Reconciliation)
        .where(
            col(Reconciliation.file_sha256).in_(sorted({bill.sha256, *bill.known_as})),
            col(Reconciliation.period) == month.id,
            col(Reconciliation.kind) == bill.reading.kind,
        )
        .order_by(col(Reconciliation.made_at_ms).desc(), col(Reconciliation.id).desc())
        .limit(1)
    )
    return found.scalar_one_or_none()


def comparison_json(made: Comparison) -> dict[str, Any]:
    """Every line, for machines."""
    return {
        "bill_usd": usd_text(made.bill_usd_nanos),
        "ledger_usd": usd_text(made.ledger_usd_nanos),
        "difference_usd": usd_text(made.bill_usd_nanos - made.ledger_usd_nanos),
        "tolerance_usd_per_line": usd_text(made.tolerance_usd_nanos),
        "classes": {gap.value: usd_text(amount) for gap, amount in made.by_class().items()},
        "zones_hours_ahead_of_utc": made.zones_h,
        "lines": [
            {
                "pool": line.pool,
                "day": line.day,
                "bill_quantity": line.bill.quantity,
                "ledger_quantity": line.ledger.quantity,
                "bill_usd": usd_text(line.bill.usd_nanos),
                "ledger_usd": usd_text(line.ledger.usd_nanos),
                "gaps": {gap.value: usd_text(amount) for gap, amount in line.gaps.items()},
            }
            for line in made.lines
        ],
    }


async def _hours(session: AsyncSession, month: Month, *, kind: str, pools: set[str]) -> Hours:
    """By pool and hour; of pools that the bill names."""
    first, last = month.start_ms - ZONE_HOURS * MS_PER_HOUR, month.end_ms + ZONE_HOURS * MS_PER_HOUR
    if kind == GPU:
        table: Any = SupplyHour
        at: Any = col(SupplyHour.corrects_hour_ms)
        times = ("starting_ms", "serving_ms", "asleep_ms", "broken_ms", "unused_ms")
        billed_ms = sum((getattr(SupplyHour, name) for name in times), start=0)
        quantity: Any = billed_ms * col(SupplyHour.gpus_per_replica)
        amount: Any = col(SupplyHour.bill_usd_nanos)
    else:
        table, at = SpendHour, col(SpendHour.hour_start_ms)
        meters = ("input", "cached_input", "cache_write", "output", "reasoning")
        quantity = sum((getattr(SpendHour, f"{name}_tokens") for name in meters), start=0)
        amount = col(SpendHour.charge_usd_nanos)
    found = await session.execute(
        select(table.pool, at, func.sum(quantity), func.sum(amount))
        .where(at >= first, at < last, table.pool.in_(sorted(pools)))
        .group_by(table.pool, at)
    )
    hours: defaultdict[str, dict[int, Amount]] = defaultdict(dict)
    for pool, at_ms, count, usd_nanos in found:
        hours[pool][int(at_ms) // MS_PER_HOUR] = Amount(int(count), int(usd_nanos))
    return hours


async def list_reconciliations(session: AsyncSession) -> list[Reconciliation]:
    """The newest first."""
    found = await session.execute(
        select(Reconciliation).order_by(col(Reconciliation.made_at_ms).desc()).limit(1_000)
    )
    return list(found.scalars())


async def get_reconciliation(session: AsyncSession, reconciliation_id: str) -> Reconciliation:
    """One of them.

    Raises:
        NotFound: there is none.
    """
    found = await session.execute(select(Reconciliation).where(col(Reconciliation.id) == reconciliation_id))
    row = found.scalar_one_or_none()
    if row is None:
        raise NotFound(f"There is no reconciliation {reconciliation_id[:64]!r}.")
    return row
