"""How did spend go, period by period? Series of what tenants are charged, from the hourly and daily sums.

Periods in which nothing was spent are zeros, so that a series has no holes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from gateway.inference import Payer
from gateway.ledger.cuts import MS_PER_DAY, MS_PER_HOUR
from gateway.ledger.tables import SpendDay, SpendHour

COLUMNS = {
    "tenant": "tenant_id",
    "project": "project_id",
    "key": "key_id",
    "model": "model_alias",
    "pool": "pool",
    "task": "task",
}
"""What hours and days know, and where."""
WHOLE = ""
"""The one series of all spend."""


async def spend_series(
    session: AsyncSession,
    by: str | None,
    *,
    start_ms: int,
    end_ms: int,
    step_ms: int = MS_PER_DAY,
    only: Sequence[tuple[str, str]] = (),
) -> dict[str, list[int]]:
    """Charges to tenants, nano-USD, by value of a dimension; one number a step, the oldest first.

    Args:
        session: where to ask.
        by: a key of `COLUMNS`; None: everything together.
        start_ms: first instant, on the hour, epoch ms.
        end_ms: first instant that does not count; whole steps after the start.
        step_ms: whole hours.
        only: dimensions and values that rows must have.
    """
    if step_ms % MS_PER_HOUR or start_ms % MS_PER_HOUR or (end_ms - start_ms) % step_ms:
        raise ValueError("a series is of whole steps of whole hours")
    are_days = not (step_ms % MS_PER_DAY or start_ms % MS_PER_DAY)
    table: Any = SpendDay if are_days else SpendHour
    at = SpendDay.day_start_ms if are_days else SpendHour.hour_start_ms
    key: list[Any] = [] if by is None else [getattr(table, COLUMNS[by])]
    step = (col(at) - start_ms) // step_ms
    conditions: list[ColumnElement[bool]] = [
        col(at) >= start_ms,
        col(at) < end_ms,
        col(table.payer) == Payer.TENANT.value,
        *(getattr(table, COLUMNS[name]) == value for name, value in only),
    ]
    found = await session.execute(
        select(step, func.sum(col(table.charge_usd_nanos)), *key).where(*conditions).group_by(step, *key)
    )
    series: dict[str, list[int]] = {}
    for index, amount, *value in found:
        name = str(value[0]) if value else WHOLE
        series.setdefault(name, [0] * ((end_ms - start_ms) // step_ms))[int(index)] = int(amount or 0)
    return series
