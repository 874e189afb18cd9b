"""Which routers does an operator's editor of policies work with?"""

from __future__ import annotations

from gateway.admin import policy_check, policy_explain

STEERING = (policy_explain.router, policy_check.router)
