"""Which pages are there for operators and whoever is on call?"""

from __future__ import annotations

from fastapi import APIRouter

from gateway.console.audit import show_audit
from gateway.console.navigation import HOME
from gateway.console.policies import edit_policy, show_diff, show_policies, show_policy_version, show_schema
from gateway.console.pools import Pools, show_pool_history
from gateway.console.receipt import show_receipt
from gateway.console.shadow import show_shadow
from gateway.console.traffic import Traffic


def add_operations(router: APIRouter) -> None:
    """Add their routes."""
    traffic, pools = Traffic(), Pools()
    for path, handler in (
        ("/traffic", traffic.show),
        ("/traffic/pulse", traffic.show_pulse),
        ("/traffic/{request_id}", show_receipt),
        ("/policies", show_policies),
        ("/policies/edit", edit_policy),
        ("/policies/schema", show_schema),
        ("/policies/diff", show_diff),
        ("/policies/shadow", show_shadow),
        ("/policies/version/{version}", show_policy_version),
        ("/pools", pools.show),
        ("/pools/{pool}", pools.show_one),
        ("/pools/{pool}/history", show_pool_history),
        ("/audit", show_audit),
    ):
        router.add_api_route(HOME + path, handler, methods=["GET"])
