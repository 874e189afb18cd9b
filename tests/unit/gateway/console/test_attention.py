"""Does the overview say what needs attention, the worst first, and nothing when all is well?"""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from backends.breaker import BreakerState, Standing
from backends.pool import PoolSnapshot, PoolSpec, ReplicaLoad, ReplicaSnapshot, ReplicaState
from gateway.console.attention import Attention, attention
from gateway.ledger.budget_store import BudgetState
from gateway.ledger.burn_down import BurnDown, Outlook
from gateway.ledger.reports import NOTHING
from gateway.ledger.tables import Budget
from tests.support.factories import make_pool_spec


def replica(
    name: str = "plain-0", state: ReplicaState = ReplicaState.READY, **more: object
) -> ReplicaSnapshot:
    values: Mapping[str, object] = {
        "pool": "plain",
        "replica": name,
        "url": "http://127.0.0.1:1",
        "state": state,
        "in_flight": 0,
        "load": None,
        "consecutive_failures": 0,
    }
    return ReplicaSnapshot(**(dict(values) | more))  # type: ignore[arg-type]


def pool(*replicas: ReplicaSnapshot) -> PoolSnapshot:
    spec: PoolSpec = make_pool_spec("plain")
    return PoolSnapshot(spec=spec, replicas=replicas)


def load(kv_cache_usage_ratio: float) -> ReplicaLoad:
    return ReplicaLoad(
        requests_running=1,
        requests_waiting=0,
        kv_cache_usage_ratio=kv_cache_usage_ratio,
        prompt_tokens_total=0,
        generation_tokens_total=0,
        prefix_cache_query_tokens_total=0,
        prefix_cache_hit_tokens_total=0,
        draft_steps_total=None,
        draft_tokens_total=None,
        accepted_tokens_total=None,
        scraped_at_s=0.0,
    )


def budget(outlook: Outlook, *, posted: int = 0, is_hard: bool = True) -> BurnDown:
    row = Budget(id="b", name="acme's month", limit_usd_nanos=1000, is_hard=is_hard)  # type: ignore[call-arg]
    return BurnDown(BudgetState(row, 0, None, posted_usd_nanos=posted), outlook, "why")


def test_nothing_needs_attention_when_all_is_well() -> None:
    fine = pool(replica(load=load(0.5)))
    assert attention([fine], burning=[budget(Outlook.LASTS)], today=NOTHING) == []
    assert attention([pool()]) == []  # a pool that nobody has started


@pytest.mark.parametrize(
    ("found", "says", "is_bad"),
    [
        (
            attention([pool(replica(state=ReplicaState.UNHEALTHY, detail="its engine died"))]),
            "Pool plain cannot serve: no replica is ready: its engine died",
            True,
        ),
        (
            attention([pool(replica(), replica("plain-1", ReplicaState.UNHEALTHY, detail="hung"))]),
            "plain-1 is unhealthy: hung",
            False,
        ),
        (
            attention([pool(replica(breaker=Standing(state=BreakerState.OPEN)))]),
            "plain-0 gets no requests",
            False,
        ),
        (attention([pool(replica(load=load(0.95)))]), "cache is 95 % full", False),
        (attention([], burning=[budget(Outlook.SPENT)]), "acme's month is spent", True),
        (attention([], burning=[budget(Outlook.SPENT, is_hard=False)]), "acme's month is spent", False),
        (attention([], burning=[budget(Outlook.RUNS_OUT)]), "runs out before its window ends", False),
        (attention([], burning=[budget(Outlook.LASTS, posted=850)]), "used to 85 %", False),
        (attention([], unshipped=5000), "5,000 attempts wait", False),
    ],
)
def test_each_trouble_has_a_sentence(found: list[Attention], says: str, *, is_bad: bool) -> None:
    assert len(found) == 1
    assert says in found[0].text
    assert (found[0].is_bad, found[0].link.startswith("/console")) == (is_bad, True)


def test_the_worst_comes_first() -> None:
    down = pool(replica(state=ReplicaState.STARTING))
    failed = replace(NOTHING, requests=9, failed_attempts=1, unpriced_attempts=2)
    found = attention([pool(replica(load=load(1.0))), down], today=failed)
    assert [one.is_bad for one in found] == [True, True, True, False]
    assert "10 % of today's attempts failed" in " ".join(one.text for one in found)
    assert "2 attempts of today have no price" in " ".join(one.text for one in found)
