"""Does a process make of what is known what follows from it, for each call?"""

from __future__ import annotations

from typing import Any

import pytest

from backends.pool import ReplicaLoad, ReplicaState
from backends.pool_sections import BatchingSpec, LatencyTargets
from backends.registry import PoolRegistry
from gateway.course import Course
from gateway.economist import Economist, Forecasts
from gateway.inference import TaskSource, TaskType
from gateway.pricing.book import Prices
from gateway.routing.decide import decide
from gateway.routing.economics import GATE_NEVER, Why
from gateway.routing.learning import SECONDS_HALF, Evidence, Lesson, fold
from gateway.routing.learning_store import LearnedKey, LearnedRow
from gateway.routing.priors import Priors
from tests.support.clock import MovableClock
from tests.support.factories import POLICY_TEXT, make_call, make_policy, make_pool_spec, make_price, make_task

POOLS = ("speculative", "plain")


def lesson(pool: str, *, accepted: int = 25, step_ms: float = 10.0, output: int = 40) -> Lesson:
    steps, taken = (10, accepted) if pool == "speculative" else (None, None)
    return Lesson(pool, "code", "ten_1", output, 0.0, steps, taken, 0.0, 20.0, step_ms, 20.0, 10.0)


class Rig:
    """An economist of two pools with a replica each."""

    def __init__(self, economics: str = "{enabled: true}", *, draw: float = 0.99, **spec: Any) -> None:
        self.clock = MovableClock()
        self.registry = PoolRegistry({name: make_pool_spec(name, **spec) for name in POOLS})
        for name in POOLS:
            self.registry.set_replicas(name, {f"{name}-0": "http://127.0.0.1:1"})
            self.registry.set_state(f"{name}-0", ReplicaState.READY)
        self.economist = Economist(
            self.registry, Priors(self.registry.specs), clock=self.clock, draw=lambda: draw
        )
        self.policy = make_policy(f"{POLICY_TEXT}economics: {economics}\n")
        self.prices = Prices({name: make_price(f"{name}@0") for name in POOLS})

    def learn(self, *lessons: Lesson, tenant: str = "") -> None:
        for pool in POOLS:
            mine = [each for each in lessons if each.pool == pool]
            tasks = ("code",) if tenant else ("code", "")
            if mine:
                self.economist.take(
                    LearnedRow(
                        LearnedKey(pool, task, tenant),
                        len(mine),
                        self.clock.epoch_ms(),
                        fold(Evidence(), mine),
                    )
                    for task in tasks
                )

    def order(
        self, *, declared: bool = True, tier: str = "default", tenant: str = "ten_2", **call: Any
    ) -> tuple[list[str], Why | None, Forecasts]:
        made, task = make_call(**call), make_task(TaskType.CODE)
        if not declared:
            task = type(task)(type=task.type, source=TaskSource.SIGNAL, confidence=0.7)
        pools = {each.spec.name: each for each in self.registry.snapshots()}
        course = Course(decide(made, task, self.policy, pools=pools), self.prices, task=task, baseline=None)
        led, forecasts = self.economist.order(
            course, made, task, tenant_id=tenant, latency_class=tier, policy=self.policy
        )
        assert forecasts is not None
        return [each.pool for each in led.decision.targets], led.why, forecasts


def load(running: int, waiting: int = 0, *, kv: float = 0.1) -> ReplicaLoad:
    return ReplicaLoad(running, waiting, kv, 0, 0, 0, 0, None, None, None, scraped_at_s=0.0)


def test_before_anything_is_measured_the_policys_order_holds() -> None:
    rig = Rig()
    targets, why, forecasts = rig.order()
    assert (targets, why) == (["speculative", "plain"], Why.POLICY)
    assert [each.pool for each in forecasts.outlooks] == targets
    assert forecasts.of("plain") is forecasts.predictions[1]
    assert forecasts.of("elsewhere") is None


def test_what_is_read_counts_from_the_next_call_on() -> None:
    rig = Rig()
    rig.learn(*[lesson("speculative", accepted=1, step_ms=20.0)] * 50, *[lesson("plain")] * 50)
    targets, why, forecasts = rig.order()
    assert (targets, why) == (["plain", "speculative"], Why.COST)
    assert [each.pool for each in forecasts.outlooks] == targets
    rig.learn(*[lesson("speculative", accepted=35, step_ms=12.0)] * 50)
    assert rig.order()[:2] == (["speculative", "plain"], Why.POLICY)
    assert rig.economist.turned["cost"] == rig.economist.turned["policy"] == 1


def test_evidence_that_nobody_renews_fades_until_the_policy_holds_again() -> None:
    rig = Rig()
    rig.learn(*[lesson("speculative", accepted=1, step_ms=20.0)] * 50, *[lesson("plain")] * 50)
    assert rig.order()[1] is Why.COST
    rig.clock.move(SECONDS_HALF * 5)
    rig.economist.take(())
    assert rig.order()[1] is Why.POLICY


@pytest.mark.parametrize(
    ("declared", "tier", "draw", "why"),
    [
        (False, "default", 0.0, Why.EXPLORATION),
        (False, "flex", 0.0, Why.EXPLORATION),
        (False, "default", 0.11, Why.POLICY),
        (True, "default", 0.0, Why.POLICY),
        (False, "priority", 0.0, Why.POLICY),
    ],
)
def test_only_what_nobody_declared_or_hurries_may_explore(
    *, declared: bool, tier: str, draw: float, why: Why
) -> None:
    rig = Rig("{enabled: true, exploration: 0.1}", draw=draw)
    targets, found, _ = rig.order(declared=declared, tier=tier)
    assert found is why
    assert targets[0] == ("plain" if why is Why.EXPLORATION else "speculative")


def test_load_moves_predictions_at_once() -> None:
    rig = Rig()
    _, _, idle = rig.order()
    leases = [rig.registry.lease("speculative") for _ in range(20)]
    _, _, busy = rig.order()
    assert len(leases) == 20
    before, after = idle.of("speculative"), busy.of("speculative")
    assert before is not None
    assert after is not None
    assert after.queue_s > before.queue_s == 0  # 8 seats


def test_a_full_cache_leaves_no_more_seats_than_are_taken() -> None:
    rig = Rig(batching=BatchingSpec(max_num_seqs=64, max_num_batched_tokens=1024))
    rig.registry.set_load("plain-0", load(10, 5, kv=0.99))
    assert rig.economist.outlook("plain", TaskType.CODE).seats == 10
    rig.registry.set_load("plain-0", load(10, 0, kv=0.99))
    assert rig.economist.outlook("plain", TaskType.CODE).seats == 64


def test_targets_are_the_policys_or_the_pool_files() -> None:
    slow = LatencyTargets(ttft_p95_ms=1e-3)
    assert Rig(latency_targets=slow).order()[1] in {Why.LATENCY, Why.POLICY}
    rig = Rig("{enabled: true, latency_targets: {priority: {tpot_p95_ms: 0.001}}}", latency_targets=slow)
    outlooks = rig.order(tier="priority")[2].outlooks
    (known,) = rig.economist._known.values()
    assert [target.tpot_s for target in known.targets] == [1e-6, 1e-6]
    rig.order(tier="flex")
    assert [each.targets[0].ttft_s for each in rig.economist._known.values()] == [None, 1e-6]
    assert len(outlooks) == 2


def test_a_tenants_own_answers_count_once_there_are_enough() -> None:
    rig = Rig()
    rig.learn(*[lesson("plain", output=40)] * 60)
    rig.learn(*[lesson("plain", output=900)] * 10, tenant="ten_9")
    assert rig.order(tenant="ten_9")[2].outlooks[0].output_tokens < 100
    rig.learn(*[lesson("plain", output=900)] * 60, tenant="ten_9")
    assert rig.order(tenant="ten_9")[2].outlooks[0].output_tokens > 700
    assert rig.order(tenant="ten_1")[2].outlooks[0].output_tokens < 100


def test_a_tenants_own_acceptance_counts_once_there_is_enough_of_it() -> None:
    rig = Rig()
    rig.learn(*[lesson("speculative", accepted=30)] * 60, *[lesson("plain")] * 60)
    rig.learn(*[lesson("speculative", accepted=0, step_ms=20.0)] * 60, tenant="ten_9")
    assert rig.order(tenant="ten_1")[2].outlooks[0].tokens_per_step > 3.5
    of_nine = rig.order(tenant="ten_9")[2].of("speculative")
    everybodys = rig.order(tenant="ten_1")[2].of("speculative")
    assert of_nine is not None
    assert everybodys is not None
    assert of_nine.tpot_s > 2 * everybodys.tpot_s


def test_a_limit_on_the_output_bounds_what_is_expected_of_it() -> None:
    rig = Rig()
    short, long = rig.order(max_tokens=1)[2], rig.order()[2]
    assert short.predictions[0].total_s < long.predictions[0].total_s


def test_gates_are_known_of_pools_that_speculate_and_in_force_once_measured() -> None:
    rig = Rig(batching=BatchingSpec(max_num_seqs=256, max_num_batched_tokens=1024))
    assert rig.economist.gates("plain", TaskType.CODE) == {}
    assert rig.order()[2].outlooks[0].gate == GATE_NEVER
    rig.learn(*[lesson("speculative", accepted=8)] * 70, *[lesson("plain")] * 70)
    (gate,) = rig.economist.gates("speculative", TaskType.CODE).values()
    assert 1 < gate.least < gate.middle < gate.most < 256
    assert rig.order()[2].outlooks[0].gate == pytest.approx(gate.most)


def test_what_is_known_of_a_pool_that_is_gone_is_left_alone() -> None:
    rig = Rig()
    rig.economist.take([LearnedRow(LearnedKey("gone", "code", ""), 1, 0, Evidence())])
    rig.economist.take([LearnedRow(LearnedKey("plain", "gone", ""), 1, 0, Evidence())])
    assert rig.economist.rows() == {}


def ruled(rules: str, economics: str = "{enabled: false}") -> Rig:
    rig = Rig(economics)
    rig.policy = make_policy(f"{POLICY_TEXT}economics: {economics}\nrules:\n{rules}")
    return rig


def test_a_rules_objective_beats_the_latency_class() -> None:
    # The speculating pool is quicker, the plain one cheaper.
    quick = Lesson("speculative", "code", "ten_1", 40, 0.0, 10, 15, 0.0, 20.0, 12.0, 20.0, 10.0)
    known = [quick] * 50 + [lesson("plain", step_ms=16.0)] * 50
    found = {}
    for objective in ("cost", "latency"):
        for tier in ("priority", "flex"):
            rig = ruled(f"  - {{name: r, use: [plain, speculative], objective: {objective}}}\n")
            rig.learn(*known)
            found[objective, tier] = rig.order(tier=tier)[:2]
    assert found["latency", "flex"] == found["latency", "priority"]
    assert found["cost", "flex"] == found["cost", "priority"]
    assert found["latency", "flex"][1] is Why.SPEED


def test_a_rules_p95_limits_are_the_candidates_targets() -> None:
    rules = "  - {name: r, use: [plain, speculative], limits: {tpot_p95_ms: LIMIT}}\n"
    known = [lesson("speculative", accepted=30)] * 50 + [lesson("plain", step_ms=30.0)] * 50
    for limit, is_missed in ((10, True), (5_000, False)):
        rig = ruled(rules.replace("LIMIT", str(limit)))
        rig.learn(*known)
        targets, why, _ = rig.order(tier="flex")
        assert (targets[0], why is Why.LATENCY) == ("speculative", is_missed)


def test_a_question_counts_nothing_and_keeps_nothing() -> None:
    rig = Rig()
    rig.order()
    before = (dict(rig.economist.turned), rig.economist._policy, dict(rig.economist._known))
    call, task = make_call(), make_task(TaskType.CODE)
    draft = make_policy(f"{POLICY_TEXT}economics: {{enabled: true, exploration: 0.2}}\n")
    pools = {each.spec.name: each for each in rig.registry.snapshots()}
    course = Course(decide(call, task, draft, pools=pools), rig.prices, task=task, baseline=None)
    _, forecasts = rig.economist.order(
        course, call, task, tenant_id="", latency_class="default", policy=draft, is_question=True
    )
    assert forecasts is not None
    assert before == (rig.economist.turned, rig.economist._policy, rig.economist._known)


class CountingPriors(Priors):
    """Counts how often it is asked."""

    asked = 0

    def pace(self, *args: Any, **more: Any) -> Any:
        self.asked += 1
        return super().pace(*args, **more)


def test_two_policies_beside_each_other_share_what_is_worked_out() -> None:
    rig = Rig()
    priors = CountingPriors(rig.registry.specs)
    rig.economist = Economist(rig.registry, priors, clock=rig.clock, draw=lambda: 0.99)
    active = rig.policy
    rig.order()
    once = priors.asked
    candidate = make_policy(f"{POLICY_TEXT}economics: {{enabled: true, switch_margin: 0.3}}\n")
    for policy in (candidate, active) * 5:
        rig.policy = policy
        rig.order()
    assert priors.asked == once > 0
    stricter = "{enabled: true, latency_targets: {default: {ttft_p95_ms: 1}}}"
    rig.policy = make_policy(f"{POLICY_TEXT}economics: {stricter}\n")
    rig.order()
    assert priors.asked == 2 * once, "another latency is another question"


def test_copies_turn_no_tenants_call_but_are_told() -> None:
    rig = Rig(batching=BatchingSpec(max_num_seqs=8, max_num_batched_tokens=1024, enable_prefix_caching=False))
    rig.learn(*(lesson(pool, accepted=0) for pool in POOLS for _ in range(30)))
    pools, why, idle = rig.order()
    first = pools[0]
    copies = [rig.registry.lease_for_copy(first, room_ratio=1.0) for _ in range(6)]
    assert all(copies)
    beside_copies = rig.order()
    for copy in copies:
        assert copy is not None
        copy.release()
    leases = [rig.registry.lease(first) for _ in range(6)]
    among_tenants = rig.order()
    assert len(leases) == 6
    assert among_tenants[0] != pools, "so many requests of tenants turn it"
    assert beside_copies[:2] == (pools, why)
    # What a receipt says, and what is learned from, is how long it takes beside them.
    for pool in pools:
        assert beside_copies[2].of(pool) == among_tenants[2].of(pool)
    assert beside_copies[2].of(first) != idle.of(first)
