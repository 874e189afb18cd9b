"""Leases go to ready replicas, by the pool's rule and with what is known of loads, and never lose count."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backends.breaker import FAILURES_TO_EJECT
from backends.choice import Key, Rule, Why, key_of
from backends.pool import PoolSpec, ReplicaChoiceSpec, ReplicaLoad, ReplicaSnapshot, ReplicaState
from backends.registry import PoolRegistry, ReplicaLease

POOL = PoolSpec.model_validate(
    {
        "name": "plain",
        "driver": "external",
        "urls": ["http://10.0.0.1:8000"],
        "model": {"served_name": "reference", "max_model_len": 1024},
        "batching": {"max_num_seqs": 32, "max_num_batched_tokens": 2048},
        "hardware": {"gpu": "H100", "usd_per_hour": "3"},
        "rates": {"input": "0.10", "cached_input": "0.01", "output": "0.60"},
    }
)
OTHER = POOL.model_copy(update={"name": "other"})
LOAD = ReplicaLoad(1, 2, 0.5, 3, 4, 5, 6, None, None, None, 7.0)


def registry_of(*ports: int) -> PoolRegistry:
    registry = PoolRegistry({"plain": POOL, "other": OTHER})
    registry.set_replicas("plain", {f"plain-{port}": f"http://10.0.0.1:{port}" for port in ports})
    for port in ports:
        registry.set_state(f"plain-{port}", ReplicaState.READY)
    return registry


def only(registry: PoolRegistry) -> ReplicaSnapshot:
    (replica,) = registry.snapshot("plain").replicas
    return replica


def lease_of(registry: PoolRegistry, *, key: Key | None = None) -> ReplicaLease:
    lease = registry.lease("plain", key=key)
    assert lease is not None
    return lease


def test_a_new_replica_gets_nothing_until_it_is_ready() -> None:
    registry = PoolRegistry({"plain": POOL})
    registry.set_replicas("plain", {"plain-0": "http://10.0.0.1:1/"})
    assert registry.lease("plain") is None
    assert only(registry).state is ReplicaState.STARTING
    registry.set_state("plain-0", ReplicaState.READY)
    lease = lease_of(registry)
    assert (lease.pool, lease.replica, lease.url) == ("plain", "plain-0", "http://10.0.0.1:1")


def test_the_less_loaded_replica_is_taken() -> None:
    registry = registry_of(1, 2)
    first, second = lease_of(registry), lease_of(registry)
    assert {first.replica, second.replica} == {"plain-1", "plain-2"}
    second.release()
    assert lease_of(registry).replica == second.replica


def loaded(running: int, waiting: int = 0) -> ReplicaLoad:
    return dataclasses.replace(LOAD, requests_running=running, requests_waiting=waiting)


def test_what_others_have_there_counts() -> None:
    registry = registry_of(1, 2)
    registry.set_load("plain-1", loaded(2, 1))
    registry.set_load("plain-2", loaded(0))
    leases = [lease_of(registry) for _ in range(3)]
    assert {lease.replica for lease in leases} == {"plain-2"}
    for lease in leases:
        lease.release()
    registry.set_load("plain-2", loaded(5))
    assert lease_of(registry).replica == "plain-2"  # one look is a moment
    for _ in range(8):
        registry.set_load("plain-2", loaded(5))
    assert lease_of(registry).replica == "plain-1"


def test_our_own_requests_count_once_whether_the_engine_has_seen_them_or_not() -> None:
    registry = registry_of(1, 2)
    ours = [registry.lease("plain", excluding=frozenset({"plain-2"})) for _ in range(2)]
    registry.set_load("plain-2", loaded(1))
    registry.set_load("plain-1", loaded(2))  # both of ours
    assert lease_of(registry).replica == "plain-2"  # 1 of others' against 2 of ours
    for lease in ours:
        assert lease is not None
        lease.release()
    assert lease_of(registry).replica == "plain-1"  # idle, as we know better than the last scrape


def test_a_replica_that_does_not_say_how_loaded_it_is_attracts_nothing() -> None:
    registry = registry_of(1, 2)
    registry.set_load("plain-1", loaded(4))
    assert (
        registry.lease("plain", excluding=frozenset({"plain-1"})) is not None
    )  # 4 like its sibling, and ours
    assert lease_of(registry).replica == "plain-1"
    registry.set_load("plain-1", None)  # nobody says anything: ours alone, one each
    assert {lease_of(registry).replica for _ in range(2)} == {"plain-1", "plain-2"}


def test_a_pools_load_is_what_the_next_request_would_meet() -> None:
    for how, expected in ((Rule.AFFINITY, 2.0), (Rule.LEAST_LOADED, 1.0), (Rule.ROUND_ROBIN, 2.0)):
        registry = PoolRegistry(
            {"plain": POOL.model_copy(update={"replica_choice": ReplicaChoiceSpec(rule=how)})}
        )
        assert registry.load_of("plain") == 0
        registry.set_replicas("plain", {"plain-1": "http://127.0.0.1:1", "plain-2": "http://127.0.0.1:2"})
        for name, running in (("plain-1", 3), ("plain-2", 1)):
            registry.set_state(name, ReplicaState.READY)
            registry.set_load(name, loaded(running))
        assert registry.load_of("plain") == expected


def test_requests_with_one_key_meet_and_the_key_is_asked_for_only_where_there_is_a_choice() -> None:
    registry = registry_of(1, 2)
    keys = iter([1234] * 5)
    leases = [lease_of(registry, key=keys.__next__) for _ in range(5)]
    assert {(lease.replica, lease.why) for lease in leases} == {(leases[0].replica, Why.AFFINITY)}
    lease = registry.lease("plain", excluding=frozenset({"plain-1"}), key=keys.__next__)  # would raise
    assert lease is not None
    assert (lease.replica, lease.why) == ("plain-2", Why.ONLY)
    assert registry.choices("plain")[Why.AFFINITY] == 5
    assert registry.choices("plain")[Why.ONLY] == 1
    assert not any(registry.choices("other").values())


def test_an_overloaded_replica_passes_its_requests_on() -> None:
    registry = registry_of(1, 2, 3)
    first = lease_of(registry, key=lambda: 99)
    registry.set_load(first.replica, loaded(40))
    for other in {"plain-1", "plain-2", "plain-3"} - {first.replica}:
        registry.set_load(other, loaded(1))
    passed = [lease_of(registry, key=lambda: 99) for _ in range(3)]
    assert {lease.why for lease in passed} == {Why.PASSED_ON}
    (second,) = {lease.replica for lease in passed}
    assert second != first.replica
    for _ in range(20):
        registry.set_load(first.replica, loaded(1))
    assert lease_of(registry, key=lambda: 99).replica == first.replica


def test_a_list_of_addresses_that_changes_moves_no_keys_of_those_that_stay() -> None:
    keys = [key_of(bytes([number])) for number in range(64)]

    def homes(*ports: int) -> list[str]:
        registry = PoolRegistry({"plain": POOL})
        urls = {f"plain-{at}": f"http://10.0.0.1:{port}" for at, port in enumerate(ports)}
        registry.set_replicas("plain", urls)
        for name in urls:
            registry.set_state(name, ReplicaState.READY)
        numbers = iter(keys)
        return [lease_of(registry, key=numbers.__next__).url for _ in keys]

    before, after = homes(1, 2, 3), homes(2, 3)
    gone = "http://10.0.0.1:1"
    assert gone in before
    assert all(new == old for old, new in zip(before, after, strict=True) if old != gone)


def test_excluded_replicas_are_not_taken() -> None:
    registry = registry_of(1, 2)
    taken = {
        lease.replica
        for _ in range(4)
        if (lease := registry.lease("plain", excluding=frozenset({"plain-1"})))
    }
    assert taken == {"plain-2"}
    assert registry.lease("plain", excluding=frozenset({"plain-1", "plain-2"})) is None


def test_a_lease_released_twice_counts_once() -> None:
    registry = registry_of(1)
    lease, other = lease_of(registry), lease_of(registry)
    lease.release()
    lease.release()
    assert only(registry).in_flight == 1
    other.release()
    assert only(registry).in_flight == 0


def test_failures_in_a_row_eject_until_the_monitor_sees_it_serve() -> None:
    registry = registry_of(1)
    for count in range(FAILURES_TO_EJECT):
        assert only(registry).state is ReplicaState.READY
        lease_of(registry).failed(f"failure {count}")
    assert only(registry).state is ReplicaState.UNHEALTHY
    assert only(registry).detail == f"failure {FAILURES_TO_EJECT - 1}"
    assert registry.lease("plain") is None
    registry.set_state("plain-1", ReplicaState.READY)
    assert only(registry).consecutive_failures == 0
    assert registry.lease("plain") is not None


def test_a_success_ends_the_row_of_failures() -> None:
    registry = registry_of(1)
    for _ in range(3 * FAILURES_TO_EJECT):
        lease_of(registry).failed("503")
        lease_of(registry).succeeded()
    assert only(registry).state is ReplicaState.READY


def test_one_lease_counts_one_failure_and_its_later_success_does_not_undo_it() -> None:
    registry = registry_of(1)
    lease = lease_of(registry)
    for _ in range(FAILURES_TO_EJECT):
        lease.failed("broke off")
    lease.succeeded()
    assert only(registry).consecutive_failures == 1
    assert only(registry).state is ReplicaState.READY


def test_a_refused_connection_ejects_at_once() -> None:
    registry = registry_of(1)
    lease_of(registry).failed("connection refused", fatal=True)
    assert registry.lease("plain") is None


def test_the_monitor_saying_ready_again_keeps_what_requests_have_counted() -> None:
    registry = registry_of(1)
    lease_of(registry).failed("500")
    registry.set_state("plain-1", ReplicaState.READY)
    assert only(registry).consecutive_failures == 1


def test_replicas_that_stay_keep_their_counts_and_a_new_address_is_a_new_process() -> None:
    registry = registry_of(1, 2)
    old = registry.lease("plain", excluding=frozenset({"plain-2"}))
    assert old is not None
    registry.set_load("plain-1", LOAD)
    registry.set_replicas("plain", {"plain-1": "http://10.0.0.1:1", "plain-2": "http://10.0.0.1:22"})
    stayed, restarted = registry.snapshot("plain").replicas
    assert (stayed.in_flight, stayed.state, stayed.load) == (1, ReplicaState.READY, LOAD)
    assert (restarted.in_flight, restarted.state, restarted.load) == (0, ReplicaState.STARTING, None)


def test_what_an_old_lease_reports_does_not_touch_the_new_process() -> None:
    registry = registry_of(1)
    old = lease_of(registry)
    registry.set_replicas("plain", {"plain-1": "http://10.0.0.1:99"})
    registry.set_state("plain-1", ReplicaState.READY)
    old.failed("connection reset", fatal=True)
    old.release()
    assert only(registry).state is ReplicaState.READY
    assert only(registry).in_flight == 0


def test_a_replica_belongs_to_one_pool() -> None:
    registry = registry_of(1)
    with pytest.raises(ValueError, match="exists in pool 'plain'"):
        registry.set_replicas("other", {"plain-1": "http://10.0.0.2:1"})


def test_what_is_unknown_is_a_key_error() -> None:
    registry = registry_of(1)
    for call in (
        lambda: registry.lease("none"),
        lambda: registry.snapshot("none"),
        lambda: registry.set_state("none-0", ReplicaState.READY),
        lambda: registry.set_load("none-0", LOAD),
    ):
        with pytest.raises(KeyError):
            call()


def test_snapshots_are_all_pools_in_order() -> None:
    registry = registry_of(1)
    assert [snapshot.spec.name for snapshot in registry.snapshots()] == ["plain", "other"]
    assert [snapshot.ready_count for snapshot in registry.snapshots()] == [1, 0]
    assert registry.specs["plain"] is POOL


class Registry(RuleBasedStateMachine):
    """Any order of leases, reports, state changes and restarts, against a model that only counts."""

    @initialize(count=st.integers(1, 4))
    def begin(self, count: int) -> None:
        self.registry = registry_of(*range(count))
        self.ports = {f"plain-{index}": index for index in range(count)}
        self.open: list[tuple[ReplicaLease, int]] = []
        self.closed: list[ReplicaLease] = []

    def expected_in_flight(self, name: str) -> int:
        return sum(1 for lease, port in self.open if lease.replica == name and port == self.ports[name])

    @rule(excluded=st.sets(st.integers(0, 3)))
    def take(self, excluded: set[int]) -> None:
        names = frozenset(f"plain-{index}" for index in excluded)
        eligible = [
            replica
            for replica in self.registry.snapshot("plain").replicas
            if replica.state is ReplicaState.READY and replica.replica not in names
        ]
        lease = self.registry.lease("plain", excluding=names)
        if lease is None:
            assert not eligible
            return
        (taken,) = (replica for replica in eligible if replica.replica == lease.replica)
        # Of any two replicas the more loaded one is not taken, so the most loaded of all is never.
        assert taken.in_flight <= sorted(replica.in_flight for replica in eligible)[-2:][0]
        self.open.append((lease, self.ports[lease.replica]))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease, _ = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        lease.release()
        self.closed.append(lease)

    @precondition(lambda self: self.closed)
    @rule(data=st.data())
    def release_again(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.closed)).release()

    @precondition(lambda self: self.open)
    @rule(data=st.data(), fatal=st.booleans())
    def fail(self, data: st.DataObject, fatal: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
        data.draw(st.sampled_from(self.open))[0].failed("drawn", fatal=fatal)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.open))[0].succeeded()

    @rule(data=st.data(), state=st.sampled_from(ReplicaState))
    def look(self, data: st.DataObject, state: ReplicaState) -> None:
        self.registry.set_state(data.draw(st.sampled_from(sorted(self.ports))), state)

    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        self.ports[data.draw(st.sampled_from(sorted(self.ports)))] += 100
        self.registry.set_replicas(
            "plain", {name: f"http://10.0.0.1:{port}" for name, port in self.ports.items()}
        )

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "registry"):
            return
        for replica in self.registry.snapshot("plain").replicas:
            assert replica.in_flight == self.expected_in_flight(replica.replica) >= 0


TestRegistryStateMachine = Registry.TestCase


def test_a_copy_takes_the_replica_that_has_room_and_is_told_apart() -> None:
    registry = registry_of(1, 2)
    seats = registry.specs["plain"].batching.max_num_seqs
    ratio = 2 / seats
    tenants = [registry.lease("plain", excluding=frozenset({"plain-2"})) for _ in range(2)]
    copies = [registry.lease_for_copy("plain", room_ratio=ratio) for _ in range(3)]
    assert [None if one is None else one.replica for one in copies] == ["plain-2", "plain-2", None]
    assert not registry.has_room("plain", ratio)
    assert (registry.copies, registry.load_of("plain"), registry.load_without_copies("plain")) == (2, 2, 1)
    assert [each is not None for each in tenants] == [True, True]
    for one in copies[:2] * 2:  # twice does no harm
        assert one is not None
        one.release()
    assert (registry.copies, registry.load_of("plain"), registry.load_without_copies("plain")) == (0, 1, 1)
    assert registry.has_room("plain", ratio)
    registry.set_load("plain-2", loaded(0, waiting=1))
    assert not registry.has_room("plain", ratio), "requests wait there"


def test_a_pool_of_which_nothing_is_ready_has_no_load_and_no_room() -> None:
    registry = registry_of()
    assert registry.load_without_copies("plain") == 0
    assert not registry.has_room("plain", 1.0)
    assert registry.lease_for_copy("plain", room_ratio=1.0) is None


def test_a_copy_takes_nobodys_turn() -> None:
    spec = POOL.model_copy(update={"replica_choice": ReplicaChoiceSpec(rule=Rule.ROUND_ROBIN)})
    registry = PoolRegistry({"plain": spec})
    registry.set_replicas("plain", {f"plain-{port}": f"http://10.0.0.1:{port}" for port in (1, 2)})
    for port in (1, 2):
        registry.set_state(f"plain-{port}", ReplicaState.READY)
    taken = []
    for _ in range(4):
        lease, copy = lease_of(registry), registry.lease_for_copy("plain", room_ratio=0.5)
        assert copy is not None
        taken.append((lease.replica == copy.replica, lease.replica))
        lease.release()
        copy.release()
    assert taken == [(False, "plain-2"), (False, "plain-1")] * 2
