"""What comes next in a series, how wrong was that method before, and how far off may it be?

The yardstick is seasonal-naive: the same as a season ago. Another model is used only if, forecasting from
several earlier instants what is known today (rolling origin), it was closer by the period by more than luck
explains one time in twenty (1.645 standard errors of that gain), and no worse in the sum; so the error beside
a forecast is never worse than the yardstick's. Back-tests whose days overlap count as fewer. What was chosen
by an error is flattered by it a little.

Intervals are split conformal: the quantile of what the chosen method was off by at those origins, for the
sum of the next k periods; no distribution is assumed (Lei et al., "Distribution-Free Predictive Inference for
Regression", JASA 2018). Fewer origins than the level needs: no interval. Pure arithmetic; units are as given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import fmean, stdev

NAIVE = "seasonal-naive"
LEVEL = 0.8
TRAINING_SEASONS_MIN = 2
TEST_SEASONS = (4, 3, 2, 1)
"""How far a back-test looks ahead: as far as the history allows with `ORIGINS_WANTED` origins."""
ORIGINS_WANTED = 6
ORIGINS_MIN = 2
ORIGINS_MAX = 9
ORIGINS_TO_CHOOSE = 4
"""With fewer, a model may have been lucky: the yardstick stands."""
MARGIN_SE = 1.645
"""Standard errors of the gain by which another model must win: the normal distribution's upper 5 %. With one,
or none, a real trace was forecast worse than by the yardstick on days that nobody had seen
(tests/load/forecast_error.py)."""

Model = Callable[[Sequence[float], int], Sequence[float]]
"""The next values of a history, so many."""


@dataclass(frozen=True, slots=True)
class Errors:
    """What a method was off by in the back-test, as a share of what was; None: nothing was spent then."""

    per_period_ratio: float | None
    """Sum of absolute errors of the periods."""
    of_sum_ratio: float | None
    """Sum of absolute errors of the sums over the whole look ahead."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What comes next."""

    method: str
    """The one that was chosen."""
    why: str
    """For people."""
    values: tuple[float, ...]
    errors: Mapping[str, Errors]
    """By method; the yardstick's always."""
    origins: int
    tested_ahead: int
    """Periods that the back-test looked ahead."""
    level: float
    radii: tuple[float, ...] | None
    """By k - 1: how far off the sum of the next k may be; None: too few origins for the level."""

    def sum_of(self, periods: int) -> float:
        """What the next so many come to."""
        return sum(self.values[:periods])

    def interval_of(self, periods: int) -> tuple[float, float] | None:
        """Where that is expected to lie; never below 0. None: not known."""
        if self.radii is None:
            return None
        if periods <= 0:
            return 0.0, 0.0
        middle, radius = self.sum_of(periods), self.radii[periods - 1]
        return max(0.0, middle - radius), middle + radius


@dataclass(frozen=True, slots=True)
class NoForecast:
    """Why there is none."""

    why: str


@dataclass(frozen=True, slots=True)
class _Tested:
    """One method at every origin."""

    model: Model
    errors: Errors
    misses: tuple[tuple[float, ...], ...] = field(repr=False)
    """By origin: the error of the sum of the first k, signed."""
    offs: tuple[float, ...] = field(repr=False)
    """By origin: the sum of absolute errors of the periods."""


def naive(season: int) -> Model:
    """The yardstick: the same as a season ago."""

    def model(history: Sequence[float], ahead: int) -> list[float]:
        last = history[-season:]
        return [last[index % season] for index in range(ahead)]

    return model


def forecast(
    history: Sequence[float],
    *,
    ahead: int,
    season: int,
    models: Mapping[str, Model],
    period: str = "day",
    level: float = LEVEL,
) -> Forecast | NoForecast:
    """The next `ahead` values.

    Args:
        history: one value a period, the oldest first, none missing; zeros before the first are left out.
        ahead: how many are wanted.
        season: periods after which things repeat.
        models: what may be better than the yardstick, by name; one that raises is left out.
        period: what a value is of, for people.
        level: how often the truth shall lie in the interval, 0 to 1.
    """
    start = next((index for index, value in enumerate(history) if value), None)
    if start is None:
        return NoForecast("nothing was spent")
    known = list(history[start:])
    plan = _plan(len(known), season)
    if plan is None:
        least = (TRAINING_SEASONS_MIN + ORIGINS_MIN) * season
        return NoForecast(f"too little history: {len(known)} whole {period}s, at least {least} are needed")
    tested_ahead, origins = plan
    tested = {NAIVE: _back_test(naive(season), known, tested_ahead, origins=origins)}
    for name, model in models.items():
        found = _tried(model, known, tested_ahead, origins=origins)
        if found is not None:
            tested[name] = found
    method, why = _choice(tested, len(origins), overlap=tested_ahead / season)
    values = _checked(tested[method].model(known, ahead), ahead)
    if values is None:  # it could forecast the past and not the future
        method, why = NAIVE, "the better model failed on the whole history"
        values = list(naive(season)(known, ahead))
    return Forecast(
        method=method,
        why=why,
        values=tuple(values),
        errors={name: each.errors for name, each in tested.items()},
        origins=len(origins),
        tested_ahead=tested_ahead,
        level=level,
        radii=_radii(tested[method].misses, ahead, level),
    )


def _plan(length: int, season: int) -> tuple[int, list[int]] | None:
    """How far ahead to test, and after how many periods to stand; None: too little history."""
    for seasons in TEST_SEASONS:
        tested_ahead = seasons * season
        count = (length - TRAINING_SEASONS_MIN * season - tested_ahead) // season + 1
        if count >= (ORIGINS_MIN if seasons == 1 else ORIGINS_WANTED):
            last = length - tested_ahead
            return tested_ahead, [last - back * season for back in range(min(count, ORIGINS_MAX))]
    return None


def _tried(model: Model, known: Sequence[float], ahead: int, *, origins: Sequence[int]) -> _Tested | None:
    """None: the model cannot be used on this series."""
    try:
        return _back_test(model, known, ahead, origins=origins)
    except (ValueError, ArithmeticError, IndexError, RuntimeError):
        return None


def _back_test(model: Model, known: Sequence[float], ahead: int, *, origins: Sequence[int]) -> _Tested:
    off_sums = whole = 0.0
    misses, offs = [], []
    for origin in origins:
        truth = known[origin : origin + ahead]
        said = _checked(model(known[:origin], ahead), ahead)
        if said is None:
            raise ValueError("a model answered with something that is no forecast")
        gaps = [one - other for one, other in zip(truth, said, strict=True)]
        offs.append(sum(map(abs, gaps)))
        off_sums += abs(sum(gaps))
        whole += sum(map(abs, truth))
        misses.append(tuple(accumulate(gaps)))
    errors = Errors(sum(offs) / whole, off_sums / whole) if whole else Errors(None, None)
    return _Tested(model, errors, tuple(misses), tuple(offs))


def _checked(said: Sequence[float], ahead: int) -> list[float] | None:
    """Nobody is charged less than nothing."""
    values = [float(value) for value in said]
    if len(values) != ahead or not all(map(math.isfinite, values)):
        return None
    return [max(0.0, value) for value in values]


def _choice(tested: Mapping[str, _Tested], origins: int, *, overlap: float) -> tuple[str, str]:
    mark = tested[NAIVE].errors
    if len(tested) == 1:
        return NAIVE, "no other model could be asked"
    if mark.per_period_ratio is None or mark.of_sum_ratio is None:
        return NAIVE, "nothing was spent while it was tested"
    if origins < ORIGINS_TO_CHOOSE:
        return NAIVE, f"{origins} back-tests are too few to prefer another model"
    better = {
        name: each.errors.per_period_ratio
        for name, each in tested.items()
        if each.errors.per_period_ratio is not None
        and each.errors.of_sum_ratio is not None
        and each.errors.of_sum_ratio <= mark.of_sum_ratio
        and _wins(each.offs, tested[NAIVE].offs, overlap=overlap)
    }
    if not better:
        return NAIVE, "no model did better in the back-test by more than luck explains"
    return min(better, key=lambda name: better[name]), "did best in the back-test, by more than luck explains"


def _wins(offs: Sequence[float], marks: Sequence[float], *, overlap: float) -> bool:
    """Closer than the yardstick by more than luck explains.

    Args:
        offs: what a model was off by, by origin.
        marks: likewise the yardstick.
        overlap: seasons that a back-test looks ahead; origins are one apart, so that so many share each day.
    """
    gains = [mark - off for off, mark in zip(offs, marks, strict=True)]
    count = max(1.0, len(gains) / max(1.0, overlap))
    return fmean(gains) > max(0.0, MARGIN_SE * stdev(gains) / math.sqrt(count))


def _radii(misses: Sequence[Sequence[float]], ahead: int, level: float) -> tuple[float, ...] | None:
    rank = math.ceil((len(misses) + 1) * level)
    if rank > len(misses):
        return None
    tested = len(misses[0])
    radii = [sorted(abs(each[index]) for each in misses)[rank - 1] for index in range(min(ahead, tested))]
    # Beyond what was tested: as if the error went on in the same direction.
    radii += [radii[-1] * (index + 1) / tested for index in range(len(radii), ahead)]
    return tuple(accumulate(radii, max))
