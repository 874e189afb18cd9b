"""Which anomalies are known? Their SQL; flushes, never commits."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.db import insert_ignoring_duplicates
from gateway.forecasts.anomaly_search import Finding
from gateway.forecasts.tables import Anomaly


async def note_findings(session: AsyncSession, findings: Sequence[Finding], *, now_ms: int) -> None:
    """Remember them; of one that is known of that day nothing changes."""
    await insert_ignoring_duplicates(session, Anomaly, [each.row(now_ms) for each in findings])


async def anomalies_between(
    session: AsyncSession, *, start_ms: int, end_ms: int, limit: int = 1000
) -> list[Anomaly]:
    """Those found on the days that begin in between, the newest first."""
    found = await session.execute(
        select(Anomaly)
        .where(col(Anomaly.day_start_ms) >= start_ms, col(Anomaly.day_start_ms) < end_ms)
        .order_by(col(Anomaly.at_ms).desc(), col(Anomaly.dimension), col(Anomaly.value))
        .limit(limit)
    )
    return list(found.scalars())
