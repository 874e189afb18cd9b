"""What does the ledger have beside a bill, and where is the comparison kept? All SQL of it.

A provider's invoice is compared with the tokens and charges of the pool that is theirs, attempts on the
platform's account included, by when they were used; a GPU bill with replica time and what it cost.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.audit import Act, write
from gateway.errors import NotFound
from gateway.inference import new_id
from gateway.ledger.adjustments import NewAdjustment, propose
from gateway.ledger.bills import GPU, Reading, read_bill
from gateway.ledger.cuts import MS_PER_DAY, MS_PER_HOUR
from gateway.ledger.period_tables import Proposal, Reconciliation
from gateway.ledger.periods import Month
from gateway.ledger.posting import PLATFORM
from gateway.ledger.reconcile import TOLERANCE_USD_NANOS, Amount, Comparison, Gap, Hours, compare
from gateway.ledger.supply_tables import SupplyHour
from gateway.ledger.tables import SpendHour
from gateway.money import usd_text

ZONE_HOURS = 14
"""Days may begin so many hours earlier or later than in UTC."""
_NOT_PROPOSED = frozenset({Gap.ROUNDING, Gap.TIME_ZONE})
"""Nothing is missing or wrong there."""


@dataclass(frozen=True, slots=True)
class Bill:
    """A file that somebody sent."""

    text: str
    reading: Reading
    month: Month
    tolerance_usd_nanos: int = TOLERANCE_USD_NANOS
    pools: frozenset[str] = frozenset()
    """Pools that it should have lines of, beside those that it names."""


@dataclass(frozen=True, slots=True)
class Reconciled:
    """A comparison that is written down, and what is proposed."""

    row: Reconciliation
    comparison: Comparison
    proposals: Sequence[Proposal]


async def reconcile(session: AsyncSession, bill: Bill, *, act: Act) -> Reconciled:
    """Compare a bill with the ledger, write it down and propose what should be booked; the caller commits.

    Raises:
        InvalidRequest: the file cannot be read; names the line, the column and what to write.
    """
    month, reading = bill.month, bill.reading
    lines = read_bill(bill.text, reading)
    days = range(month.start_ms // MS_PER_DAY, month.end_ms // MS_PER_DAY)
    hours = await _hours(
        session, month, kind=reading.kind, pools={*bill.pools, *(line.pool for line in lines)}
    )
    made = compare(lines, hours, days=days, tolerance_usd_nanos=bill.tolerance_usd_nanos)
    row = Reconciliation(
        id=new_id("rec_", act.at_ms),
        name=reading.name[-128:],
        kind=reading.kind,
        period=month.id,
        file_sha256=hashlib.sha256(bill.text.encode()).hexdigest(),
        bill_usd_nanos=made.bill_usd_nanos,
        ledger_usd_nanos=made.ledger_usd_nanos,
        result=msgspec.json.encode(comparison_json(made)),
        made_by=act.actor.id,
        made_at_ms=act.at_ms,
    )
    await write(session, act, "reconciliation.make", row=row)
    proposals = [
        await propose(
            session,
            NewAdjustment(
                kind="reconciliation",
                tenant_id=PLATFORM,
                amount_usd_nanos=amount,
                reason=f"{reading.name[-100:]}: {gap.value.replace('_', ' ')} of {pool} in {month.id}",
                charge_month=month.id,
                pool=pool,
                reconciliation_id=row.id,
            ),
            act=act,
        )
        for (pool, gap), amount in made.by_pool_and_class().items()
        if gap not in _NOT_PROPOSED
    ]
    return Reconciled(row, made, proposals)


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
