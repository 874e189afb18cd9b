"""Is a jump of spend seen, its cause named, and is quiet spend left alone?"""

from __future__ import annotations

import pytest

from gateway.forecasts.anomalies import HISTORY_HOURS, cause_of, look, share_of, usual
from tests.support.spend_shapes import FIRST_HOUR, hourly

FLOOR = 1.0
END = FIRST_HOUR + HISTORY_HOURS
QUIET = hourly(28, seed=4, noise=0.2)


def _jumped(hours: int, factor: float) -> list[float]:
    return QUIET[:-hours] + [value * factor for value in QUIET[-hours:]]


def test_quiet_spend_alarms_nobody() -> None:
    hours = hourly(33, seed=5, noise=0.3)
    for end in range(HISTORY_HOURS, len(hours)):
        assert look(hours[:end], end_hour=FIRST_HOUR + end, floor=FLOOR) is None, end


@pytest.mark.parametrize(("hours", "factor"), [(1, 8.0), (6, 4.0), (24, 2.0)])
def test_a_jump_is_seen_with_what_it_should_have_been(hours: int, factor: float) -> None:
    found = look(_jumped(hours, factor), end_hour=END, floor=FLOOR)
    assert found is not None
    assert found.actual / found.expected > factor / 1.5
    assert found.deviations > 5


def test_what_is_cheap_new_or_less_than_usual_is_no_anomaly() -> None:
    assert look(_jumped(24, 3.0), end_hour=END, floor=1e6) is None, "below the floor"
    new = [0.0] * (HISTORY_HOURS - 100) + QUIET[-100:-1] + [1e4]
    assert look(new, end_hour=END, floor=FLOOR) is None, "nothing is usual yet"
    assert look(_jumped(24, 0.1), end_hour=END, floor=FLOOR) is None
    assert look([], end_hour=END, floor=FLOOR) is None


def test_a_tenant_that_never_spends_at_night_and_does_is_seen() -> None:
    quiet = [0.0 if hour % 24 < 6 else 2.0 for hour in range(HISTORY_HOURS - 20)]
    night = [*quiet, 40.0]
    assert look(night, end_hour=FIRST_HOUR + len(night), floor=FLOOR) is not None


def test_a_weekend_is_compared_with_weekends() -> None:
    hours = [1.0 if hour // 24 % 7 >= 5 else 10.0 for hour in range(HISTORY_HOURS)]
    assert usual(hours, END)[-1] == 1.0
    hours[-1] = 10.0
    assert look(hours, end_hour=END, floor=FLOOR) is not None


def test_the_cause_is_where_shares_moved_and_not_what_there_is_one_of() -> None:
    half = [value / 2 for value in QUIET]
    jumped = half[:-6] + [value * 9 for value in half[-6:]]
    whole = [one + other for one, other in zip(half, jumped, strict=True)]
    parts = {
        "tenant": {"only": whole},
        "key": {"calm": half, "wild": jumped},
        "pool": {"plain": [value * 0.6 for value in whole], "spec": [value * 0.4 for value in whole]},
    }
    cause = cause_of(parts, end_hour=END, window_hours=6)
    assert cause is not None
    assert (cause.dimension, cause.value) == ("key", "wild")
    assert cause.share == pytest.approx(1, abs=0.1)
    assert share_of(parts["key"], "wild", end_hour=END, window_hours=6) == pytest.approx(1, abs=0.1)
    assert share_of(parts["key"], "unknown", end_hour=END, window_hours=6) == 0
    assert cause_of({"tenant": {"only": whole}}, end_hour=END, window_hours=6) is None
