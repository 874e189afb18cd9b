"""Do copies stand behind tenants' requests, and does what they see of a replica stay with them?"""

from typing import Any

import pytest

from backends.pool import ReplicaState
from backends.registry import PoolRegistry
from gateway.errors import UpstreamError, UpstreamUnavailable
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
    copying = serving.for_copies(RetryBudget(ratio=0, floor_per_s=0), room_ratio=0.5)
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


@pytest.mark.parametrize(("under_way", "copies_go_to"), [(3, ["plain-0", "spare-0"]), (4, [])])
def test_a_copy_goes_where_room_is_to_spare_or_nowhere(under_way: int, copies_go_to: list[str]) -> None:
    registry = PoolRegistry({name: make_pool_spec(name) for name in ("plain", "spare")})  # 8 seats each
    for name in ("plain", "spare"):
        registry.set_replicas(name, {f"{name}-0": "http://127.0.0.1:9"})
        registry.set_state(f"{name}-0", ReplicaState.READY)
    no_client: Any = None
    generous = RetryBudget(ratio=1, floor_per_s=100)
    serving = Dispatcher(registry, no_client, TimeoutSettings(), attempts_max=3, retries=generous)
    copying = serving.for_copies(generous, room_ratio=0.5)
    decision = make_decision(targets=(make_target(pool="plain"), make_target(pool="spare")))
    tenants = [registry.lease("plain") for _ in range(under_way)]

    def tried(dispatcher: Dispatcher) -> list[str]:
        found = []
        for _, lease in dispatcher._candidates(decision, set(), key=lambda: None):
            found.append(lease.replica)
            lease.release()
        return found

    assert tried(copying) == copies_go_to, "a pool that is busy is not left for the next one"
    assert tried(serving) == ["plain-0", "spare-0"]
    assert (len(tenants), registry.copies) == (under_way, 0)


@pytest.mark.parametrize(("is_other_ready", "copies_go_to"), [(True, []), (False, ["spare-0"])])
def test_a_copy_that_is_refused_at_the_door_waits_for_no_room_elsewhere(
    *, is_other_ready: bool, copies_go_to: list[str]
) -> None:
    registry = PoolRegistry({name: make_pool_spec(name) for name in ("plain", "spare")})
    registry.set_replicas("plain", {f"plain-{number}": f"http://127.0.0.{number}:9" for number in range(2)})
    registry.set_replicas("spare", {"spare-0": "http://127.0.0.1:8"})
    for name in ("plain-0", "plain-1", "spare-0"):
        registry.set_state(name, ReplicaState.READY)
    tenants = [registry.lease("plain", excluding=frozenset({"plain-0"})) for _ in range(4)]
    no_client: Any = None
    generous = RetryBudget(ratio=1, floor_per_s=100)
    serving = Dispatcher(registry, no_client, TimeoutSettings(), attempts_max=4, retries=generous)
    copying = serving.for_copies(generous, room_ratio=0.5)
    decision = make_decision(targets=(make_target(pool="plain"), make_target(pool="spare")))

    tries = copying._candidates(decision, set(), key=lambda: None)
    _, lease = next(tries)
    lease.release()
    assert (lease.replica, len(tenants)) == ("plain-0", 4), "the only one with room"
    if not is_other_ready:
        registry.set_state("plain-1", ReplicaState.UNHEALTHY)
    found = [one.replica for _, one in tries]
    assert found == copies_go_to, "a tenant's request would be sent to plain-1, if that can take one"


@pytest.mark.parametrize("is_copy", [True, False])
@pytest.mark.parametrize("was_accepted", [True, False])
def test_a_copy_that_cost_something_is_not_tried_again(*, is_copy: bool, was_accepted: bool) -> None:
    registry = PoolRegistry({"plain": make_pool_spec("plain")})
    registry.set_replicas("plain", {"plain-0": "http://127.0.0.1:9", "plain-1": "http://127.0.0.1:10"})
    for name in ("plain-0", "plain-1"):
        registry.set_state(name, ReplicaState.READY)
    no_client: Any = None
    generous = RetryBudget(ratio=1, floor_per_s=100)
    dispatcher = Dispatcher(registry, no_client, TimeoutSettings(), attempts_max=3, retries=generous)
    if is_copy:
        dispatcher = dispatcher.for_copies(generous, room_ratio=0.5)
    failures: list[UpstreamError] = []
    tries = dispatcher._tries(
        make_decision(targets=(make_target(pool="plain"),)), failures, set(), key=lambda: None
    )
    next(tries)[1].release()
    failed = UpstreamUnavailable("it failed")
    failed.was_accepted = was_accepted
    failures.append(failed)
    # Its hold is of one attempt; what was not accepted cost nothing.
    assert (next(tries, None) is not None) == (not was_accepted or not is_copy)
    assert registry.load_of("plain") <= 1  # what is held is given back when the iterator goes
