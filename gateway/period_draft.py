"""What will a month's closed report say, and does that still hold a moment later?

The report takes seconds of reading and of processor time, so it is written from a snapshot, without any lock,
and its bytes are made in a thread. What a month's report is of can only grow by bookings; sums over it, taken
again under the lock, tell whether there were any.
"""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.audit import Act
from gateway.clock import instant_text
from gateway.ledger.closed_report import ledger_section
from gateway.ledger.cuts import Cut
from gateway.ledger.frozen import HighWater, freeze_tenants
from gateway.ledger.period_tables import Adjustment, LateHour
from gateway.ledger.periods import Month
from gateway.ledger.report_facts import read_facts
from gateway.ledger.supply_tables import SupplyHour
from gateway.ledger.tables import JournalTransaction, SpendHour
from gateway.spend_names import read_names

FORMAT = "tollgate-period/1"
encode = msgspec.json.Encoder(order="deterministic").encode


@dataclass(frozen=True, slots=True)
class Draft:
    """A report that is not sealed."""

    at_ms: int
    """The database's clock when it was read, epoch ms."""
    compressed: bytes
    body_bytes: int
    sha256: str
    totals: dict[str, Any]
    high_water: str | None
    sums: tuple[int, ...]
    """Of all that it was made from: see `still_holds`."""


async def draft_of(session: AsyncSession, month: Month, act: Act, *, now_ms: int) -> Draft:
    """The report of a month as the session sees it, which must be one instant."""
    sums = await _sums(session, month)
    ledger = await ledger_section(session, start_ms=month.start_ms, end_ms=month.end_ms)
    facts = await read_facts(session, Cut((), (), month.start_ms, month.end_ms))
    bookings = (await session.execute(select(func.count(col(JournalTransaction.id))))).scalar_one()
    names = {name: found for name, found in (await read_names(session)).items() if "/" not in name}
    tenants = await freeze_tenants(session, start_ms=month.start_ms, end_ms=month.end_ms)
    high_water = HighWater(
        facts.high_water,
        int(bookings),
        None if facts.high_water_at_ms is None else instant_text(facts.high_water_at_ms),
    )
    report = {
        "format": FORMAT,
        "period": month.id,
        "from": instant_text(month.start_ms),
        "to": instant_text(month.end_ms),
        "time_zone": "UTC",
        "currency": "USD",
        "basis": "charges by token rates as booked; supply by frozen pool-hours",
        "closed_at": instant_text(now_ms),
        "closed_by": act.actor.id,
        "ledger_high_water": high_water,
        "price_versions": list(facts.price_versions),
        "price_versions_are": "used" if facts.are_prices_used else "known",
        "names": names,
        "tenants": tenants,
        "ledger": ledger,
    }
    body_bytes, sha256, compressed = await asyncio.to_thread(_bytes, report)
    return Draft(now_ms, compressed, body_bytes, sha256, ledger["totals"], facts.high_water, sums)


def _bytes(report: dict[str, Any]) -> tuple[int, str, bytes]:
    body = encode(report) + b"\n"
    return len(body), hashlib.sha256(body).hexdigest(), zlib.compress(body, 6)


async def still_holds(session: AsyncSession, draft: Draft, month: Month) -> bool:
    """Nothing was booked for the month since; under the lock nothing will be."""
    return await _sums(session, month) == draft.sums


async def _sums(session: AsyncSession, month: Month) -> tuple[int, ...]:
    first, last = month.start_ms, month.end_ms
    hour, used, billed = col(SpendHour.hour_start_ms), col(LateHour.hour_start_ms), col(LateHour.billed_in_ms)
    at, frozen = col(Adjustment.at_ms), col(SupplyHour.hour_start_ms)
    statements = (
        select(
            func.count(), func.sum(col(SpendHour.attempts)), func.sum(col(SpendHour.charge_usd_nanos))
        ).where(hour >= first, hour < last),
        select(
            func.count(), func.sum(col(LateHour.attempts)), func.sum(col(LateHour.charge_usd_nanos))
        ).where(or_((used >= first) & (used < last), (billed >= first) & (billed < last))),
        select(func.count(), func.sum(col(Adjustment.amount_usd_nanos))).where(at >= first, at < last),
        select(
            func.count(), func.sum(col(SupplyHour.bill_usd_nanos)), func.sum(col(SupplyHour.attempts))
        ).where(frozen >= first, frozen < last),
    )
    found: list[int] = []
    for statement in statements:
        found += [int(value or 0) for value in (await session.execute(statement)).one()]
    return tuple(found)
