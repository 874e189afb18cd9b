"""How does a forecast look outside? One form for the API's answers and the command line's `--json`."""

from __future__ import annotations

from pydantic import BaseModel, Field

from gateway.clock import instant_text
from gateway.forecasts.forecast import NAIVE, Errors, Forecast
from gateway.forecasts.outlook import Estimate, Line, SpendOutlook
from gateway.money import usd_text


class EstimateView(BaseModel):
    """Money in decimal strings of USD."""

    usd: str
    low_usd: str | None = Field(description="empty: how sure it is is not known")
    high_usd: str | None


class BackTestView(BaseModel):
    """What a method was off by when it forecast what is known today, as a share of what was."""

    method: str
    day_error_ratio: float | None = Field(description="of single days; empty: nothing was spent then")
    sum_error_ratio: float | None = Field(description="of the whole look ahead")


class ForecastLineView(BaseModel):
    """One tenant, pool, the others together, or all."""

    name: str
    booked_usd: str = Field(description="in this month until now")
    method: str | None = Field(description="empty: there is no forecast")
    why: str = Field(description="why this method, or why there is no forecast")
    month: EstimateView | None = Field(description="the whole calendar month")
    next_30_days: EstimateView | None = Field(description="from today's start")
    back_tests: list[BackTestView] = Field(description="the method's own first")
    back_test_origins: int = Field(description="from so many earlier days it was forecast")
    back_test_days: int = Field(description="and so many days ahead")
    days: list[str] = Field(description="USD of each day from today on")


class ForecastView(BaseModel):
    """What tenants will be charged."""

    by: str
    as_of: str
    first_day: str = Field(description="where the forecast begins: today's start")
    month_end: str
    time_zone: str
    currency: str
    level: float = Field(description="how often the truth shall lie in the interval")
    lines: list[ForecastLineView] = Field(description="the total last; lines need not add up to it")
    note: str


def forecast_view(made: SpendOutlook) -> ForecastView:
    """A forecast for machines."""
    levels = [line.forecast.level for line in made.lines if line.forecast is not None]
    return ForecastView(
        by=made.by,
        as_of=instant_text(made.at_ms),
        first_day=instant_text(made.today_ms),
        month_end=instant_text(made.month_end_ms),
        time_zone="UTC",
        currency="USD",
        level=levels[0] if levels else 0.0,
        lines=[_line(line) for line in made.lines],
        note=made.note,
    )


def _line(line: Line) -> ForecastLineView:
    made = line.forecast
    return ForecastLineView(
        name=line.name,
        booked_usd=usd_text(line.booked_usd_nanos),
        method=None if made is None else made.method,
        why=line.why_not if made is None else made.why,
        month=_estimate(line.month),
        next_30_days=_estimate(line.next_days),
        back_tests=[] if made is None else _back_tests(made),
        back_test_origins=0 if made is None else made.origins,
        back_test_days=0 if made is None else made.tested_ahead,
        days=[] if made is None else [usd_text(round(value)) for value in made.values],
    )


def _estimate(made: Estimate | None) -> EstimateView | None:
    if made is None:
        return None
    low, high = made.low_usd_nanos, made.high_usd_nanos
    return EstimateView(
        usd=usd_text(made.usd_nanos),
        low_usd=None if low is None else usd_text(low),
        high_usd=None if high is None else usd_text(high),
    )


def _back_tests(made: Forecast) -> list[BackTestView]:
    order = sorted(made.errors, key=lambda name: (name != made.method, name != NAIVE, name))
    return [_back_test(name, made.errors[name]) for name in order]


def _back_test(name: str, errors: Errors) -> BackTestView:
    return BackTestView(
        method=name, day_error_ratio=errors.per_period_ratio, sum_error_ratio=errors.of_sum_ratio
    )
