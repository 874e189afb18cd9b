"""What does the process do that forecasts for the one that serves? `python -m gateway.forecasts.child`.

It reads one JSON object from standard input, series and how far to look, and writes one to standard output.
"""

from __future__ import annotations

import os
import sys

import msgspec

from gateway.forecasts import library
from gateway.forecasts.forecast import Forecast, NoForecast, forecast

NICENESS = 10
"""It yields to whatever serves."""


class Errand(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked."""

    series: dict[str, list[float]]
    ahead: int
    season: int
    period: str = "day"


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What is answered, for each series one of both."""

    forecasts: dict[str, Forecast]
    none: dict[str, NoForecast]
    has_library: bool


def answer(errand: Errand) -> Found:
    """Forecast every series."""
    models = library.models(errand.season)
    made = {
        name: forecast(values, ahead=errand.ahead, season=errand.season, models=models, period=errand.period)
        for name, values in errand.series.items()
    }
    return Found(
        forecasts={name: each for name, each in made.items() if isinstance(each, Forecast)},
        none={name: each for name, each in made.items() if isinstance(each, NoForecast)},
        has_library=bool(models),
    )


def main() -> int:
    """Do it; returns the exit status."""
    os.nice(NICENESS)
    errand = msgspec.json.decode(sys.stdin.buffer.read(), type=Errand)
    sys.stdout.buffer.write(msgspec.json.encode(answer(errand)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
