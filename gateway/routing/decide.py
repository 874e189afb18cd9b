"""Where does a call go, and why?

Overflow is for want of capacity: external targets stand behind every pool that may serve the call, also when
all of those are down. A call that no pool of its alias may ever serve does not overflow: it would always go
outside, unnoticed, at the outside's price. A rule of the policy may say otherwise: its targets, in its order,
inside or outside, are all that its calls may use.

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
from gateway.inference import (
    NO_TERMS,
    Call,
    Drop,
    Nature,
    RouteDecision,
    RouteTerms,
    Target,
    Task,
)
from gateway.pricing.rates import no_price
from gateway.protocols.portable import portability
from gateway.routing.policy import Policy
from gateway.routing.rules import (
    BUDGET_LOW,
    MAIN,
    NOBODY,
    Match,
    Situation,
    cheapest_first,
    facts_of,
    part_of,
    refuse_low,
)

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
    situation: Situation = NOBODY,
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
        situation: who asks, and when; rules look at it.

    Raises:
        ModelNotFound: the policy has no such alias.
        BudgetExceeded: the call's rule refuses it, because a budget runs low.
        NoEligibleTarget: rules removed every pool, or none of the rest has a replica that is up and nothing
            outside may be used.
        Unpriced: none of the targets that could serve it has a price.
    """
    policy.pools_of(call.model_alias)
    nature = policy.natures[task.type]
    match = match_of(call, task, policy, latency_class=latency_class, situation=situation)
    refuse_low(match, situation)
    found = _Found(call, policy, pools, may_leave=may_leave, latency_class=latency_class)
    if match is None or match.orders is None:
        found.by_route(policy.routes[nature], match, situation)
    else:
        found.by_rule(match, situation)
    if not found.targets:
        raise found.nothing_left(match)
    found.drops += found.kept_inside
    targets = _priced(found.targets, found.drops, unpriced)
    order = " then ".join(target.pool for target in targets)
    why = f"{task.type} is {nature}" if match is None else _told(match)
    return RouteDecision(
        targets=tuple(targets),
        nature=nature,
        reason=f"{why}: {order}",
        drops=tuple(found.drops),
        policy_version=policy.version,
        max_tokens_default=policy.max_tokens_default,
        terms=NO_TERMS if match is None else _terms(match),
    )


def match_of(
    call: Call, task: Task, policy: Policy, *, latency_class: str, situation: Situation
) -> Match | None:
    """The rule of a call and which part of it, a refusal included; None: no rule is for it."""
    rules = policy.rules
    if not rules.entries:
        return None
    nature = policy.natures[task.type]
    facts = facts_of(call, task, nature._value_, latency_class=latency_class, situation=situation)
    rule = rules.find(facts)
    return None if rule is None else part_of(rule, call, situation)


class _Found:
    """Targets and drops, while they are looked for."""

    def __init__(
        self,
        call: Call,
        policy: Policy,
        pools: Mapping[str, PoolSnapshot],
        *,
        may_leave: bool,
        latency_class: str,
    ) -> None:
        self.targets: list[Target] = []
        self.drops: list[Drop] = []
        self.kept_inside: list[Drop] = []
        """External targets that were not used, where that is worth a word."""
        self._is_any_down = False
        self._call = call
        self._alias = call.model_alias
        self._policy = policy
        self._pools = pools
        self._may_leave = may_leave
        self._latency_class = latency_class

    def by_route(self, route: tuple[str, ...], match: Match | None, situation: Situation) -> None:
        """Those of the alias, in the order of the nature; what is outside stands behind."""
        allowed = self._policy.models[self._alias]
        if match is not None and match.low == "cheaper":
            route = cheapest_first(route, situation.prices)
        for name in route:
            if name in allowed:
                self._try_pool(name, match, situation)
            else:
                self.drops.append(Drop(name, f"model '{self._alias}' does not use it"))
        overflow = self._policy.overflow.get(self._alias)
        if overflow is not None and (self.targets or self._is_any_down):
            for name in overflow:
                self._try_outside(name, match, situation, drops=self.kept_inside)

    def by_rule(self, match: Match, situation: Situation) -> None:
        """Those of the rule, in its order, and no others."""
        order = (match.orders or {})[self._alias]
        if match.low == "cheaper" and match.orders is match.rule.orders:
            order = cheapest_first(order, situation.prices)
        for name in order:
            if name in self._policy.external:
                self._try_outside(name, match, situation, drops=self.drops)
            else:
                self._try_pool(name, match, situation)
        own = self._policy.models[self._alias]
        others = [name for name in self._policy.routes[Nature.PREDICTABLE] if name in own]
        others += self._policy.overflow.get(self._alias, ())
        self.drops += [
            Drop(name, f"rule '{match.rule.name}' does not use it") for name in others if name not in order
        ]

    def nothing_left(self, match: Match | None) -> NoEligibleTarget:
        """What is said where no target is left."""
        if self._is_any_down:
            return _none_up(self._alias, self.kept_inside)
        by = "" if match is None else f" by rule '{match.rule.name}'"
        return NoEligibleTarget(
            f"Nothing may serve this request for '{self._alias}'{by}: {_reasons(self.drops)}.",
            removed_by_rules=True,
        )

    def _try_pool(self, name: str, match: Match | None, situation: Situation) -> None:
        pool = self._pools[name]
        adapter = self._policy.adapters.get(self._alias)
        obstacle = _obstacle(self._call, pool.spec, adapter) or _too_dear(name, match, situation)
        if obstacle is not None:
            self.drops.append(Drop(name, obstacle))
        elif not pool.is_within_reach:
            self._is_any_down = True
            self.drops.append(Drop(name, "no replica is up"))
        else:
            self.targets.append(_target(pool.spec, adapter, self._latency_class))

    def _try_outside(
        self, name: str, match: Match | None, situation: Situation, *, drops: list[Drop]
    ) -> None:
        if not self._may_leave:
            drops.append(Drop(name, "requests of this tenant stay inside the company"))
            return
        found = portability(self._call)
        obstacle = found.obstacle or _too_dear(name, match, situation)
        if obstacle is not None:
            drops.append(Drop(name, obstacle))
            return
        outside = self._policy.external[name]
        self.targets.append(
            Target(
                pool=name,
                upstream_model=outside.model,
                max_model_len=outside.max_model_len,
                is_external=True,
                withheld=found.withheld,
            )
        )


def _too_dear(name: str, match: Match | None, situation: Situation) -> str | None:
    return None if match is None else match.rule.limits.exceeded_by(situation.prices.get(name))


def _told(match: Match) -> str:
    """What decided, for people."""
    if match.branch == BUDGET_LOW:
        return f"rule '{match.rule.name}', a budget runs low"
    return (
        f"rule '{match.rule.name}'" if match.branch == MAIN else f"rule '{match.rule.name}', {match.branch}"
    )


def _terms(match: Match) -> RouteTerms:
    rule = match.rule
    is_pinned = match.branch != MAIN and rule.objective is None
    return RouteTerms(
        rule=rule.name,
        branch=match.branch,
        # What a canary measures, and what is cheap, must not be undone by measurements.
        objective="order" if is_pinned else rule.objective,
        ttft_p95_s=rule.ttft_p95_s,
        tpot_p95_s=rule.tpot_p95_s,
        cache=rule.cache,
        attempts_max=rule.attempts_max,
        hedging=rule.hedging,
        budget_low=match.low,
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


def _none_up(alias: str, kept_inside: list[Drop]) -> NoEligibleTarget:
    unused = f" Overflow was not used: {_reasons(kept_inside)}." if kept_inside else ""
    return NoEligibleTarget(
        f"No replica that could serve '{alias}' is up at the moment. Try again in a few seconds.{unused}",
        removed_by_rules=False,
    )


def _reasons(drops: list[Drop]) -> str:
    return "; ".join(f"{drop.pool}: {drop.reason}" for drop in drops)
