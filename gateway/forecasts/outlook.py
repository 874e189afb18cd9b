"""What will tenants be charged to the month's end, and in the next 30 days?

Of whole UTC days: the history ends where today begins. What was charged today is no part of it, and the least
that today can come to. What is booked in the month is what a report of it says is due: with usage of closed
months that came late and counts in this one, and with credits and corrections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.errors import InvalidRequest
from gateway.forecasts.child import Errand, Found
from gateway.forecasts.forecast import Forecast
from gateway.forecasts.library import MISSING
from gateway.forecasts.processes import ask_process
from gateway.ledger.cuts import MS_PER_DAY, epoch_ms, moment_of, month_of
from gateway.ledger.reports import PLATFORM_TENANT, spend_report
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
ADJUSTED = "Credits and corrections are tenants', not pools': only the total has them."


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
    """In this month until now; late usage of closed months, credits and corrections included."""
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


@dataclass(frozen=True, slots=True)
class Question:
    """What the books say, and what is asked of whoever forecasts."""

    by: str
    now_ms: int
    series: Mapping[str, Sequence[int]]
    """By what they are shown as, the total last; today the last value."""
    beside: Mapping[str, int]
    """Booked in this month beside the series, nano-USD."""
    has_adjustments: bool

    @property
    def errand(self) -> Errand:
        """For the process that forecasts."""
        asked = {name: [float(value) for value in values[:-1]] for name, values in self.series.items()}
        return Errand(series=asked, ahead=AHEAD_DAYS, season=WEEK_DAYS)


async def read_question(
    session: AsyncSession, *, by: str, now_ms: int, names: Names, top: int = TOP
) -> Question:
    """Read what a forecast by tenant or pool needs; nothing takes long, and no session is needed afterwards.

    Raises:
        InvalidRequest: another dimension, or `top` out of range.
    """
    if by not in DIMENSIONS:
        raise InvalidRequest(f"A forecast is by tenant or by pool, not by {by[:40]!r}.", param="by")
    if not 1 <= top <= TOP_MAX:
        raise InvalidRequest(f"`top` is 1 to {TOP_MAX}.", param="top")
    today_ms = now_ms // MS_PER_DAY * MS_PER_DAY
    start_ms = today_ms - HISTORY_DAYS * MS_PER_DAY
    found = await spend_series(session, by, start_ms=start_ms, end_ms=today_ms + MS_PER_DAY)
    month_start, _ = month_of(moment_of(now_ms))
    days = (today_ms - epoch_ms(month_start)) // MS_PER_DAY + 1
    due, has_adjustments = await _due(session, by, start=month_start, end=moment_of(today_ms + MS_PER_DAY))
    beside = {
        value: due.get(value, 0) - sum(found.get(value, [0] * days)[-days:])
        for value in {*due, *found} - {""}
    }
    for value in beside:
        found.setdefault(value, [0] * (HISTORY_DAYS + 1))
    shown, shown_as = _shown(found, names.get(by, {}), top)
    moved = {name: sum(beside.get(value, 0) for value in values) for name, values in shown_as.items()}
    if by != "tenant":  # an adjustment is a tenant's, of no pool: only the whole has it
        moved[TOTAL] += due[""]
    return Question(by, now_ms, shown, moved, has_adjustments and by != "tenant")


async def _due(
    session: AsyncSession, by: str, *, start: datetime, end: datetime
) -> tuple[dict[str, int], bool]:
    """What is due by value, nano-USD, and under an empty one adjustments that are of no value."""
    report = await spend_report(session, group_by=(by,), start=start, end=end)
    due = {group[0]: figures.charge_usd_nanos for group, figures in report.rows}
    due[""] = 0
    for line in report.adjustments:
        if line.tenant_id != PLATFORM_TENANT:
            value = line.tenant_id if by == "tenant" else ""
            due[value] = due.get(value, 0) + line.amount_usd_nanos
    return due, any(line.tenant_id != PLATFORM_TENANT for line in report.adjustments)


def outlook_of(question: Question, answer: Found) -> SpendOutlook:
    """The forecast beside what is booked."""
    now_ms = question.now_ms
    today_ms = now_ms // MS_PER_DAY * MS_PER_DAY
    month_start, month_end = month_of(moment_of(now_ms))
    days_gone = (today_ms - epoch_ms(month_start)) // MS_PER_DAY
    days_left = (epoch_ms(month_end) - today_ms) // MS_PER_DAY
    notes = ["" if answer.has_library else MISSING, ADJUSTED if question.has_adjustments else ""]
    return SpendOutlook(
        by=question.by,
        at_ms=now_ms,
        today_ms=today_ms,
        month_end_ms=epoch_ms(month_end),
        lines=tuple(
            _line(
                name,
                values,
                answer,
                beside=question.beside.get(name, 0),
                days_gone=days_gone,
                days_left=days_left,
            )
            for name, values in question.series.items()
        ),
        note=" ".join(filter(None, notes)),
    )


async def spend_outlook(
    session: AsyncSession, *, by: str, now_ms: int, names: Names, top: int = TOP
) -> SpendOutlook:
    """Both in one, for who has the process to himself.

    Raises:
        InvalidRequest: see `read_question`.
        ConfigurationError: the process that forecasts died.
    """
    question = await read_question(session, by=by, now_ms=now_ms, names=names, top=top)
    return outlook_of(question, await ask(question.errand))


def _shown(
    found: Mapping[str, list[int]], names: Mapping[str, str], top: int
) -> tuple[dict[str, list[int]], dict[str, list[str]]]:
    """Series by what they are shown as, the total last; and which values each of them is of."""
    order = sorted(found, key=lambda value: (-sum(found[value][-NEXT_DAYS:]), value))
    shown: dict[str, list[int]] = {}
    values: dict[str, list[str]] = {}
    for value in order[:top]:
        name = names.get(value, value)
        name = name if name not in {*shown, OTHERS, TOTAL} else f"{name} ({value})"
        shown[name], values[name] = found[value], [value]
    if order[top:]:
        shown[OTHERS], values[OTHERS] = _sum([found[value] for value in order[top:]]), order[top:]
    shown[TOTAL], values[TOTAL] = _sum(list(found.values())), order
    return shown, values


def _sum(series: Sequence[Sequence[int]]) -> list[int]:
    return [sum(values) for values in zip(*series, strict=True)] or [0] * (HISTORY_DAYS + 1)


def _line(
    name: str, values: Sequence[int], answer: Found, *, beside: int, days_gone: int, days_left: int
) -> Line:
    today = values[-1]
    before = beside + (sum(values[-1 - days_gone : -1]) if days_gone else 0)
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
