"""How wrong are forecasts beyond what they were chosen by, how often does an interval hold, who is alarmed?

    python -m tests.load.forecast_error --series 12 --tenants 12

Generated series end 28 days before their last: what was forecast is compared with those days, which the
choice has never seen. Real ones are requests by hour of ServeGen (see `servegen_hourly.csv`), forecast a day
ahead from every midnight. Alarms: every hour of a quiet month of each tenant, and jumps put into it.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gateway.forecasts import library
from gateway.forecasts.anomalies import HISTORY_HOURS, look
from gateway.forecasts.forecast import NAIVE, Forecast, forecast, naive
from tests.support.spend_shapes import FIRST_HOUR, HOURS_PER_DAY, SHAPES, daily, hourly

REAL = Path(__file__).with_name("servegen_hourly.csv")
DAYS = 140
AHEAD = 28
MONTH_DAYS = 30
NOISES = (0.15, 0.3, 0.5)
NANOS = 1e9


@dataclass
class Tally:
    """What forecasts came to, against what was."""

    forecasts: int = 0
    chosen: int = 0
    worse_in_back_test: int = 0
    covered: int = 0
    with_interval: int = 0
    off: float = 0.0
    off_naive: float = 0.0
    whole: float = 0.0
    by_shape: dict[str, list[float]] = field(default_factory=dict)

    def add(self, made: Forecast, truth: Sequence[float], *, naive_sum: float, name: str) -> None:
        """One forecast whose truth is known by now."""
        ahead, whole = len(truth), sum(truth)
        self.forecasts += 1
        self.chosen += made.method != NAIVE
        own, mark = made.errors[made.method], made.errors[NAIVE]
        self.worse_in_back_test += (own.per_period_ratio or 0) > (mark.per_period_ratio or 0) or (
            own.of_sum_ratio or 0
        ) > (mark.of_sum_ratio or 0)
        interval = made.interval_of(ahead)
        if interval is not None:
            self.with_interval += 1
            self.covered += interval[0] <= whole <= interval[1]
        off, off_naive = abs(made.sum_of(ahead) - whole), abs(naive_sum - whole)
        self.off, self.off_naive, self.whole = self.off + off, self.off_naive + off_naive, self.whole + whole
        pair = self.by_shape.setdefault(name, [0.0, 0.0, 0.0])
        self.by_shape[name] = [pair[0] + off, pair[1] + off_naive, pair[2] + whole]

    def figures(self) -> dict[str, object]:
        """For the report."""
        return {
            "forecasts": self.forecasts,
            "another_model_chosen": self.chosen,
            "worse_than_naive_in_back_test": self.worse_in_back_test,
            "error_of_sum_unseen": round(self.off / self.whole, 4),
            "error_of_sum_unseen_naive": round(self.off_naive / self.whole, 4),
            "intervals": self.with_interval,
            "coverage_of_80_percent": round(self.covered / max(1, self.with_interval), 3),
            "unseen_error_and_naives_by_shape": {
                name: [round(off / max(whole, 1e-9), 3), round(off_naive / max(whole, 1e-9), 3)]
                for name, (off, off_naive, whole) in self.by_shape.items()
            },
        }


def generated(series: int) -> Tally:
    """Series of every shape."""
    tally, models = Tally(), library.models(7)
    for shape in SHAPES:
        for seed in range(series):
            values = daily(shape, DAYS, seed=seed)
            known, truth = values[:-AHEAD], values[-AHEAD:]
            made = forecast(known, ahead=AHEAD, season=7, models=models)
            assert isinstance(made, Forecast)
            tally.add(made, truth, naive_sum=sum(naive(7)(known, AHEAD)), name=shape)
    return tally


def real(first_day: int = 8) -> Tally:
    """Hours of real clients."""
    with REAL.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    tally, models = Tally(), library.models(HOURS_PER_DAY)
    for name in list(rows[0])[1:]:
        values = [float(row[name]) for row in rows]
        for day in range(first_day, len(values) // HOURS_PER_DAY):
            known, truth = values[: day * HOURS_PER_DAY], values[day * HOURS_PER_DAY :][:HOURS_PER_DAY]
            made = forecast(known, ahead=HOURS_PER_DAY, season=HOURS_PER_DAY, models=models, period="hour")
            if isinstance(made, Forecast):
                mark = sum(naive(HOURS_PER_DAY)(known, HOURS_PER_DAY))
                tally.add(made, truth, naive_sum=mark, name=name)
    return tally


def alarms(tenants: int) -> dict[str, object]:
    """False alarms of quiet months, a day's counted once, and jumps found."""
    found: dict[str, object] = {}
    for noise in NOISES:
        false, hits = 0, dict.fromkeys((1.5, 2.0, 3.0, 5.0), 0)
        for seed in range(tenants):
            hours = [value * NANOS for value in hourly(28 + MONTH_DAYS, seed=seed, noise=noise)]
            false += len(_days_of_alarm(hours, range(HISTORY_HOURS + 1, len(hours) + 1)))
            start = HISTORY_HOURS + 24 * (3 + seed % 5) + 10
            for factor in hits:
                jumped = list(hours)
                jumped[start : start + 24] = [value * factor for value in hours[start : start + 24]]
                hits[factor] += bool(_days_of_alarm(jumped, range(start + 1, start + 25)))
        found[f"noise_{noise}"] = {
            "tenant_months": tenants,
            "false_alarms_per_tenant_month": round(false / tenants, 3),
            "jumps_of_a_day_found_by_factor": {str(factor): hits[factor] / tenants for factor in hits},
        }
    return found


def _days_of_alarm(hours: Sequence[float], ends: range) -> set[int]:
    return {
        (end - 1) // HOURS_PER_DAY
        for end in ends
        if look(hours[:end], end_hour=FIRST_HOUR + end, floor=NANOS) is not None
    }


def main() -> None:
    """Measure, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=12, help="of each shape")
    parser.add_argument("--tenants", type=int, default=12, help="quiet months by noise")
    parser.add_argument("--only", choices=("alarms", "real", "generated"), help="one part")
    asked = parser.parse_args()
    parts: dict[str, Callable[[], object]] = {
        "alarms": lambda: alarms(asked.tenants),
        "real": lambda: real().figures(),
        "generated": lambda: generated(asked.series).figures(),
    }
    for name, part in parts.items():
        if asked.only in {None, name}:
            print(json.dumps({name: part()}, indent=2), flush=True)


if __name__ == "__main__":
    main()
