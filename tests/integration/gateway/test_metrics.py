"""Who may read the metrics, and do they count what happened?"""

import re

import httpx

from tests.integration.gateway.rig import ADMIN_KEY, Gateway, bearer
from tests.support.mock_process import MockVllm


def from_address(gateway: Gateway, address: str) -> httpx.AsyncClient:  # noqa: TID251 - a test
    """A client that connects from there."""
    transport = httpx.ASGITransport(gateway.app, client=(address, 40_000))
    return httpx.AsyncClient(transport=transport, base_url="http://tollgate")  # noqa: TID251 - a test


async def test_metrics_are_for_the_machine_itself_and_for_those_with_the_key(gateway: Gateway) -> None:
    admin = gateway.services.admin_key
    async with from_address(gateway, "127.0.0.1") as local:
        assert (await local.get("/metrics")).status_code == 200
        for proxied in ({"x-forwarded-for": "10.1.2.3"}, {"forwarded": "for=10.1.2.3"}):
            assert (await local.get("/metrics", headers=proxied)).status_code == 401
            assert (await local.get("/metrics", headers=proxied | bearer(admin))).status_code == 200
    async with from_address(gateway, "::1") as local:
        assert (await local.get("/metrics")).status_code == 200
    async with from_address(gateway, "10.1.2.3") as remote:
        refused = await remote.get("/metrics")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert (await remote.get("/metrics", headers=bearer(gateway.key))).status_code == 401
        assert (await remote.get("/metrics", headers=bearer(ADMIN_KEY + "x"))).status_code == 401
        assert (await remote.get("/metrics", headers=bearer(admin))).status_code == 200
        assert (await remote.get("/healthz")).json() == {"status": "ok"}
        assert (await remote.get("/readyz")).json() == {
            "status": "ready",
            "replicas_ready": {"speculative": 1, "plain": 1},
            "policy": {"in_force": gateway.services.pipeline.routing.policy.version, "refused": None},
        }


async def _value(gateway: Gateway, sample: str) -> float | None:
    page = (await gateway.client.get("/metrics")).text
    found = re.search(rf"^{re.escape(sample)} (\S+)$", page, flags=re.MULTILINE)
    return None if found is None else float(found[1])


async def test_metrics_count_requests_failures_and_what_is_open(
    gateway: Gateway, speculative: MockVllm
) -> None:
    speculative.fault("status", 503, times=1)
    await gateway.chat("Extract all names: Bob")
    await gateway.chat("Hm", model="nobody")
    await gateway.client.get("/v1/unknown/path")
    await gateway.rows(2)
    chat = 'path="/v1/chat/completions"'
    assert await _value(gateway, f'tollgate_requests_total{{{chat},status="200"}}') == 1
    assert await _value(gateway, f'tollgate_requests_total{{{chat},status="404"}}') == 1
    assert await _value(gateway, 'tollgate_requests_total{path="other",status="404"}') == 1
    assert await _value(gateway, f"tollgate_request_seconds_count{{{chat}}}") == 2
    assert await _value(gateway, 'tollgate_failed_attempts_total{code="upstream_overloaded"}') == 1
    assert await _value(gateway, "tollgate_attempts_open") == 0
    assert await _value(gateway, "tollgate_spool_unshipped") == 0
    assert await _value(gateway, "tollgate_held_usd") == 0
    assert await _value(gateway, 'tollgate_replicas_ready{pool="plain"}') == 1
    age_s = await _value(gateway, "tollgate_keys_age_seconds")
    assert age_s is not None
    assert age_s < 10
