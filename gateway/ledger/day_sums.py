"""Is every day the sum of its attempts, and how is it made again where it is not? All SQL of that.

`spend_days` is derived: attempts are the truth, and never changed here. A gateway older than the table books
hours and no days; what is missing then can be told from the attempts at any time. A day is made again for one
tenant at a time, in a transaction of its own, beside gateways that book: they wait for it, so that what they
book meanwhile is either in what was read or added afterwards.

Left alone, and told, is a day whose hours are not the sums of its attempts either (something else is wrong),
and one of a closed month that would not come to the figures that were sealed.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec
from sqlalchemy import delete, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.db import begin_writing
from gateway.ledger.closed_report import KEYS, Sums, sums_of, take_away, usage_rows
from gateway.ledger.cuts import MS_PER_DAY, Cut, Filter, Late, period_text
from gateway.ledger.frozen import closed_around, frozen_in
from gateway.ledger.posting import HOUR_SUMS
from gateway.ledger.tables import SpendDay, SpendHour

_ATTEMPTS_AT = HOUR_SUMS.index("attempts")
_CHARGE_AT = HOUR_SUMS.index("charge_usd_nanos")
_TENANT_AT = 1 + KEYS.index("tenant_id")
_LOCK_WAIT_MS = 20_000
"""Bookings take milliseconds: if the table is taken for so long, somebody else is at work on it."""


@dataclass(frozen=True, slots=True)
class Total:
    """What some sums come to."""

    attempts: int
    charge_usd_nanos: int


@dataclass(frozen=True, slots=True)
class Apart:
    """A tenant's day that is not the sum of its attempts."""

    day: int
    """Since 1970, UTC."""
    tenant_id: str
    kept: Total
    """What the daily sums say."""
    really: Total
    """What its attempts say."""


class Made(StrEnum):
    """What became of a day that is to be made again."""

    REBUILT = "rebuilt"
    RIGHT = "right"
    """It is meanwhile."""
    HOURS_WRONG = "hours_wrong"
    """Its hours are not the sums of its attempts either."""
    SEALED = "sealed"
    """Its month is closed with other figures than its attempts come to."""

    @property
    def is_right(self) -> bool:
        """The day is the sum of its attempts now."""
        return self in {Made.REBUILT, Made.RIGHT}


async def days_with_usage(session: AsyncSession) -> range:
    """From the first day of the hourly and daily sums to the last, days since 1970."""
    bounds: list[int] = []
    for column in (SpendHour.hour_start_ms, SpendDay.day_start_ms):
        found = await session.execute(select(func.min(col(column)), func.max(col(column))))
        bounds += [int(at_ms) // MS_PER_DAY for at_ms in found.one() if at_ms is not None]
    return range(min(bounds), max(bounds) + 1) if bounds else range(0)


async def days_apart(session: AsyncSession, days: Iterable[int]) -> AsyncIterator[tuple[int, list[Apart]]]:
    """Of each of these days, the tenants whose sums are not those of their attempts.

    The caller begins with `take_snapshot`, so that bookings meanwhile give no false alarm.
    """
    for day in days:
        kept, really = await sums_of(session, _cut(day)), await sums_of(session, _cut(day, by_attempts=True))
        tenants = {key[_TENANT_AT] for key in kept.keys() | really.keys() if kept.get(key) != really.get(key)}
        yield (
            day,
            [Apart(day, tenant, _total(kept, tenant), _total(really, tenant)) for tenant in sorted(tenants)],
        )


async def rebuild_day(session: AsyncSession, day: int, tenant_id: str) -> Made:
    """Make a tenant's day again from its attempts; in a fresh transaction, which the caller commits."""
    await _hold_bookings(session)
    cut, really_cut = _cut(day, tenant_id), _cut(day, tenant_id, by_attempts=True)
    # Read after the lock: whoever booked before has committed, whoever waits for it is not seen.
    really = await sums_of(session, really_cut)
    if await sums_of(session, cut) == really:
        return Made.RIGHT
    if await _of_hours(session, day, tenant_id) != really:
        return Made.HOURS_WRONG
    if not await _is_as_sealed(session, day, tenant_id, cut=really_cut):
        return Made.SEALED
    at, tenant = col(SpendDay.day_start_ms), col(SpendDay.tenant_id)
    await session.execute(delete(SpendDay).where(at == day * MS_PER_DAY, tenant == tenant_id))
    if really:
        names = ("day_start_ms", *KEYS, *HOUR_SUMS)
        await session.execute(
            insert(SpendDay),
            [
                dict(zip(names, (day * MS_PER_DAY, *key[1:], *values), strict=True))
                for key, values in sorted(really.items())
            ],
        )
    return Made.REBUILT


def _cut(day: int, tenant_id: str | None = None, *, by_attempts: bool = False) -> Cut:
    filters = () if tenant_id is None else (Filter("tenant", (tenant_id,)),)
    start_ms = day * MS_PER_DAY
    return Cut((), filters, start_ms, start_ms + MS_PER_DAY, wants_attempts=by_attempts)


def _total(sums: Sums, tenant_id: str) -> Total:
    own = [values for key, values in sums.items() if key[_TENANT_AT] == tenant_id]
    return Total(
        attempts=sum(values[_ATTEMPTS_AT] for values in own),
        charge_usd_nanos=sum(values[_CHARGE_AT] for values in own),
    )


async def _hold_bookings(session: AsyncSession) -> None:
    """Let nobody write daily sums until the transaction ends; they are the last that a booking writes."""
    if session.get_bind().dialect.name == "postgresql":
        await session.execute(text(f"SET LOCAL lock_timeout = {_LOCK_WAIT_MS}"))
        await session.execute(text("LOCK TABLE spend_days IN SHARE ROW EXCLUSIVE MODE"))
    else:
        await begin_writing(session)


async def _of_hours(session: AsyncSession, day: int, tenant_id: str) -> Sums:
    at, keys = col(SpendHour.hour_start_ms), [getattr(SpendHour, name) for name in KEYS]
    found = await session.execute(
        select(*keys, *(func.sum(getattr(SpendHour, name)) for name in HOUR_SUMS))
        .where(at >= day * MS_PER_DAY, at < (day + 1) * MS_PER_DAY, col(SpendHour.tenant_id) == tenant_id)
        .group_by(*keys)
    )
    return {(day, *row[: len(KEYS)]): [int(value) for value in row[len(KEYS) :]] for row in found}


class _Usage(msgspec.Struct, frozen=True):
    columns: list[str]
    rows: list[list[Any]]


class _Ledger(msgspec.Struct, frozen=True):
    usage: _Usage


async def _is_as_sealed(session: AsyncSession, day: int, tenant_id: str, *, cut: Cut) -> bool:
    """Whether the day's attempts come to what the closed month's report says; true in an open month."""
    period = await closed_around(session, (day + 1) * MS_PER_DAY)
    if period is None:
        return True
    try:
        sealed = msgspec.json.decode(frozen_in(period).ledger, type=_Ledger).usage
    except (zlib.error, msgspec.DecodeError):
        return False
    used = await sums_of(session, cut)
    take_away(used, await sums_of(session, cut.moved(Late.AWAY)))
    day_text = period_text("day", day)
    kept = [row for row in sealed.rows if (row[0], row[_TENANT_AT]) == (day_text, tenant_id)]
    return sorted(kept) == sorted(usage_rows(used))
