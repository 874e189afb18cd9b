"""How long does a decision take, with economics and without?

    python -m tests.load.decision_time

CPU of one process per request in steady state: the course that is found, predictions for two pools, the
choice, the bounds and the receipt's text. Each figure is the least of five rounds; `by_the_policy` is the
same with `economics.enabled: false`. `with_20_rules` is that with a policy of 20 rules of which the last
matches, half of them excluded by who asks and half to be looked at for each call; `rule_alone` is what finds
the rule. Prints JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Final

from backends.pool import ReplicaState
from backends.registry import PoolRegistry
from gateway.clock import Clock
from gateway.course import Course, Courses
from gateway.economist import Economist
from gateway.inference import Task, TaskType
from gateway.pricing.book import Prices
from gateway.routing.decide import decide, match_of
from gateway.routing.learning import Evidence, Lesson, fold
from gateway.routing.learning_store import LearnedKey, LearnedRow
from gateway.routing.policy import Policy
from gateway.routing.priors import Priors
from gateway.routing.rules import Match, Situation, is_measured
from tests.support.factories import POLICY_TEXT, make_call, make_policy, make_pool_spec, make_price, make_task

ROUNDS: Final = 5
CALLS: Final = 20_000
TENANT: Final = "ten_1"


def measured(work: Callable[[], object]) -> float:
    """Microseconds of CPU for one call of `work`, the least of the rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(CALLS):
            work()
        best = min(best, (time.process_time() - started) / CALLS)
    return round(best * 1e6, 2)


def fleet() -> PoolRegistry:
    """Two pools of two replicas that are ready."""
    registry = PoolRegistry({name: make_pool_spec(name) for name in ("speculative", "plain")})
    for pool in ("speculative", "plain"):
        registry.set_replicas(pool, {f"{pool}-{i}": f"http://127.0.0.1:{i + 1}" for i in range(2)})
        for i in range(2):
            registry.set_state(f"{pool}-{i}", ReplicaState.READY)
    return registry


def economist_of(registry: PoolRegistry, clock: Clock) -> Economist:
    """One that has seen a hundred requests at each pool."""
    economist = Economist(registry, Priors(registry.specs), clock=clock)
    rows = []
    for pool in registry.specs:
        steps, accepted = (10, 20) if pool == "speculative" else (None, None)
        one = Lesson(pool, "code", TENANT, 90, 0.2, steps, accepted, 1.0, 30.0, 11.0, 20.0, 10.0)
        evidence = fold(Evidence(), [one] * 100)
        keys = (LearnedKey(pool, "code", ""), LearnedKey(pool, "", ""))
        rows += [LearnedRow(key, 100, clock.epoch_ms(), evidence) for key in keys]
    economist.take(rows)
    return economist


RULES: Final = (
    "rules:\n"
    + "".join(
        f"  - {{name: tenant-{i}, when: {{tenant: [t{i}, u{i}], task: [code, qa]}}, use: [plain]}}\n"
        for i in range(10)
    )
    + "".join(
        f"  - {{name: hour-{i}, when: {{time: {{from_hour: {i}, to_hour: {i + 1}}}, tools: true}},"
        " use: [plain]}\n"
        for i in range(9)
    )
    + "  - {name: everybody, when: {model: auto}, use: [speculative, plain]}\n"
)


def with_rules(registry: PoolRegistry, prices: Prices) -> dict[str, float]:
    """What a call costs where the last of 20 rules decides."""
    policy, call, task = make_policy(POLICY_TEXT + RULES), make_call(body_bytes=900), make_task(TaskType.CODE)
    courses, unpriced = Courses(), prices.refused
    pools = {each.spec.name: each for each in registry.snapshots()}

    def rule() -> tuple[Situation, Match | None]:
        situation = Situation("acme", "search", (("team", "ads"),), "key1", 1_700_000_000_000, {}, None)
        return situation, match_of(call, task, policy, latency_class="default", situation=situation)

    def one() -> object:
        situation, match = rule()

        def make() -> Course:
            return Course(
                decide(call, task, policy, pools=pools, situation=situation), prices, task=task, baseline=None
            )

        part = None if match is None else (match.rule.index, match.branch, match.low)
        key = ("auto", task, False, False, "default", False, unpriced, registry.ready_pools(), part)
        course = courses.find(key, make, policy=policy, prices=prices).fitting(call)
        is_measured(course.decision.terms, usually=False)
        return course.receipt(call, course.bounds(call))

    return {"with_20_rules_us": measured(one), "rule_alone_us": measured(rule)}


def main() -> None:
    """Measure and print."""
    policies: dict[str, Policy] = {
        "by_the_policy": make_policy(),
        "with_economics": make_policy(POLICY_TEXT + "economics: {enabled: true}\n"),
    }
    registry, clock = fleet(), Clock()
    economist = economist_of(registry, clock)
    call = make_call(body_bytes=900, declared_task=TaskType.CODE)
    prices = Prices({name: make_price(f"{name}@0") for name in registry.specs})
    found: dict[str, float] = {}
    for name, policy in policies.items():
        task = make_task(TaskType.CODE)
        pools = {each.spec.name: each for each in registry.snapshots()}
        course = Course(decide(call, task, policy, pools=pools), prices, task=task, baseline=None)

        def one(policy: Policy = policy, course: Course = course, task: Task = task) -> object:
            fitting = course.fitting(call)
            if not policy.economics.is_enabled:
                return fitting.receipt(call, fitting.bounds(call))
            led, forecasts = economist.order(
                fitting, call, task, tenant_id=TENANT, latency_class="default", policy=policy
            )
            bounds = led.bounds(call)
            texts = None if forecasts is None else forecasts.texts(len(bounds))
            return led.receipt(call, bounds, texts)

        def order(policy: Policy = policy, course: Course = course, task: Task = task) -> object:
            return economist.order(
                course, call, task, tenant_id=TENANT, latency_class="default", policy=policy
            )

        found[f"{name}_us"] = measured(one)
        if policy.economics.is_enabled:
            found["order_alone_us"] = measured(order)
    found |= with_rules(registry, prices)
    found["economics_add_us"] = round(found["with_economics_us"] - found["by_the_policy_us"], 2)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
