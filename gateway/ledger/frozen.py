"""What did closing a month freeze beside its figures, and is a stretch of time closed?

Names, prices, the last booking that it knew, and of each tenant how many end users there were: all of it
stands in the closed report, which is hashed and signed. Whatever is written of a closed month takes it from
there, so that it says the same for ever, whatever is renamed or booked afterwards.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from typing import Literal

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.inference import Payer
from gateway.ledger.cuts import Cut, Late, distinct_end_users
from gateway.ledger.period_tables import ClosedPeriod
from gateway.ledger.tables import Attempt

PeriodState = Literal["open", "closed"]


class HighWater(msgspec.Struct, frozen=True):
    """Up to which booking the ledger was known."""

    journal_id: str | None
    bookings: int
    at: str | None = None
    """When it was booked, ISO 8601; None: the period was closed before that was kept."""


class OfTenant(msgspec.Struct, frozen=True):
    """What a tenant's statement says and sums cannot tell."""

    end_users: int
    """Named in the month's own requests."""
    price_versions: tuple[str, ...]
    """That it was charged by, of late usage too."""


class Frozen(msgspec.Struct, frozen=True, kw_only=True):
    """What a closed report says beside its figures."""

    period: str
    closed_at: str
    closed_by: str
    ledger_high_water: HighWater
    price_versions: tuple[str, ...]
    price_versions_are: str
    names: dict[str, dict[str, str]]
    tenants: dict[str, OfTenant] | None = None
    """None: the period was closed before that was kept."""
    ledger: msgspec.Raw = msgspec.Raw(b"{}")
    """See `closed_report`."""


async def closed_around(session: AsyncSession, end_ms: int) -> ClosedPeriod | None:
    """The closed period in which a stretch of time ends; None: it does not end in a closed one.

    Periods are closed one after the other, so that with its end a whole stretch is closed.
    """
    found = await session.execute(
        select(ClosedPeriod).where(col(ClosedPeriod.start_ms) < end_ms, col(ClosedPeriod.end_ms) >= end_ms)
    )
    return found.scalar_one_or_none()


async def closed_months(session: AsyncSession) -> frozenset[str]:
    """All that are closed, such as 2026-10."""
    return frozenset((await session.execute(select(col(ClosedPeriod.id)))).scalars())


def frozen_in(period: ClosedPeriod) -> Frozen:
    """What its report says beside its figures.

    Raises:
        msgspec.DecodeError, zlib.error: somebody wrote over the report; `period verify` says so too.
    """
    return msgspec.json.decode(zlib.decompress(period.report), type=Frozen)


async def freeze_tenants(session: AsyncSession, *, start_ms: int, end_ms: int) -> dict[str, OfTenant]:
    """What is to be frozen of every tenant of a month that is being closed."""
    cut = Cut((), (), start_ms, end_ms, wants_attempts=True)
    tenant, is_charged = col(Attempt.tenant_id), col(Attempt.payer) == Payer.TENANT.value
    users = await session.execute(
        select(tenant, distinct_end_users()).where(*cut.conditions(), is_charged).group_by(tenant)
    )
    end_users = {name: int(count) for name, count in users}
    versions: defaultdict[str, set[str]] = defaultdict(set)
    for part in (cut, cut.moved(Late.IN)):
        found = await session.execute(
            select(tenant, col(Attempt.price_version)).where(*part.conditions()).distinct()
        )
        for name, version in found:
            versions[name].add(version)
    return {
        name: OfTenant(end_users.get(name, 0), tuple(sorted(found)))
        for name, found in sorted(versions.items())
    }
