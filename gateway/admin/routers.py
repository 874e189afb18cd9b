"""Which rooms does the control plane have? Their routes, for the app."""

from __future__ import annotations

from fastapi import APIRouter

from gateway.admin import (
    adjustments,
    admin_keys,
    alerts,
    audit,
    backtests,
    budgets,
    canaries,
    exports,
    forecast,
    keys,
    learned,
    limits,
    me,
    people,
    periods,
    policies,
    policy_check,
    policy_explain,
    pools,
    prices,
    projects,
    reconciliations,
    savings,
    shadows,
    statements,
    supply,
    tenants,
    usage,
)

_ROOMS = (
    usage,
    exports,
    tenants,
    projects,
    keys,
    limits,
    budgets,
    admin_keys,
    people,
    me,
    pools,
    learned,
    canaries,
    shadows,
    backtests,
    policy_check,
    policies,
    prices,
    audit,
    supply,
    savings,
    forecast,
    alerts,
    policy_explain,
    periods,
    statements,
    adjustments,
    reconciliations,
)

ROUTERS: tuple[APIRouter, ...] = tuple(room.router for room in _ROOMS)
