"""Does spend stand out from what is usual at this hour, and which cut explains it?

Usual is the median of the same hour of the day, on working days or at weekends, of the last four weeks. The
last hour, six hours and day are each compared with what is usual for them, as a ratio: its logarithm is what
noise of spend is even in. An anomaly is a ratio further above the usual ratios than so many of their robust
deviations (1.4826 MAD), half as much again at least, and dearer than a floor. Only more than usual is told.

The cause is the dimension within the anomaly whose values moved most against each other: the one value with
the most of the excess, of the dimension with the greatest surprise (Jensen-Shannon, as in Bhagwan et al.,
"Adtributor", NSDI 2014). A dimension with one value only explains nothing. Pure arithmetic, in nano-USD.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

HOURS_PER_DAY = 24
HISTORY_DAYS = 28
HISTORY_HOURS = HISTORY_DAYS * HOURS_PER_DAY
KNOWN_HOURS_MIN = 14 * HOURS_PER_DAY
"""A series that began later is not judged: nothing is usual yet."""
WINDOWS = {1: 6.0, 6: 5.0, 24: 5.0}
"""Hours looked at together, and how many deviations are too many."""
RATIO_MIN = 1.5
DEVIATION_MIN = 0.1
"""Of a logarithm: nobody is alarmed by a tenth more."""
NORMAL_MAD = 1.4826
_EPOCH_WEEKDAY = 3
"""1 January 1970 was a Thursday."""
_SATURDAY = 5


@dataclass(frozen=True, slots=True)
class Excess:
    """One series that stands out in a window that ends where the series does."""

    window_hours: int
    actual: float
    expected: float
    deviations: float

    @property
    def amount(self) -> float:
        """More than expected by so much."""
        return self.actual - self.expected


@dataclass(frozen=True, slots=True)
class Cause:
    """What explains an excess."""

    dimension: str
    value: str
    share: float
    """Of the excess; above 1 if others fell."""


def usual(hours: Sequence[float], end_hour: int) -> list[float]:
    """What is usual at each hour of a series whose last hour ends at `end_hour` (hours since 1970)."""
    start = end_hour - len(hours)
    slots: dict[tuple[bool, int], list[float]] = {}
    keys = [_slot(start + index) for index in range(len(hours))]
    for key, value in zip(keys[:-HOURS_PER_DAY], hours[:-HOURS_PER_DAY], strict=True):
        slots.setdefault(key, []).append(value)
    middles = {key: median(values) for key, values in slots.items()}
    return [middles.get(key, 0.0) for key in keys]


def _slot(hour: int) -> tuple[bool, int]:
    day, of_day = divmod(hour, HOURS_PER_DAY)
    return (day + _EPOCH_WEEKDAY) % 7 >= _SATURDAY, of_day


def look(hours: Sequence[float], *, end_hour: int, floor: float) -> Excess | None:
    """Whether a series stands out at its end; the window with the most deviations.

    Args:
        hours: spend by hour, the oldest first; the last `HISTORY_HOURS` are used.
        end_hour: where the last one ends, hours since 1970.
        floor: an excess of less is none.
    """
    recent = list(hours[-HISTORY_HOURS:])
    first = next((index for index, value in enumerate(recent) if value), len(recent))
    known = recent[first:]
    if len(known) < KNOWN_HOURS_MIN:
        return None
    expected = usual(known, end_hour)
    found = [
        excess
        for window, limit in WINDOWS.items()
        if (excess := _window(known, expected, window, floor=floor)) is not None and excess.deviations > limit
    ]
    return max(found, key=lambda each: each.deviations, default=None)


def _window(hours: Sequence[float], expected: Sequence[float], window: int, *, floor: float) -> Excess | None:
    """How far the last window stands out from those before; None: it is not worth a word."""
    actual, middle = sum(hours[-window:]), sum(expected[-window:])
    if actual - middle < floor or actual < RATIO_MIN * middle:
        return None
    offset = max(floor, 1.0)
    ends = range(len(hours) - HOURS_PER_DAY, window - 1, -window)
    ratios = [
        math.log((sum(hours[end - window : end]) + offset) / (sum(expected[end - window : end]) + offset))
        for end in ends
    ]
    if not ratios:
        return None
    centre = median(ratios)
    deviation = max(NORMAL_MAD * median(abs(ratio - centre) for ratio in ratios), DEVIATION_MIN)
    now = math.log((actual + offset) / (middle + offset))
    return Excess(window, actual, middle, (now - centre) / deviation)


def cause_of(
    parts: Mapping[str, Mapping[str, Sequence[float]]], *, end_hour: int, window_hours: int
) -> Cause | None:
    """Which dimension, and which of its values.

    Args:
        parts: hourly series of what is within the anomaly, by dimension and value.
        end_hour: see `look`.
        window_hours: of the anomaly.
    """
    causes = []
    for dimension, series in parts.items():
        sums = {
            value: (sum(hours[-window_hours:]), sum(usual(hours, end_hour)[-window_hours:]))
            for value, hours in series.items()
        }
        actual = sum(pair[0] for pair in sums.values())
        expected = sum(pair[1] for pair in sums.values())
        if len(sums) < len(("one", "another")) or actual <= expected:
            continue
        surprise = sum(
            _surprise(one / actual, other / expected if expected else 1 / len(sums))
            for one, other in sums.values()
        )
        value = max(sums, key=lambda name: sums[name][0] - sums[name][1])
        share = (sums[value][0] - sums[value][1]) / (actual - expected)
        causes.append((surprise, Cause(dimension, value, share)))
    return max(causes, key=lambda pair: pair[0], default=(0.0, None))[1]


def share_of(series: Mapping[str, Sequence[float]], value: str, *, end_hour: int, window_hours: int) -> float:
    """How much of the excess of all is one value's."""
    excess = {
        name: sum(hours[-window_hours:]) - sum(usual(hours, end_hour)[-window_hours:])
        for name, hours in series.items()
    }
    whole = sum(excess.values())
    return excess.get(value, 0.0) / whole if whole > 0 else 0.0


def _surprise(now: float, before: float) -> float:
    """One value's part of the Jensen-Shannon divergence of two distributions."""
    middle = (now + before) / 2
    return sum(0.5 * part * math.log(part / middle) for part in (now, before) if part > 0)
