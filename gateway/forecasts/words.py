"""How is an anomaly put, in words and as an alert?"""

from __future__ import annotations

from gateway.alerts.outbox import Alert
from gateway.clock import instant_text
from gateway.forecasts.anomaly_search import Finding
from gateway.forecasts.tables import Anomaly
from gateway.ledger.cuts import MS_PER_DAY, MS_PER_HOUR
from gateway.money import usd_text
from gateway.spend_names import Names

PERMILLE = 1000


def name_of(names: Names, dimension: str | None, value: str | None) -> str | None:
    """What people call it."""
    if dimension is None or value is None:
        return None
    return names.get(dimension, {}).get(value, value)


def window_text(hours: int) -> str:
    """The window of an anomaly."""
    return "the last hour" if hours == 1 else f"the last {hours} hours"


def anomaly_alert(found: Finding, names: Names) -> Alert:
    """What is told of it, once a day."""
    row = Anomaly.model_validate(found.row(found.end_ms))
    who = name_of(names, row.dimension, row.value)
    cause = name_of(names, row.cause_dimension, row.cause_value)
    by = "" if cause is None else f", mostly {row.cause_dimension} {cause}"
    return Alert(
        kind="anomaly",
        topic=f"anomaly/{row.dimension}/{row.value}/{row.day_start_ms // MS_PER_DAY}",
        subject=f"Unusual spend of {row.dimension} {who} in {window_text(row.window_hours)}{by}",
        details={
            "dimension": row.dimension,
            "name": who,
            "id": row.value,
            "from": instant_text(row.end_ms - row.window_hours * MS_PER_HOUR),
            "to": instant_text(row.end_ms),
            "charged_usd": usd_text(row.actual_usd_nanos),
            "usual_usd": usd_text(row.expected_usd_nanos),
            "deviations": row.deviations_permille / PERMILLE,
            "cause_dimension": row.cause_dimension,
            "cause": cause,
            "cause_share_of_excess": None if row.cause_permille is None else row.cause_permille / PERMILLE,
        },
    )
