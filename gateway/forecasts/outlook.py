"""What will tenants be charged to the month's end, and in the next 30 days?

Of whole UTC days: the history ends where today begins. What was charged today is no part of it, and the least
that today can come to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.errors import InvalidRequest
from gateway.forecasts.child import Errand, Found
from gateway.forecasts.forecast import Forecast
from gateway.forecasts.library import MISSING
from gateway.forecasts.processes import ask_process
from gateway.ledger.cuts import MS_PER_DAY, epoch_ms, moment_of, month_of
from gateway.ledger.spend_series import spend_series
from gateway.spend_names import Names

CHILD = "gateway.forecasts.child"
HISTORY_DAYS = 182
WEEK_DAYS = 7
NEXT_DAYS = 30
AHEAD_DAYS = 31
"""A month, or 30 days."""
DIMENSIONS = ("tenant", "pool")
TOP = 20
TOP_MAX = 100
TOTAL = "total"
OTHERS = "others"


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a stretch of time comes to, nano-USD."""

    usd_nanos: int
    low_usd_nanos: int | None
    """None: how sure it is is not known."""
    high_usd_nanos: int | None


@dataclass(frozen=True, slots=True)
class Line:
    """One tenant, pool, or all."""

    name: str
    booked_usd_nanos: int
    """In this month until now."""
    forecast: Forecast | None
    why_not: str = ""
    month: Estimate | None = None
    """The whole month: booked and to come."""
    next_days: Estimate | None = None
    """30 days from this morning on."""


@dataclass(frozen=True, slots=True)
class SpendOutlook:
    """A forecast of spend."""

    by: str
    at_ms: int
    today_ms: int
    """Where today begins, and the forecast."""
    month_end_ms: int
    lines: tuple[Line, ...]
    """The dearest of late first, then the others together, then the total: a forecast of its own, so that
    the lines need not add up to it."""
    note: str
    """What a reader should know; may be empty."""


async def spend_outlook(
    session: AsyncSession, *, by: str, now_ms: int, names: Names, top: int = TOP
) -> SpendOutlook:
    """Forecast by tenant or pool.

    Raises:
        InvalidRequest: another dimension, or `top` out of range.
        ConfigurationError: the process that forecasts died.
    """
    if by not in DIMENSIONS:
        raise InvalidRequest(f"A forecast is by tenant or by pool, not by {by[:40]!r}.", param="by")
    if not 1 <= top <= TOP_MAX:
        raise InvalidRequest(f"`top` is 1 to {TOP_MAX}.", param="top")
    today_ms = now_ms // MS_PER_DAY * MS_PER_DAY
    start_ms = today_ms - HISTORY_DAYS * MS_PER_DAY
    found = await spend_series(session, by, start_ms=start_ms, end_ms=today_ms + MS_PER_DAY)
    series = _shown(found, names.get(by, {}), top)
    asked = {name: [float(value) for value in values[:-1]] for name, values in series.items()}
    answer = await ask(Errand(series=asked, ahead=AHEAD_DAYS, season=WEEK_DAYS))
    month_start, month_end = month_of(moment_of(now_ms))
    days_gone = (today_ms - epoch_ms(month_start)) // MS_PER_DAY
    days_left = (epoch_ms(month_end) - today_ms) // MS_PER_DAY
    return SpendOutlook(
        by=by,
        at_ms=now_ms,
        today_ms=today_ms,
        month_end_ms=epoch_ms(month_end),
        lines=tuple(
            _line(name, values, answer, days_gone=days_gone, days_left=days_left)
            for name, values in series.items()
        ),
        note="" if answer.has_library else MISSING,
    )


def _shown(found: dict[str, list[int]], names: dict[str, str], top: int) -> dict[str, list[int]]:
    """Series by what they are shown as, the total last."""
    order = sorted(found, key=lambda value: (-sum(found[value][-NEXT_DAYS:]), value))
    shown: dict[str, list[int]] = {}
    for value in order[:top]:
        name = names.get(value, value)
        shown[name if name not in {*shown, OTHERS, TOTAL} else f"{name} ({value})"] = found[value]
    if order[top:]:
        shown[OTHERS] = _sum([found[value] for value in order[top:]])
    shown[TOTAL] = _sum(list(found.values()))
    return shown


def _sum(series: Sequence[Sequence[int]]) -> list[int]:
    return [sum(values) for values in zip(*series, strict=True)] or [0] * (HISTORY_DAYS + 1)


def _line(name: str, values: Sequence[int], answer: Found, *, days_gone: int, days_left: int) -> Line:
    today = values[-1]
    before = sum(values[-1 - days_gone : -1]) if days_gone else 0
    made = answer.forecasts.get(name)
    if made is None:
        return Line(name, before + today, None, answer.none[name].why)
    return Line(
        name,
        before + today,
        made,
        month=_estimate(made, days_left, before=before, least=before + today),
        next_days=_estimate(made, NEXT_DAYS, before=0, least=today),
    )


def _estimate(made: Forecast, days: int, *, before: int, least: int) -> Estimate:
    interval = made.interval_of(days)
    low, high = (None, None) if interval is None else interval
    return Estimate(
        max(least, before + round(made.sum_of(days))),
        None if low is None else max(least, before + round(low)),
        None if high is None else max(least, before + round(high)),
    )


async def ask(errand: Errand) -> Found:
    """Have a process of its own forecast.

    Raises:
        ConfigurationError: see `ask_process`.
    """
    return msgspec.json.decode(await ask_process(CHILD, msgspec.json.encode(errand)), type=Found)
