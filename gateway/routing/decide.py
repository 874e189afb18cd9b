"""Where does a call go, and why?

Pure and synchronous: everything about the call and the pools comes in as arguments, the answer is a value
with its reasons. The same function serves the live request, explanations, the command line and the tests.
"""

from __future__ import annotations

from collections.abc import Mapping

from backends.pool import PoolSnapshot
from gateway.errors import NoEligibleTarget
from gateway.inference import Call, Drop, RouteDecision, Target, Task
from gateway.routing.policy import Policy


def decide(call: Call, task: Task, policy: Policy, *, pools: Mapping[str, PoolSnapshot]) -> RouteDecision:
    """The targets for a call, best first.

    Args:
        call: what was asked.
        task: what it is.
        policy: the rules in force.
        pools: every pool of the policy as it is now.

    Raises:
        ModelNotFound: the policy has no such alias.
        NoEligibleTarget: rules removed every pool, or none of the rest has a replica that is up.
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
        if not pool.ready_count:
            is_any_down = True
            drops.append(Drop(name, "no replica is up"))
            continue
        model = pool.spec.model
        targets.append(Target(pool=name, upstream_model=model.served_name, max_model_len=model.max_model_len))
    if not targets:
        raise _nothing_left(call.model_alias, drops, removed_by_rules=not is_any_down)
    return RouteDecision(
        targets=tuple(targets),
        nature=nature,
        reason=f"{task.type} is {nature}: {' then '.join(target.pool for target in targets)}",
        drops=tuple(drops),
        policy_version=policy.version,
        max_tokens_default=policy.max_tokens_default,
    )


def _nothing_left(alias: str, drops: list[Drop], *, removed_by_rules: bool) -> NoEligibleTarget:
    if removed_by_rules:
        reasons = "; ".join(f"{drop.pool}: {drop.reason}" for drop in drops)
        return NoEligibleTarget(
            f"Nothing may serve this request for '{alias}': {reasons}.", removed_by_rules=True
        )
    return NoEligibleTarget(
        f"No replica that could serve '{alias}' is up at the moment. Try again in a few seconds.",
        removed_by_rules=False,
    )
