"""How do alerts and anomalies look outside? One form for the API and the command line's `--json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from gateway.alerts.tables import AlertDelivery, AlertMessage
from gateway.clock import instant_text
from gateway.forecasts.tables import Anomaly
from gateway.forecasts.words import PERMILLE, name_of
from gateway.ledger.cuts import MS_PER_HOUR
from gateway.money import usd_text
from gateway.spend_names import Names


class DeliveryView(BaseModel):
    """One message on its way by one channel."""

    channel: str
    state: str = Field(description="delivered, waiting, or given_up")
    failed_attempts: int
    delivered_at: str | None
    next_at: str | None
    last_error: str | None


class AlertView(BaseModel):
    """Something that people were told."""

    id: str = Field(description="the same at every delivery")
    kind: str = Field(description="budget, overrun, anomaly or test")
    at: str
    subject: str
    details: dict[str, Any]
    deliveries: list[DeliveryView] = Field(description="empty: no channel was set up then")


class AlertsView(BaseModel):
    """The newest first."""

    alerts: list[AlertView]


class AnomalyView(BaseModel):
    """Spend that stood out; money in decimal strings of USD."""

    dimension: str
    name: str
    id: str
    since: str
    until: str
    charged_usd: str
    usual_usd: str
    deviations: float = Field(description="robust deviations above what is usual")
    cause_dimension: str | None = Field(description="what explains it; empty: nothing does")
    cause: str | None
    cause_share_ratio: float | None = Field(description="of the excess; above 1 if others fell")


class AnomaliesView(BaseModel):
    """The newest first."""

    period_start: str
    period_end: str
    time_zone: str
    currency: str
    anomalies: list[AnomalyView]


def alert_view(message: AlertMessage, deliveries: Sequence[AlertDelivery]) -> AlertView:
    """A message and how far it got."""
    return AlertView(
        id=message.id,
        kind=message.kind,
        at=instant_text(message.at_ms),
        subject=message.subject,
        details=message.details,
        deliveries=[_delivery(each) for each in deliveries],
    )


def _delivery(each: AlertDelivery) -> DeliveryView:
    state = "waiting" if each.next_at_ms is not None else "given_up"
    return DeliveryView(
        channel=each.channel,
        state=state if each.delivered_at_ms is None else "delivered",
        failed_attempts=each.attempts,
        delivered_at=None if each.delivered_at_ms is None else instant_text(each.delivered_at_ms),
        next_at=None if each.next_at_ms is None else instant_text(each.next_at_ms),
        last_error=each.last_error,
    )


def anomaly_view(row: Anomaly, names: Names) -> AnomalyView:
    """An anomaly, with the names that people use."""
    return AnomalyView(
        dimension=row.dimension,
        name=name_of(names, row.dimension, row.value) or row.value,
        id=row.value,
        since=instant_text(row.end_ms - row.window_hours * MS_PER_HOUR),
        until=instant_text(row.end_ms),
        charged_usd=usd_text(row.actual_usd_nanos),
        usual_usd=usd_text(row.expected_usd_nanos),
        deviations=row.deviations_permille / PERMILLE,
        cause_dimension=row.cause_dimension,
        cause=name_of(names, row.cause_dimension, row.cause_value),
        cause_share_ratio=None if row.cause_permille is None else row.cause_permille / PERMILLE,
    )
