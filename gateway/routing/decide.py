"""Where does a call go, and why?

Overflow is for want of capacity: external targets stand behind every pool that may serve the call, also when
all of those are down. A call that no pool of its alias may ever serve does not overflow: it would always go
outside, unnoticed, at the outside's price.

Pure and synchronous: everything about the call and the pools comes in as arguments, the answer is a value
with its reasons. The same function serves the live request, explanations, the command line and the tests.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from backends.pool import PoolSnapshot
from gateway.errors import NoEligibleTarget
from gateway.inference import Call, Drop, RouteDecision, Target, Task
from gateway.pricing.rates import no_price
from gateway.protocols.portable import portability
from gateway.routing.policy import Policy


def decide(
    call: Call,
    task: Task,
    policy: Policy,
    *,
    pools: Mapping[str, PoolSnapshot],
    may_leave: bool = False,
    unpriced: Collection[str] = (),
) -> RouteDecision:
    """The targets for a call, best first.

    Args:
        call: what was asked.
        task: what it is.
        policy: the rules in force.
        pools: every pool of the policy as it is now.
        may_leave: the tenant's owner allows that its requests are sent outside the company.
        unpriced: targets that have no price and may not be used without one.

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
        if call.facts.needs_full_sampling and pool.spec.speculation is not None:
            drops.append(Drop(name, "a speculating engine refuses min_p and logit_bias"))
            continue
        if not pool.is_within_reach:
            is_any_down = True
            drops.append(Drop(name, "no replica is up"))
            continue
        model = pool.spec.model
        targets.append(Target(pool=name, upstream_model=model.served_name, max_model_len=model.max_model_len))
    has_pool = bool(targets) or is_any_down
    overflow = policy.overflow.get(call.model_alias)
    kept_inside: list[Drop] = []
    if overflow is not None and has_pool:
        outside, kept_inside = _overflow(call, policy, overflow, may_leave=may_leave)
        targets += outside
    if not targets:
        raise _nothing_left(call.model_alias, drops, kept_inside, removed_by_rules=not has_pool)
    drops += kept_inside
    without = [target.pool for target in targets if target.pool in unpriced]
    if without:
        # Before anything is sent: a fallback must not land on what nobody can be charged for.
        drops += [Drop(name, "it has no price") for name in without]
        targets = [target for target in targets if target.pool not in unpriced]
        if not targets:
            raise no_price(*without)
    return RouteDecision(
        targets=tuple(targets),
        nature=nature,
        reason=f"{task.type} is {nature}: {' then '.join(target.pool for target in targets)}",
        drops=tuple(drops),
        policy_version=policy.version,
        max_tokens_default=policy.max_tokens_default,
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
