"""Does a receipt tell a tenant what was done and what it cost, and nobody else anything?"""

import asyncio

from sqlalchemy import text

from tests.integration.gateway.rig import PATIENCE_S, Gateway, bearer, eventually
from tests.support.mock_process import MockVllm


async def test_a_receipt_tells_what_was_decided_used_and_charged(gateway: Gateway) -> None:
    answer = await gateway.chat(
        "Extract all names: Bob met Ann, who told nobody of the secret.",
        metadata={"team": "search"},
        max_tokens=9,
    )
    request_id = answer.headers["x-request-id"]
    await eventually(lambda: not gateway.services.spool.unshipped_count)
    found = await gateway.client.get(f"/v1/receipts/{request_id}")
    assert found.status_code == 200, found.text
    receipt = found.json()
    assert "secret" not in found.text
    assert (receipt["id"], receipt["model"], receipt["tags"]) == (request_id, "auto", {"team": "search"})
    assert receipt["charge_usd"] == answer.headers["x-tollgate-cost-usd"]
    assert receipt["task"] == {
        "type": "extraction",
        "source": "signal",
        "confidence": receipt["task"]["confidence"],
        "nature": "predictable",
    }
    decision = receipt["decision"]
    assert decision["policy"] == answer.headers["x-tollgate-policy"]
    assert [each["target"] for each in decision["candidates"]] == ["speculative", "plain"]
    assert receipt["hold_usd"] == max(each["charge_usd_at_most"] for each in decision["candidates"])
    (attempt,) = receipt["attempts"]
    assert (attempt["target"], attempt["state"], attempt["payer"]) == ("speculative", "answered", "tenant")
    assert attempt["tokens"] == receipt["tokens"]
    assert receipt["tokens"]["output"] == 9
    assert 0 < attempt["speculation"]["acceptance"] <= 1
    assert attempt["timing_ms"]["total"] >= attempt["timing_ms"]["generation"] >= 0
    # The default task, chat, is creative: the baseline is the plain pool, whose output is dearer here.
    assert receipt["baseline"]["target"] == "plain"
    assert receipt["baseline"]["charge_usd"] > receipt["charge_usd"]


async def test_a_fallback_is_one_receipt_with_both_attempts(gateway: Gateway, plain: MockVllm) -> None:
    plain.fault("status", 500)
    answer = await gateway.chat("Tell me a story about a fox.")
    await eventually(lambda: not gateway.services.spool.unshipped_count)
    receipt = (await gateway.client.get(f"/v1/receipts/{answer.headers['x-request-id']}")).json()
    assert [(each["number"], each["state"], each["payer"]) for each in receipt["attempts"]] == [
        (1, "failed", "platform"),
        (2, "answered", "tenant"),
    ]
    assert receipt["charge_usd"] == receipt["attempts"][1]["charge_usd"]


async def test_nobody_else_can_read_it_and_nonsense_is_not_found(gateway: Gateway) -> None:
    answer = await gateway.chat("Hm")
    await eventually(lambda: not gateway.services.spool.unshipped_count)
    path = f"/v1/receipts/{answer.headers['x-request-id']}"
    other = await gateway.issue_key("rival")
    assert (await gateway.client.get(path, headers=bearer(other))).status_code == 404
    assert (await gateway.client.get(path)).status_code == 200
    for nonsense in ("req_zzz", "x", "req_" + "f" * 32, "req_" + "0" * 12):
        found = await gateway.client.get(f"/v1/receipts/{nonsense}")
        assert (found.status_code, found.json()["error"]["code"]) == (404, "not_found")
    assert (await gateway.client.post(path)).status_code == 405
    assert (await gateway.client.get("/v1/receipts/")).status_code == 404


async def test_a_receipt_can_be_read_within_a_second(gateway: Gateway) -> None:
    answer = await gateway.chat("Hm")
    path = f"/v1/receipts/{answer.headers['x-request-id']}"
    # It is there after the next batch, well within a second; a busy machine gets more time.
    deadline_s = asyncio.get_running_loop().time() + PATIENCE_S
    while (await gateway.client.get(path)).status_code != 200:
        assert asyncio.get_running_loop().time() < deadline_s
        await asyncio.sleep(0.02)
    async with gateway.services.sessions() as session:
        counts = await session.execute(text("SELECT count(*) FROM receipts"))
        assert counts.scalar_one() == 1
