"""Which routers do operators of the routing work with? Those with fixed words before those with a version."""

from __future__ import annotations

from gateway.admin import backtests, canaries, policies, policy_explain

ROUTING = (canaries.router, backtests.router, policies.router, policy_explain.router)
