"""Where does a call go, and why?

Overflow is for want of capacity: external targets stand behind every pool that may serve the call, also when
all of those are down. A call that no pool of its alias may ever serve does not overflow: it would always go
outside, unnoticed, at the outside's price.

What an engine would refuse is never sent there: sampling parameters that speculation cannot take, pictures
for a model that reads text, an adapter that it was not started with. What depends on a call's own length is
looked at for each call (`Course.fitting`).

Pure and synchronous: everything about the call and the pools comes in as arguments, the answer is a value
with its reasons. The same function serves the live request, explanations, the command line and the tests.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from backends.pool import PoolSnapshot, PoolSpec
from gateway.errors import NoEligibleTarget
from gateway.inference import Call, Drop, RouteDecision, Target, Task
from gateway.pricing.rates import no_price
from gateway.protocols.portable import portability
from gateway.routing.policy import Policy

PRIORITIES: Final = {"priority": 0, "default": 10, "flex": 20}
"""What a latency class is in an engine's queue (vLLM 0.32: lower is earlier, `v1/core/sched`)."""


def decide(
    call: Call,
    task: Task,
    policy: Policy,
    *,
    pools: Mapping[str, PoolSnapshot],
    may_leave: bool = False,
    unpriced: Collection[str] = (),
    latency_class: str = "default",
) -> RouteDecision:
    """The targets for a call, best first.

    Args:
        call: what was asked.
        task: what it is.
        policy: the rules in force.
        pools: every pool of the policy as it is now.
        may_leave: the tenant's owner allows that its requests are sent outside the company.
        unpriced: targets that have no price and may not be used without one.
        latency_class: priority, default or flex.

    Raises:
        ModelNotFound: the policy has no such alias.
        NoEligibleTarget: rules removed every pool, or none of the rest has a replica that is up and nothing
            outside may be used.
        Unpriced: none of the targets that could serve it has a price.
    """
    allowed = policy.pools_of(call.model_alias)
    nature = policy.natures[task.type]
    targets: list[Target] = []
    drops: list[Drop] = []
    is_any_down = False
    for name in policy.routes[nature]:
        if name not in allowed:
            drops.append(Drop(name, f"model '{call.model_alias}' does not use it"))
            continue
        pool = pools[name]
        obstacle = _obstacle(call, pool.spec, policy.adapters.get(call.model_alias))
        if obstacle is not None:
            drops.append(Drop(name, obstacle))
            continue
        if not pool.is_within_reach:
            is_any_down = True
            drops.append(Drop(name, "no replica is up"))
            continue
        targets.append(_target(pool.spec, policy.adapters.get(call.model_alias), latency_class))
    has_pool = bool(targets) or is_any_down
    overflow = policy.overflow.get(call.model_alias)
    kept_inside: list[Drop] = []
    if overflow is not None and has_pool:
        outside, kept_inside = _overflow(call, policy, overflow, may_leave=may_leave)
        targets += outside
    if not targets:
        raise _nothing_left(call.model_alias, drops, kept_inside, removed_by_rules=not has_pool)
    drops += kept_inside
    targets = _priced(targets, drops, unpriced)
    return RouteDecision(
        targets=tuple(targets),
        nature=nature,
        reason=f"{task.type} is {nature}: {' then '.join(target.pool for target in targets)}",
        drops=tuple(drops),
        policy_version=policy.version,
        max_tokens_default=policy.max_tokens_default,
    )


def _priced(targets: list[Target], drops: list[Drop], unpriced: Collection[str]) -> list[Target]:
    """Those that may be charged for; the others join the drops."""
    without = [target.pool for target in targets if target.pool in unpriced]
    if not without:
        return targets
    # Before anything is sent: a fallback must not land on what nobody can be charged for.
    drops += [Drop(name, "it has no price") for name in without]
    kept = [target for target in targets if target.pool not in unpriced]
    if not kept:
        raise no_price(*without)
    return kept


def _obstacle(call: Call, spec: PoolSpec, adapter: str | None) -> str | None:
    """What the pool's engines would refuse in this call; None: nothing that is known."""
    if call.facts.needs_full_sampling and spec.speculation is not None:
        return "a speculating engine refuses min_p and logit_bias"
    if call.facts.has_media and spec.reads_text_only:
        return "its model reads text only"
    if adapter is not None and adapter not in spec.adapters:
        return f"its engines have no adapter '{adapter}'"
    return None


def _target(spec: PoolSpec, adapter: str | None, latency_class: str) -> Target:
    return Target(
        pool=spec.name,
        upstream_model=adapter or spec.model.served_name,
        max_model_len=spec.model.max_model_len,
        priority=PRIORITIES[latency_class] if spec.schedules_by_priority else None,
    )


def _overflow(
    call: Call, policy: Policy, names: tuple[str, ...], *, may_leave: bool
) -> tuple[list[Target], list[Drop]]:
    """The external targets that the call may go to, and why it may not go to the others."""
    if not may_leave:
        return [], [Drop(name, "requests of this tenant stay inside the company") for name in names]
    found = portability(call)
    if found.obstacle is not None:
        return [], [Drop(name, found.obstacle) for name in names]
    targets = [
        Target(
            pool=name,
            upstream_model=policy.external[name].model,
            max_model_len=policy.external[name].max_model_len,
            is_external=True,
            withheld=found.withheld,
        )
        for name in names
    ]
    return targets, []


def _nothing_left(
    alias: str, drops: list[Drop], kept_inside: list[Drop], *, removed_by_rules: bool
) -> NoEligibleTarget:
    if removed_by_rules:
        return NoEligibleTarget(
            f"Nothing may serve this request for '{alias}': {_reasons(drops)}.", removed_by_rules=True
        )
    unused = f" Overflow was not used: {_reasons(kept_inside)}." if kept_inside else ""
    return NoEligibleTarget(
        f"No replica that could serve '{alias}' is up at the moment. Try again in a few seconds.{unused}",
        removed_by_rules=False,
    )


def _reasons(drops: list[Drop]) -> str:
    return "; ".join(f"{drop.pool}: {drop.reason}" for drop in drops)
