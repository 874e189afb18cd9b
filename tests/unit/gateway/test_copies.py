"""Is what waits to be copied bounded, and is a copy only made while it may be?"""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from backends.pool import ReplicaState
from backends.registry import PoolRegistry
from gateway.copies import Copier, RequestCopy, payer_of
from gateway.errors import NoEligibleTarget
from gateway.identity.auth import Caller
from gateway.identity.shedding import Shedder
from gateway.inference import AttemptState, Payer
from gateway.ledger.buckets import Bucket
from gateway.ledger.budgets import Holds, Lot, Reservation
from gateway.ledger.evaluation import is_of_evaluation, shadow_key, shadow_owner
from gateway.ledger.posting import charges_by_bucket
from gateway.ledger.records import OURS, Ended
from gateway.ledger.settlement import OpenAttempt, Outcome
from gateway.money import UsdNanos
from gateway.plan import Beside
from gateway.routing.shadows import Shadow, Terms
from gateway.routing.split import Split, Stickiness, Unit
from gateway.settings import ShadowSettings
from tests.support.clock import MovableClock
from tests.support.factories import (
    make_call,
    make_decision,
    make_end,
    make_pool_spec,
    make_price,
    make_start,
    make_target,
)

SPLIT = Split(-1, 1.0, Stickiness.CONVERSATION, frozenset(), frozenset())


class Served:
    """What serves tenants, as far as the copier looks at it; the candidate refuses to be asked."""

    def __init__(self, *, in_flight_max: int = 100) -> None:
        self.clock = MovableClock()
        self.is_stopping = False
        self.registry: PoolRegistry | None = None
        self.shedder = Shedder(lambda: in_flight_max, weights={})
        self.shedder.admit("default", "acme").leave()
        self.shadow(1)

    def shadow(self, number: int | None) -> None:
        self.routing = SimpleNamespace(beside=None if number is None else beside(number, self.clock))

    def plan_copy(self, *_: Any, **__: Any) -> Any:
        raise LookupError("a bug")

    async def answer(self, *_: Any) -> Any:
        raise NoEligibleTarget("all are taken", removed_by_rules=False)


def beside(number: int, clock: MovableClock) -> Beside:
    terms = Terms(SPLIT, "bud_1", clock.epoch_ms() + 60_000)
    shadow = Shadow(number, "next@2", "now@1", 1, terms, clock.epoch_ms(), "ops", None)
    return Beside(SPLIT, routing=SimpleNamespace(), shadow=shadow)  # type: ignore[arg-type]  # never asked


def caller(*, is_internal_only: bool = False, salt: str = "aa") -> Caller:
    return Caller("key", "ten_1", "acme", "prj_1", "default", salt, b"", is_internal_only)


@pytest.fixture
def served() -> Served:
    return Served()


def copier_of(served: Served, **settings: Any) -> Copier:
    def away() -> Any:
        raise OSError("no database is here")

    sessions: Any = away
    pipeline: Any = served
    return Copier(pipeline, pipeline, settings=ShadowSettings(**settings), sessions=sessions)


def offer(copier: Copier, served: Served, count: int = 1, **call: Any) -> None:
    for _ in range(count):
        at: RequestCopy = copier.of(
            make_call(**call), caller(), "req_1", unit=Unit(-1, 1), beside=beside(1, served.clock)
        )
        at.offer()


def test_what_waits_is_bounded_by_count_and_by_bytes(served: Served) -> None:
    copier = copier_of(served, queue_max=3)
    offer(copier, served, 5, body_bytes=10)
    assert dict(copier.skips) == {"full": 2}
    copier = copier_of(served, queue_bytes_max=25)
    offer(copier, served, 5, body_bytes=10)
    assert dict(copier.skips) == {"full": 3}


def test_nothing_waits_for_a_shadow_that_is_over(served: Served) -> None:
    copier = copier_of(served)
    served.shadow(2)
    offer(copier, served)
    served.shadow(None)
    offer(copier, served)
    served.shadow(1)
    served.is_stopping = True
    offer(copier, served)
    assert dict(copier.skips) == {"ended": 3}


def test_nothing_of_an_internal_tenant_waits(served: Served) -> None:
    copier = copier_of(served)
    own = caller(is_internal_only=True)
    kept = copier.of(make_call(), own, "req_1", unit=Unit(-1, 1), beside=beside(1, served.clock))
    assert kept.is_kept_inside
    kept.offer()
    assert dict(copier.skips) == {"internal_only": 1}


@pytest.mark.parametrize(
    ("passed_s", "in_flight_max", "why"),
    [(31.0, 100, "late"), (61.0, 100, "ended"), (0.0, 1, "loaded"), (0.0, 100, "bug")],
)
async def test_a_copy_is_made_in_time_and_with_room_and_survives_bugs(
    passed_s: float, in_flight_max: int, why: str
) -> None:
    served = Served(in_flight_max=in_flight_max)
    copier = copier_of(served, concurrency_max=1)
    offer(copier, served)
    served.clock.move(passed_s)
    running = asyncio.get_running_loop().create_task(copier.run())
    for _ in range(100):
        await asyncio.sleep(0)
    assert (dict(copier.skips), copier.under_way) == ({why: 1}, 0)
    copier.stop()
    await running


@pytest.mark.parametrize(("under_way", "why"), [(3, "no_replica"), (4, "loaded")])
async def test_a_copy_that_finds_no_replica_is_counted_by_what_tenants_have_there(
    served: Served, *, under_way: int, why: str
) -> None:
    copier = copier_of(served)
    served.registry = PoolRegistry({"plain": make_pool_spec("plain")})  # 8 seats
    served.registry.set_replicas("plain", {"plain-0": "http://127.0.0.1:9"})
    served.registry.set_state("plain-0", ReplicaState.READY)
    tenants = [served.registry.lease("plain") for _ in range(under_way)]
    copy = copier.of(make_call(), caller(), "req_1", unit=Unit(-1, 1), beside=beside(1, served.clock))
    decision = make_decision(targets=(make_target(pool="plain"),))
    plan: Any = SimpleNamespace(call=copy.call, decision=decision)
    assert (await copier._sent(copy, plan), len(tenants)) == (why, under_way)


@pytest.mark.parametrize(("under_way", "has_room"), [(3, True), (4, False)])
def test_room_is_looked_for_in_the_pool_that_would_be_asked(
    served: Served, *, under_way: int, has_room: bool
) -> None:
    copier = copier_of(served)
    registry = PoolRegistry({name: make_pool_spec(name) for name in ("asleep", "plain", "idle")})  # 8 seats
    for name in ("plain", "idle"):
        registry.set_replicas(name, {f"{name}-0": "http://127.0.0.1:9"})
        registry.set_state(f"{name}-0", ReplicaState.READY)
    tenants = [registry.lease("plain") for _ in range(under_way)]
    served.registry = registry
    targets = tuple(make_target(pool=name) for name in ("asleep", "plain", "idle"))
    plan: Any = SimpleNamespace(decision=make_decision(targets=targets))
    assert (copier._has_room_in(plan), len(tenants)) == (has_room, under_way)


def test_copies_are_the_platforms_and_apart_in_the_engines_cache() -> None:
    first, second = payer_of(caller(), 1), payer_of(caller(salt="bb"), 1)
    assert (first.tenant_id, first.project_id, first.key_id) == (OURS, "evaluation", "shadow-1")
    assert not first.caches_answers
    assert first.limits is None
    assert (
        len({caller().cache_salt, first.cache_salt, second.cache_salt, payer_of(caller(), 2).cache_salt}) == 4
    )
    assert (shadow_owner(3).scope_id, shadow_owner(3).tenant_id) == (shadow_key(3), OURS)
    assert [is_of_evaluation(name) for name in ("evaluation", "shadow-12", "shadow-x", "search")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("state", list(AttemptState))
def test_the_platform_pays_for_its_own_attempts_however_they_end_and_its_budget_holds_them(
    state: AttemptState,
) -> None:
    ends: list[Any] = []
    settlement: Any = SimpleNamespace(
        is_stopping=False, clock=MovableClock(), spool=SimpleNamespace(end=ends.append)
    )
    lot = Lot(Bucket("bud_1", 0), granted_usd_nanos=10_000_000)
    held = Reservation(Holds(), UsdNanos(5_000_000), [lot], counted=[lot.bucket])
    start = make_start(tenant_id=OURS, buckets=(("bud_1", 0),), estimated_input_tokens=10)
    attempt = OpenAttempt(settlement, start, price=make_price(), reservation=held)
    charged = attempt.end(Outcome(state=state, usage=None, produced_tokens=5))
    held.end()
    assert charged
    (end,) = ends
    assert end.payer is Payer.PLATFORM
    assert (lot.spent_usd_nanos, lot.held_usd_nanos) == (charged, 0)
    assert charges_by_bucket([Ended(start, end)]) == {lot.bucket: charged}


def test_what_the_platform_pays_for_tenants_is_in_nobodys_budget() -> None:
    start = make_start(buckets=(("bud_1", 0),))
    failed = make_end(state=AttemptState.FAILED, payer=Payer.PLATFORM, charge_usd_nanos=7)
    assert charges_by_bucket([Ended(start, failed)]) == {}
