"""Do copies stand behind tenants' requests, and does what they see of a replica stay with them?"""

from typing import Any

import pytest

from backends.pool import ReplicaState
from backends.registry import PoolRegistry
from gateway.settings import TimeoutSettings
from gateway.upstream.dispatch import COPY_PRIORITY, Dispatcher
from gateway.upstream.retry_budget import RetryBudget
from tests.support.factories import make_decision, make_pool_spec, make_target


@pytest.mark.parametrize(("asked", "sent"), [(20, COPY_PRIORITY), (None, None)])
def test_a_replica_that_fails_a_copy_is_kept_for_tenants(asked: int | None, sent: int | None) -> None:
    registry = PoolRegistry({"plain": make_pool_spec("plain")})
    registry.set_replicas("plain", {"plain-0": "http://127.0.0.1:9"})
    registry.set_state("plain-0", ReplicaState.READY)
    no_client: Any = None
    serving = Dispatcher(
        registry, no_client, TimeoutSettings(), attempts_max=3, retries=RetryBudget(ratio=0, floor_per_s=0)
    )
    copying = serving.for_copies(RetryBudget(ratio=0, floor_per_s=0))
    decision = make_decision(targets=(make_target(pool="plain", priority=asked),))

    ((target, lease),) = copying._candidates(decision, set(), key=lambda: None)
    assert (target.priority, lease.replica, lease.url) == (sent, "plain-0", "http://127.0.0.1:9")
    assert registry.load_of("plain") == 1
    lease.failed("refused", fatal=True)
    lease.succeeded()
    lease.release()
    assert (registry.state("plain-0"), registry.load_of("plain")) == (ReplicaState.READY, 0)

    ((target, lease),) = serving._candidates(decision, set(), key=lambda: None)
    assert target.priority == asked
    lease.failed("refused", fatal=True)
    assert registry.state("plain-0") is ReplicaState.UNHEALTHY
    assert copying.retries is not serving.retries
