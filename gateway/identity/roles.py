"""Who may use which route? One table; what is not in it is refused.

`dependencies.guard` asks it for every request that FastAPI routes, `api/edge.py` for the data plane, and a
test walks every route of the program. Paths are templates as the routes write them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What an administrator's key is for."""

    ADMIN = "admin"
    """Everything."""
    OPERATOR = "operator"
    """Pools, policies, evaluations; changes nothing about money."""
    FINANCE = "finance"
    """Spend, budgets, prices, periods; changes nothing about routing."""
    VIEWER = "viewer"
    """Reads."""


class Credential(StrEnum):
    """What a route asks for."""

    NOTHING = "nothing"
    TENANT_KEY = "tenant key"
    ADMIN_KEY = "administrator key"
    LOGIN = "login"
    """The console's cookie."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may use a route."""

    credential: Credential
    roles: frozenset[Role] = frozenset()
    """For administrator keys and logins."""
    is_open_on_loopback: bool = False
    """Whoever asks from this machine needs nothing."""

    def roles_text(self) -> str:
        """The roles, for people."""
        return ", ".join(role for role in Role if role in self.roles)


_OPEN = Rule(Credential.NOTHING)
_TENANT = Rule(Credential.TENANT_KEY)
_READ = Rule(Credential.ADMIN_KEY, frozenset(Role))
_ADMIN = Rule(Credential.ADMIN_KEY, frozenset({Role.ADMIN}))
_MONEY = Rule(Credential.ADMIN_KEY, frozenset({Role.ADMIN, Role.FINANCE}))
_ROUTING = Rule(Credential.ADMIN_KEY, frozenset({Role.ADMIN, Role.OPERATOR}))
_OWN = Rule(Credential.ADMIN_KEY, frozenset(Role))
"""Changes nothing but what belongs to whoever asks."""
_PAGE = Rule(Credential.LOGIN, frozenset(Role))

RULES: Mapping[tuple[str, str], Rule] = {
    # Health and documentation say nothing of anybody.
    ("GET", "/healthz"): _OPEN,
    ("GET", "/readyz"): _OPEN,
    ("GET", "/metrics"): Rule(Credential.ADMIN_KEY, frozenset(Role), is_open_on_loopback=True),
    ("GET", "/docs"): _OPEN,
    ("GET", "/docs/static/{name}"): _OPEN,
    ("GET", "/openapi.json"): _OPEN,
    # Data plane.
    ("POST", "/v1/chat/completions"): _TENANT,
    ("POST", "/v1/completions"): _TENANT,
    ("GET", "/v1/models"): _TENANT,
    ("GET", "/v1/receipts/{request_id}"): _TENANT,
    # Who pays and who calls: whoever issues a key lets somebody spend.
    ("GET", "/admin/v1/tenants"): _READ,
    ("POST", "/admin/v1/tenants"): _ADMIN,
    ("GET", "/admin/v1/tenants/{tenant}"): _READ,
    ("PATCH", "/admin/v1/tenants/{tenant}"): _ADMIN,
    ("POST", "/admin/v1/tenants/{tenant}/retire"): _ADMIN,
    ("GET", "/admin/v1/projects"): _READ,
    ("POST", "/admin/v1/projects"): _ADMIN,
    ("GET", "/admin/v1/projects/{project}"): _READ,
    ("PATCH", "/admin/v1/projects/{project}"): _ADMIN,
    ("POST", "/admin/v1/projects/{project}/retire"): _ADMIN,
    ("GET", "/admin/v1/keys"): _READ,
    ("POST", "/admin/v1/keys"): _ADMIN,
    ("GET", "/admin/v1/keys/{key}"): _READ,
    ("PATCH", "/admin/v1/keys/{key}"): _ADMIN,
    ("POST", "/admin/v1/keys/{key}/rotate"): _ADMIN,
    ("POST", "/admin/v1/keys/{key}/revoke"): _ADMIN,
    # How fast they may spend.
    ("GET", "/admin/v1/limits"): _READ,
    ("GET", "/admin/v1/limits/{scope}/{owner}"): _READ,
    ("PUT", "/admin/v1/limits/{scope}/{owner}"): _MONEY,
    ("DELETE", "/admin/v1/limits/{scope}/{owner}"): _MONEY,
    # How much may be spent.
    ("GET", "/admin/v1/budgets"): _READ,
    ("POST", "/admin/v1/budgets"): _MONEY,
    ("GET", "/admin/v1/budgets/{budget}"): _READ,
    ("PATCH", "/admin/v1/budgets/{budget}"): _MONEY,
    ("POST", "/admin/v1/budgets/{budget}/retire"): _MONEY,
    # Who steers.
    ("GET", "/admin/v1/admin-keys"): _ADMIN,
    ("POST", "/admin/v1/admin-keys"): _ADMIN,
    ("GET", "/admin/v1/admin-keys/{key}"): _ADMIN,
    ("POST", "/admin/v1/admin-keys/{key}/rotate"): _ADMIN,
    ("POST", "/admin/v1/admin-keys/{key}/revoke"): _ADMIN,
    ("GET", "/admin/v1/people"): _ADMIN,
    ("POST", "/admin/v1/people"): _ADMIN,
    ("PATCH", "/admin/v1/people/{person}"): _ADMIN,
    ("POST", "/admin/v1/people/{person}/password"): _ADMIN,
    ("POST", "/admin/v1/people/{person}/retire"): _ADMIN,
    ("POST", "/admin/v1/me/password"): _OWN,
    ("GET", "/admin/v1/audit"): _READ,
    ("GET", "/admin/v1/audit/invariants"): _READ,
    # Supply.
    ("GET", "/admin/v1/pools"): _READ,
    ("GET", "/admin/v1/pools/learned"): _READ,
    # Routing.
    ("GET", "/admin/v1/policies"): _READ,
    ("POST", "/admin/v1/policies"): _ROUTING,
    ("GET", "/admin/v1/policies/active"): _READ,
    ("GET", "/admin/v1/policies/history"): _READ,
    ("GET", "/admin/v1/policies/diff"): _READ,
    ("POST", "/admin/v1/policies/publish"): _ROUTING,
    ("POST", "/admin/v1/policies/rollback"): _ROUTING,
    ("GET", "/admin/v1/policies/canary"): _READ,
    ("POST", "/admin/v1/policies/canary"): _ROUTING,
    ("POST", "/admin/v1/policies/canary/promote"): _ROUTING,
    ("POST", "/admin/v1/policies/canary/stop"): _ROUTING,
    ("GET", "/admin/v1/policies/canary/history"): _READ,
    ("GET", "/admin/v1/policies/shadow"): _READ,
    ("POST", "/admin/v1/policies/shadow"): _ROUTING,
    ("POST", "/admin/v1/policies/shadow/stop"): _ROUTING,
    ("GET", "/admin/v1/policies/shadow/history"): _READ,
    ("GET", "/admin/v1/policies/backtest"): _READ,
    ("POST", "/admin/v1/policies/backtest"): _ROUTING,
    ("GET", "/admin/v1/policies/backtest/{backtest}"): _READ,
    ("POST", "/admin/v1/policies/backtest/{backtest}/cancel"): _ROUTING,
    ("GET", "/admin/v1/policies/{version}"): _READ,
    ("POST", "/admin/v1/policies/{version}/check"): _ROUTING,
    ("POST", "/admin/v1/policies/{version}/activate"): _ROUTING,
    # It tells what is so and changes nothing.
    ("POST", "/admin/v1/policies/explain"): _READ,
    ("POST", "/admin/v1/policies/check"): _READ,
    ("POST", "/admin/v1/policies/diff"): _READ,
    # Money.
    ("GET", "/admin/v1/prices"): _READ,
    ("GET", "/admin/v1/prices/{target}"): _READ,
    ("POST", "/admin/v1/prices/{target}"): _MONEY,
    ("POST", "/admin/v1/prices/{target}/reset"): _MONEY,
    ("GET", "/admin/v1/reports/spend"): _READ,
    ("GET", "/admin/v1/periods"): _READ,
    ("POST", "/admin/v1/periods"): _MONEY,
    ("GET", "/admin/v1/periods/{period}"): _READ,
    ("GET", "/admin/v1/periods/{period}/report"): _READ,
    ("GET", "/admin/v1/periods/{period}/verification"): _READ,
    ("GET", "/admin/v1/periods/{period}/statements/{tenant}"): _READ,
    ("POST", "/admin/v1/periods/{period}/reopen"): _MONEY,
    ("GET", "/admin/v1/adjustments"): _READ,
    ("POST", "/admin/v1/adjustments"): _MONEY,
    ("POST", "/admin/v1/adjustments/{adjustment}/approve"): _MONEY,
    ("POST", "/admin/v1/adjustments/{adjustment}/reject"): _MONEY,
    ("GET", "/admin/v1/reconciliations"): _READ,
    ("POST", "/admin/v1/reconciliations"): _MONEY,
    ("GET", "/admin/v1/reconciliations/{reconciliation}"): _READ,
    ("GET", "/admin/v1/reports/supply"): _READ,
    ("GET", "/admin/v1/reports/savings"): _READ,
    ("GET", "/admin/v1/reports/forecast"): _READ,
    ("GET", "/admin/v1/reports/anomalies"): _READ,
    ("GET", "/admin/v1/alerts"): _READ,
    ("GET", "/admin/v1/reports/budgets"): _READ,
    ("GET", "/admin/v1/exports"): _READ,
    ("GET", "/admin/v1/exports/schedules"): _READ,
    # Console.
    ("GET", "/console/login"): _OPEN,
    ("POST", "/console/login"): _OPEN,
    ("GET", "/console/login/oidc"): _OPEN,
    ("GET", "/console/login/oidc/callback"): _OPEN,
    ("POST", "/console/logout"): _OPEN,
    ("GET", "/console/static/{name}"): _OPEN,
    ("GET", "/console"): _PAGE,
    ("GET", "/console/me"): _PAGE,
    ("GET", "/console/traffic"): _PAGE,
    ("GET", "/console/traffic/pulse"): _PAGE,
    ("GET", "/console/traffic/{request_id}"): _PAGE,
    ("GET", "/console/policies"): _PAGE,
    ("GET", "/console/policies/edit"): _PAGE,
    ("GET", "/console/policies/schema"): _PAGE,
    ("GET", "/console/policies/diff"): _PAGE,
    ("GET", "/console/policies/shadow"): _PAGE,
    ("GET", "/console/policies/version/{version}"): _PAGE,
    ("GET", "/console/pools"): _PAGE,
    ("GET", "/console/pools/{pool}"): _PAGE,
    ("GET", "/console/pools/{pool}/history"): _PAGE,
    ("GET", "/console/audit"): _PAGE,
    ("GET", "/console/overview/forecast"): _PAGE,
    ("GET", "/console/overview/savings"): _PAGE,
    ("GET", "/console/spend"): _PAGE,
    ("GET", "/console/spend/report"): _PAGE,
    ("GET", "/console/spend/supply"): _PAGE,
    ("GET", "/console/spend/supply/report"): _PAGE,
    ("GET", "/console/spend/savings"): _PAGE,
    ("GET", "/console/spend/savings/report"): _PAGE,
    ("GET", "/console/spend/forecast"): _PAGE,
    ("GET", "/console/spend/forecast/report"): _PAGE,
    ("GET", "/console/spend/anomalies"): _PAGE,
    ("GET", "/console/periods"): _PAGE,
    ("GET", "/console/periods/adjustments"): _PAGE,
    ("GET", "/console/periods/bills"): _PAGE,
    ("GET", "/console/periods/bills/{reconciliation}"): _PAGE,
    ("GET", "/console/periods/{period}"): _PAGE,
    ("GET", "/console/periods/{period}/verification"): _PAGE,
    ("GET", "/console/budgets"): _PAGE,
    ("GET", "/console/budgets/{budget}"): _PAGE,
    ("GET", "/console/keys"): _PAGE,
    ("GET", "/console/keys/tenants"): _PAGE,
    ("GET", "/console/keys/tenants/{tenant}"): _PAGE,
    ("GET", "/console/keys/{key}"): _PAGE,
    ("GET", "/console/{path:path}"): _PAGE,
}
