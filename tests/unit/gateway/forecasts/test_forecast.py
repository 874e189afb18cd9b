"""Is a forecast never worse than seasonal-naive in the back-test, and is what is not known said?"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gateway.forecasts import library
from gateway.forecasts.child import Errand, answer
from gateway.forecasts.forecast import NAIVE, Forecast, NoForecast, forecast, naive
from tests.support.spend_shapes import SHAPES, daily

AHEAD = 28


def _made(history: Sequence[float], **models: object) -> Forecast:
    made = forecast(history, ahead=AHEAD, season=7, models=models)  # type: ignore[arg-type]
    assert isinstance(made, Forecast), made
    return made


def _perfect(truth: Sequence[float]) -> object:
    return lambda history, ahead: truth[len(history) : len(history) + ahead]


def test_what_repeats_is_forecast_without_an_error() -> None:
    made = _made([1.0, 2, 3, 4, 5, 6, 7] * 12)
    assert made.method == NAIVE
    assert made.values == (1.0, 2, 3, 4, 5, 6, 7) * 4
    assert made.errors[NAIVE].per_period_ratio == 0
    assert made.interval_of(AHEAD) == (112, 112)


@pytest.mark.parametrize("days", [0, 1, 13, 27])
def test_too_little_history_is_said_and_no_number(days: int) -> None:
    made = forecast([5.0] * days, ahead=7, season=7, models={})
    assert isinstance(made, NoForecast)
    assert ("at least 28 are needed" in made.why) == bool(days)


def test_zeros_before_the_first_spend_are_no_history() -> None:
    made = forecast([0.0] * 100 + [1.0] * 20, ahead=7, season=7, models={})
    assert made == NoForecast("too little history: 20 whole days, at least 28 are needed")
    assert forecast([0.0] * 100, ahead=7, season=7, models={}) == NoForecast("nothing was spent")


def test_who_stopped_spending_is_forecast_to_spend_nothing() -> None:
    made = _made([9.0] * 30 + [0.0] * 100)
    assert made.sum_of(AHEAD) == 0


def test_a_better_model_is_taken_and_its_error_stands_beside_the_naive_one() -> None:
    truth = [float(day) for day in range(1, 121 + AHEAD)]
    made = _made(truth[:120], oracle=_perfect(truth))
    assert made.method == "oracle"
    assert made.errors["oracle"].of_sum_ratio == 0
    naives = made.errors[NAIVE].of_sum_ratio
    assert naives is not None
    assert naives > 0.1
    assert sum(made.values) == sum(truth[120:])


def test_a_model_that_is_better_by_the_day_and_worse_in_the_sum_is_not_taken() -> None:
    fortnight = [10.0, 14.0, 6.0, *[10.0] * 5, 6.0, 14.0, *[10.0] * 4]

    def shifted(known: Sequence[float], ahead: int) -> list[float]:
        # Naive is off by 8 on two days of every other week, and right in the sum.
        return [fortnight[(len(known) + index) % 14] + 0.2 for index in range(ahead)]

    history = fortnight * 9

    made = _made(history, shifted=shifted)
    own, mark = made.errors["shifted"], made.errors[NAIVE]
    assert own.per_period_ratio is not None
    assert mark.per_period_ratio is not None
    assert own.per_period_ratio < mark.per_period_ratio
    assert made.method == NAIVE


def test_a_model_that_was_lucky_once_is_not_taken() -> None:
    truth = daily("weekly", 120, seed=1)

    def lucky(known: Sequence[float], ahead: int) -> Sequence[float]:
        # Of nine origins it knows one, and is as good as naive elsewhere.
        return truth[len(known) : len(known) + ahead] if len(known) == 71 else naive(7)(known, ahead)

    made = _made(truth, lucky=lucky)
    own, mark = made.errors["lucky"], made.errors[NAIVE]
    assert made.origins == 9
    assert (own.per_period_ratio or 1) < (mark.per_period_ratio or 0)
    assert (own.of_sum_ratio or 1) < (mark.of_sum_ratio or 0)
    assert made.method == NAIVE
    assert "than luck explains" in made.why


def test_models_that_fail_or_talk_nonsense_are_left_out() -> None:
    def failing(known: Sequence[float], ahead: int) -> list[float]:
        raise ValueError(len(known), ahead)

    def endless(known: Sequence[float], ahead: int) -> list[float]:
        del known
        return [float("nan")] * ahead

    made = _made([3.0] * 60, failing=failing, endless=endless, short=lambda _, __: [1.0])
    assert set(made.errors) == {NAIVE}
    assert made.method == NAIVE


def test_few_back_tests_choose_no_other_model_and_give_no_interval() -> None:
    truth = [float(day) for day in range(1, 71)]
    made = _made(truth[:28], oracle=_perfect(truth))
    assert made.origins == 2
    assert made.method == NAIVE
    assert "too few" in made.why
    assert made.interval_of(7) is None


def test_intervals_grow_with_the_look_ahead_and_are_never_below_zero() -> None:
    made = _made(daily("weekly", 120, seed=1))
    bounds = [made.interval_of(days) for days in range(1, AHEAD + 1)]
    widths = [high - low for low, high in (each for each in bounds if each is not None)]
    assert len(widths) == AHEAD
    assert all(low >= 0 for low, _ in (each for each in bounds if each is not None))
    assert made.radii is not None
    assert list(made.radii) == sorted(made.radii)
    far = forecast(daily("weekly", 45, seed=1), ahead=31, season=7, models={})
    assert isinstance(far, Forecast)
    assert far.tested_ahead < 31
    assert far.interval_of(31) is not None, "beyond what was tested, as if the error went on"


def test_the_library_never_does_worse_than_naive_in_the_back_test() -> None:
    series = {shape: daily(shape, 75, seed=2) for shape in SHAPES[3:5]} | {
        "trend": [100 + 3.0 * day + 20 * (day % 7 == 0) for day in range(75)],
        "zero": [0.0] * 100,
        "new": [1.0] * 9,
    }
    assert library.is_installed()
    found = answer(Errand(series=series, ahead=AHEAD, season=7))
    assert found.has_library
    assert set(found.forecasts) == {*SHAPES[3:5], "trend"}
    assert set(found.none) == {"zero", "new"}
    for name, made in found.forecasts.items():
        assert len(made.errors) == 3, name
        own, mark = made.errors[made.method], made.errors[NAIVE]
        assert (own.per_period_ratio or 0) <= (mark.per_period_ratio or 0), name
        assert (own.of_sum_ratio or 0) <= (mark.of_sum_ratio or 0), name
    assert found.forecasts["trend"].method != NAIVE, "growth is what naive cannot see"


def test_naive_repeats_the_last_season() -> None:
    assert naive(3)([1, 2, 3, 4, 5, 6], 5) == [4, 5, 6, 4, 5]
