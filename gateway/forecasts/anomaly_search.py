"""Which tenants, projects, keys, pools, models and tasks stand out now, each excess told once?

Looked for from who pays to what was used: a key's excess that is its tenant's is no anomaly of its own.
`python -m gateway.forecasts.anomaly_search` reads one JSON object from standard input and does it, so that
neither reading nor counting holds up what serves.
"""

from __future__ import annotations

import asyncio
import os
import sys

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.db import create_engine, session_factory
from gateway.forecasts.anomalies import HISTORY_HOURS, Cause, Excess, cause_of, look, share_of
from gateway.forecasts.child import NICENESS
from gateway.forecasts.tables import Anomaly
from gateway.ledger.cuts import MS_PER_DAY, MS_PER_HOUR
from gateway.ledger.invariants import take_snapshot
from gateway.ledger.spend_series import COLUMNS, spend_series

DIMENSIONS = ("tenant", "project", "key", "pool", "model", "task")
SAME_SHARE = 0.5
"""An excess of which so much is another's is not told of its own."""
CANDIDATES_MAX = 30
"""What is looked at closely in one look: the dearest."""
SETTLED_MS = 300_000
"""By then the last hour's attempts are booked."""


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked."""

    database_url: str
    now_ms: int
    floor_usd_nanos: int


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One anomaly."""

    dimension: str
    value: str
    end_ms: int
    excess: Excess
    cause: Cause | None

    def row(self, now_ms: int) -> dict[str, int | str | None]:
        """As it is stored; see `tables.Anomaly`."""
        cause = self.cause
        return Anomaly(
            day_start_ms=(self.end_ms - 1) // MS_PER_DAY * MS_PER_DAY,
            dimension=self.dimension,
            value=self.value,
            at_ms=now_ms,
            end_ms=self.end_ms,
            window_hours=self.excess.window_hours,
            actual_usd_nanos=round(self.excess.actual),
            expected_usd_nanos=round(self.excess.expected),
            deviations_permille=round(self.excess.deviations * 1000),
            cause_dimension=None if cause is None else cause.dimension,
            cause_value=None if cause is None else cause.value,
            cause_permille=None if cause is None else round(cause.share * 1000),
        ).model_dump()


async def search(session: AsyncSession, *, now_ms: int, floor_usd_nanos: int) -> list[Finding]:
    """What stands out at the end of the last whole hour."""
    end_ms = (now_ms - SETTLED_MS) // MS_PER_HOUR * MS_PER_HOUR
    await take_snapshot(session)
    candidates: list[tuple[str, str, Excess]] = []
    for dimension in DIMENSIONS:
        for value, hours in (await _hours(session, dimension, end_ms)).items():
            excess = look(hours, end_hour=end_ms // MS_PER_HOUR, floor=floor_usd_nanos)
            if excess is not None:
                candidates.append((dimension, value, excess))
    candidates.sort(key=lambda each: (DIMENSIONS.index(each[0]), -each[2].amount))
    found: list[Finding] = []
    for dimension, value, excess in candidates[:CANDIDATES_MAX]:
        parts = {
            other: await _hours(session, other, end_ms, only=(dimension, value))
            for other in DIMENSIONS
            if other != dimension
        }
        end_hour, window = end_ms // MS_PER_HOUR, excess.window_hours
        is_told = any(
            each.dimension != dimension
            and share_of(parts[each.dimension], each.value, end_hour=end_hour, window_hours=window)
            >= SAME_SHARE
            for each in found
        )
        if not is_told:
            cause = cause_of(_within(dimension, parts), end_hour=end_hour, window_hours=window)
            found.append(Finding(dimension=dimension, value=value, end_ms=end_ms, excess=excess, cause=cause))
    return found


def _within(dimension: str, parts: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, list[float]]]:
    """Dimensions that can explain; where all is said by a key, its project says no more."""
    return {name: parts[name] for name in COLUMNS if name in parts and name != dimension}


async def _hours(
    session: AsyncSession, dimension: str, end_ms: int, *, only: tuple[str, str] | None = None
) -> dict[str, list[float]]:
    found = await spend_series(
        session,
        dimension,
        start_ms=end_ms - HISTORY_HOURS * MS_PER_HOUR,
        end_ms=end_ms,
        step_ms=MS_PER_HOUR,
        only=() if only is None else (only,),
    )
    return {value: [float(amount) for amount in amounts] for value, amounts in found.items()}


async def run(asked: Search) -> list[Finding]:
    """Search in a session of its own."""
    engine = create_engine(asked.database_url)
    try:
        async with session_factory(engine)() as session:
            return await search(session, now_ms=asked.now_ms, floor_usd_nanos=asked.floor_usd_nanos)
    finally:
        await engine.dispose()


def main() -> int:
    """Do it; returns the exit status."""
    os.nice(NICENESS)
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=Search)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(run(asked))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
