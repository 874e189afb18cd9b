"""What does a caller meet whose budget is nearly used up?"""

from gateway.ledger.buckets import Scope, Window
from gateway.ledger.budget_store import Owner, create_budget
from tests.integration.gateway.rig import Gateway, eventually
from tests.support.factories import make_act
from tests.support.mock_process import MockVllm


async def _limit(gateway: Gateway, usd_nanos: int) -> None:
    services = gateway.services
    book_before = services.pipeline._budgets.book  # before the commit: the news of it may be there at once
    async with services.sessions() as session:
        await create_budget(
            session,
            "tight",
            owner=Owner(Scope.TENANT, gateway.tenant_id, gateway.tenant_id),
            window=Window.MONTH,
            limit_usd_nanos=usd_nanos,
            is_hard=True,
            act=make_act(services.clock),
        )
        await session.commit()
    await eventually(lambda: services.pipeline._budgets.book is not book_before)


async def test_a_tight_budget_is_held_against_tokens_that_an_engine_counted(
    gateway: Gateway, speculative: MockVllm
) -> None:
    # 256 tokens for a template at 100 nano-USD each, and a dear one for the answer, would be over this.
    await _limit(gateway, 5_000)
    answers = [await gateway.chat("Extract all names: Bob", max_tokens=1) for _ in range(4)]
    statuses = [answer.status_code for answer in answers]
    assert statuses[0] == 200
    assert statuses[-1] == 402
    refused = answers[-1]
    error = refused.json()["error"]
    assert error["code"] == "budget_exceeded"
    assert "'tight' (month, 0.000005000 USD)" in error["message"]
    assert "begins anew at" in error["message"]
    assert refused.headers["x-should-retry"] == "false"
    rows = await gateway.rows(statuses.count(200))
    spent = sum(row.charge_usd_nanos or 0 for row in rows)
    holds = [row.hold_usd_nanos for row in rows]
    assert spent <= 5_000 < spent + holds[0]
    # An explicit limit on the output is never lowered to make it fit.
    assert (await gateway.chat("Extract all names: Bob", max_tokens=200)).status_code == 402
    # Where nobody can count, bytes are the bound, and the answer is no.
    speculative.fault("hang")
    assert (await gateway.chat("Extract all names: Bob", max_tokens=1)).status_code == 402
