"""Where does each bar of a chart stand?

Pure geometry for inline SVG, in per cent of the drawing, so that a chart fits any width while its text keeps
its size. Amounts are nano-USD; days are UTC dates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta

TOP_PERCENT = 14.0
"""Above: the label of the scale."""
BASE_PERCENT = 86.0
"""Below: the days."""
_BAR_SHARE = 0.7
_LABEL_EVERY = 5
_VISIBLE_PERCENT = 0.8
"""The least height of a day with any charge at all."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One day."""

    day: date
    amount: int
    x: float
    y: float
    width: float
    height: float
    middle: float
    is_today: bool
    is_labelled: bool


@dataclass(frozen=True, slots=True)
class BarChart:
    """A month of bars and the amount at the top of the scale."""

    bars: tuple[Bar, ...]
    scale: int
    top: float = TOP_PERCENT
    half: float = (TOP_PERCENT + BASE_PERCENT) / 2
    base: float = BASE_PERCENT


def bar_chart(start: date, end: date, amounts: Mapping[date, int], *, today: date) -> BarChart:
    """Bars for every day from `start` to before `end`, days without an amount included."""
    days = [start + timedelta(days=offset) for offset in range((end - start).days)]
    scale = round_scale(max((amounts.get(day, 0) for day in days), default=0))
    slot = 100.0 / max(1, len(days))
    bars = []
    for index, day in enumerate(days):
        amount = amounts.get(day, 0)
        height = (BASE_PERCENT - TOP_PERCENT) * amount / scale
        if amount > 0:
            height = max(height, _VISIBLE_PERCENT)
        left = slot * index + slot * (1 - _BAR_SHARE) / 2
        bars.append(
            Bar(
                day=day,
                amount=amount,
                x=round(left, 3),
                y=round(BASE_PERCENT - height, 3),
                width=round(slot * _BAR_SHARE, 3),
                height=round(height, 3),
                middle=round(slot * (index + 0.5), 3),
                is_today=day == today,
                is_labelled=day.day == 1 or day.day % _LABEL_EVERY == 0,
            )
        )
    return BarChart(tuple(bars), scale)


def round_scale(largest: int) -> int:
    """The least of 1, 2, 5, 10, 20, … that holds the largest amount."""
    magnitude = 1
    while True:
        for step in (1, 2, 5):
            if step * magnitude >= largest:
                return step * magnitude
        magnitude *= 10
