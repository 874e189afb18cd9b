"""How do budgets look outside? Money as decimal strings in USD, instants ISO 8601 in UTC."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from gateway.admin.views import moment, optional_moment
from gateway.ledger.buckets import Scope, Window, window_at
from gateway.ledger.budget_store import BudgetState
from gateway.ledger.tables import BudgetAlert, BudgetWindow
from gateway.money import usd_text

_EXAMPLE: dict[str, Any] = {
    "id": "bud_019e6f0c1a2b4c5d6e7f80910a1b2c3d",
    "name": "search-monthly",
    "scope": "project",
    "of": "prj_019e6f0c1a2b4c5d6e7f80910a1b2c3d",
    "owner": "acme/search",
    "tenant_id": "ten_019e6f0c1a2b4c5d6e7f80910a1b2c3d",
    "window": "month",
    "limit_usd": "100.000000000",
    "is_hard": True,
    "alert_percents": [50, 80, 100],
    "created_at": "2026-11-20T12:00:00Z",
    "retired_at": None,
    "state": {
        "window_start": "2026-11-01T00:00:00Z",
        "window_end": "2026-12-01T00:00:00Z",
        "posted_usd": "42.500000000",
        "lent_usd": "1.200000000",
        "unattributed_usd": "0.000000000",
        "overage_usd": "0.000000000",
        "left_usd": "56.300000000",
        "used_percent": "42.5",
    },
}


class BudgetStateView(BaseModel):
    """How a budget stands in its window of now."""

    window_start: datetime | None = Field(description="null: it counts from its beginning")
    window_end: datetime | None = Field(description="first instant of the next window; null: never")
    posted_usd: str = Field(description="spent and booked")
    lent_usd: str = Field(description="lent to processes that serve, and not booked yet")
    unattributed_usd: str = Field(description="lent to processes that died and whose records are missing")
    overage_usd: str = Field(description="part of what is booked that nothing lent covered")
    left_usd: str = Field(
        description="neither booked nor lent; below zero: a soft or lowered limit is passed"
    )
    used_percent: str | None = Field(description="booked share of the limit, rounded down; null: limit 0")


class BudgetView(BaseModel):
    """How much may be spent in a window of time, by whom, and how much is."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    id: str
    name: str
    scope: Scope
    of: str = Field(description="id of the tenant, project or key; name=value of a tag")
    owner: str = Field(description="what people call it")
    tenant_id: str | None
    window: Window
    limit_usd: str
    is_hard: bool = Field(description="refuses what it cannot hold; false: only tells")
    alert_percents: list[int]
    created_at: datetime
    retired_at: datetime | None = Field(description="since then it binds nobody")
    state: BudgetStateView


class BudgetAlertView(BaseModel):
    """A share of the limit was used up."""

    percent: int
    at: datetime
    posted_usd: str


class BudgetWindowView(BaseModel):
    """A window in which the budget was used."""

    window_start: datetime | None
    window_end: datetime | None
    limit_usd: str
    posted_usd: str
    overage_usd: str


class BudgetDetailView(BudgetView):
    """A budget with its history."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**_EXAMPLE, "alerts": [], "windows": []}]})

    alerts: list[BudgetAlertView] = Field(description="told in this window")
    windows: list[BudgetWindowView] = Field(description="the last ones, the newest first")


def budget_view(state: BudgetState, owner: str) -> BudgetView:
    """A budget.

    Args:
        state: the budget and how it stands.
        owner: what people call its owner.
    """
    budget = state.budget
    permille = state.used_permille
    return BudgetView(
        id=budget.id,
        name=budget.name,
        scope=Scope(budget.scope),
        of=budget.scope_id,
        owner=owner,
        tenant_id=budget.tenant_id,
        window=Window(budget.window),
        limit_usd=usd_text(budget.limit_usd_nanos),
        is_hard=budget.is_hard,
        alert_percents=list(budget.alert_percents),
        created_at=moment(budget.created_at_ms),
        retired_at=optional_moment(budget.retired_at_ms),
        state=BudgetStateView(
            window_start=_start(state.window_start_ms),
            window_end=optional_moment(state.window_end_ms),
            posted_usd=usd_text(state.posted_usd_nanos),
            lent_usd=usd_text(state.leased_usd_nanos),
            unattributed_usd=usd_text(state.unattributed_usd_nanos),
            overage_usd=usd_text(state.overage_usd_nanos),
            left_usd=usd_text(state.left_usd_nanos),
            used_percent=None if permille is None else f"{permille // 10}.{permille % 10}",
        ),
    )


def budget_detail_view(
    state: BudgetState, owner: str, *, alerts: Sequence[BudgetAlert], windows: Sequence[BudgetWindow]
) -> BudgetDetailView:
    """A budget with what was told of it and its last windows."""
    kind = Window(state.budget.window)
    return BudgetDetailView(
        **dict(budget_view(state, owner)),
        alerts=[
            BudgetAlertView(
                percent=alert.percent, at=moment(alert.at_ms), posted_usd=usd_text(alert.posted_usd_nanos)
            )
            for alert in alerts
        ],
        windows=[
            BudgetWindowView(
                window_start=_start(window.window_start_ms),
                window_end=optional_moment(window_at(kind, window.window_start_ms)[1]),
                limit_usd=usd_text(window.limit_usd_nanos),
                posted_usd=usd_text(window.posted_usd_nanos),
                overage_usd=usd_text(window.overage_usd_nanos),
            )
            for window in windows
        ],
    )


def _start(window_start_ms: int) -> datetime | None:
    return moment(window_start_ms) if window_start_ms else None
