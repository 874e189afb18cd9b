"""Which models does the library have for us? The one door to statsforecast, an optional extra.

Loading it takes seconds and 200 MB, so that only `child.py` does, in a process of its own. Both models are
exponential smoothing: Holt-Winters with a damped trend (ETS A,Ad,A), and a trend by ETS beside a season taken
out by LOESS (MSTL; Bandara, Hyndman, Bergmeir 2021).
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any

from gateway.forecasts.forecast import Model

PACKAGE = "statsforecast"
MISSING = "statsforecast is not installed (pip install 'tollgate[forecast]'): only seasonal-naive is asked"


def is_installed() -> bool:
    """The extra is there."""
    return importlib.util.find_spec(PACKAGE) is not None


def models(season: int) -> dict[str, Model]:
    """What may be better than the yardstick, by name; nothing where the extra is not installed."""
    if not is_installed():
        return {}
    library = importlib.import_module("statsforecast.models")
    numpy = importlib.import_module("numpy")

    def of(made: Any) -> Model:
        def model(history: Sequence[float], ahead: int) -> list[float]:
            with warnings.catch_warnings():  # what it divides by zero is no part of the mean
                warnings.simplefilter("ignore", RuntimeWarning)
                said = made.forecast(numpy.asarray(history, dtype=float), ahead)
            return [float(value) for value in said["mean"]]

        return model

    return {
        "ETS(A,Ad,A)": of(library.AutoETS(season_length=season, model="AAA", damped=True)),
        "MSTL": of(library.MSTL([season], trend_forecaster=library.AutoETS(model="ZZN"))),
    }
