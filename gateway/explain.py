"""Why would a call go where it goes?

The live `decide`, matching, course and economist, asked for one call, with what each of them found written
down. Nothing is sent and nothing is counted. Errors are part of the answer: an explanation of a refusal is
an explanation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from backends.pool import PoolSnapshot
from gateway.clock import instant_text
from gateway.course import Course
from gateway.economist import Economist, Forecasts
from gateway.errors import GatewayError
from gateway.inference import CacheRule, Call, RouteDecision, Task
from gateway.money import usd_text
from gateway.pricing.book import Prices
from gateway.routing.decide import decide
from gateway.routing.economics import Prediction
from gateway.routing.policy import Policy
from gateway.routing.rules import Facts, Situation, facts_of, is_measured


class Asked(msgspec.Struct, frozen=True):
    """Who asks, and what is known of the world."""

    situation: Situation
    latency_class: str = "default"
    may_leave: bool = False
    unpriced: Collection[str] = ()
    tenant_id: str = ""
    """For what was learned of single tenants."""


class TriedRule(msgspec.Struct, frozen=True):
    """A rule, and what became of it."""

    name: str
    is_matched: bool
    why_not: list[str]
    """Each condition that does not hold."""


class Foretold(msgspec.Struct, frozen=True):
    """What a call was thought to take; the cost is supply's, not the charge."""

    queue_ms: float
    first_token_ms: float
    token_ms: float
    total_ms: float
    cost_usd: str


class ShownCandidate(msgspec.Struct, frozen=True):
    """A target that would be tried, in its order."""

    target: str
    is_external: bool
    charge_usd_at_most: str | None
    """None: it is unpriced."""
    predicted: Foretold | None
    """None: nothing is predicted of it."""


class ShownDrop(msgspec.Struct, frozen=True):
    """A target that was taken out."""

    target: str
    reason: str


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """All that led to a choice."""

    policy: str
    facts: dict[str, Any]
    rules: list[TriedRule]
    """In their order, up to the one that decides."""
    rule: str | None
    branch: str | None
    reason: str | None
    candidates: list[ShownCandidate]
    drops: list[ShownDrop]
    decided_by: str | None
    """What put the first candidate first, where predictions were made."""
    cache: dict[str, Any]
    attempts_max: int | None
    """None: as in the settings."""
    hedging: bool | None
    budget_low: str | None
    error: dict[str, Any] | None
    """What the caller would be told; None: the call would be sent."""


def explain(
    call: Call,
    task: Task,
    policy: Policy,
    *,
    asked: Asked,
    pools: Mapping[str, PoolSnapshot],
    prices: Prices,
    economist: Economist | None = None,
) -> Explanation:
    """Why the call would go where it goes.

    Args:
        call: what is asked.
        task: what it is.
        policy: in force, or a draft.
        asked: who asks, and when.
        pools: every pool of the policy, as it is or as it is imagined.
        prices: of the instant.
        economist: who predicts; None: nothing is predicted.
    """
    nature = policy.natures[task.type]
    facts = facts_of(call, task, nature.value, latency_class=asked.latency_class, situation=asked.situation)
    tried = _tried(policy, facts)
    try:
        decision = decide(
            call,
            task,
            policy,
            pools=pools,
            may_leave=asked.may_leave,
            unpriced=asked.unpriced,
            latency_class=asked.latency_class,
            situation=asked.situation,
        )
        course = Course(decision, prices, task=task, baseline=None).fitting(call)
    except GatewayError as error:
        return _refused(error, facts, tried, policy=policy, call=call, task=task, asked=asked)
    course, forecasts = _ordered(course, call, task, policy=policy, asked=asked, economist=economist)
    decision, terms = course.decision, course.decision.terms
    return Explanation(
        policy=policy.version,
        facts=_shown_facts(facts, call, task=task, asked=asked),
        rules=tried,
        rule=terms.rule,
        branch=terms.branch or None,
        reason=decision.reason,
        candidates=_candidates(decision, course.bounds(call), forecasts),
        drops=[ShownDrop(drop.pool, drop.reason) for drop in decision.drops],
        decided_by=None if course.why is None else course.why.value,
        cache=_cache(call, terms.cache or policy.cache),
        attempts_max=terms.attempts_max,
        hedging=terms.hedging,
        budget_low=terms.budget_low,
        error=None,
    )


def _tried(policy: Policy, facts: Facts) -> list[TriedRule]:
    tried = []
    found = policy.rules.find(facts)
    for rule in policy.rules.entries:
        tried.append(TriedRule(rule.name, rule is found, rule.failures(facts)))
        if rule is found:
            break
    return tried


def _ordered(
    course: Course,
    call: Call,
    task: Task,
    *,
    policy: Policy,
    asked: Asked,
    economist: Economist | None,
) -> tuple[Course, Forecasts | None]:
    """The course in the order that measurements give it, where they may; and the predictions in any case."""
    if economist is None:
        return course, None
    led, forecasts = economist.order(
        course,
        call,
        task,
        tenant_id=asked.tenant_id,
        latency_class=asked.latency_class,
        policy=policy,
        is_question=True,
    )
    may_lead = is_measured(course.decision.terms, usually=policy.economics.is_enabled)
    return (led if may_lead else course), forecasts


def _refused(
    error: GatewayError,
    facts: Facts,
    tried: list[TriedRule],
    *,
    policy: Policy,
    call: Call,
    task: Task,
    asked: Asked,
) -> Explanation:
    rule = next((each.name for each in tried if each.is_matched), None)
    return Explanation(
        policy=policy.version,
        facts=_shown_facts(facts, call, task=task, asked=asked),
        rules=tried,
        rule=rule,
        branch=None,
        reason=None,
        candidates=[],
        drops=[],
        decided_by=None,
        cache=_cache(call, policy.cache),
        attempts_max=None,
        hedging=None,
        budget_low=None,
        error={"status": error.status_code, "code": error.code, "message": error.caller_detail},
    )


def _candidates(
    decision: RouteDecision, bounds: list[Any], forecasts: Forecasts | None
) -> list[ShownCandidate]:
    found = []
    for target, bound in zip(decision.targets, bounds, strict=True):
        prediction = None if forecasts is None else forecasts.of(target.pool)
        found.append(
            ShownCandidate(
                target.pool,
                target.is_external,
                None if bound is None else usd_text(bound),
                None if prediction is None else _foretold(prediction),
            )
        )
    return found


def _foretold(prediction: Prediction) -> Foretold:
    return Foretold(
        round(prediction.queue_s * 1000, 1),
        round(prediction.ttft_s * 1000, 1),
        round(prediction.tpot_s * 1000, 2),
        round(prediction.total_s * 1000, 1),
        usd_text(round(prediction.cost_usd_nanos)),
    )


def _shown_facts(facts: Facts, call: Call, *, task: Task, asked: Asked) -> dict[str, Any]:
    budget = asked.situation.budget
    return {
        "model": facts.model,
        "task": facts.task,
        "task_source": task.source.value,
        "task_confidence": round(task.confidence, 2),
        "nature": facts.nature,
        "tenant": facts.tenant or None,
        "project": facts.project or None,
        "tags": dict(facts.tags),
        "latency_class": facts.latency_class,
        "input_tokens": facts.input_tokens,
        "max_tokens": call.max_tokens,
        "at": instant_text(facts.at_ms) if facts.at_ms else None,
        "tools": facts.has_tools,
        "format": facts.format,
        "media": facts.has_media,
        "min_p_or_logit_bias": call.facts.needs_full_sampling,
        "may_leave_the_company": asked.may_leave,
        "budget": None
        if budget is None
        else {"name": budget.name, "used_percent": round(budget.used_percent, 1)},
    }


def _cache(call: Call, rule: CacheRule) -> dict[str, Any]:
    """Whether an answer that was given before would do, as far as the policy and the call say it."""
    temperature = call.facts.temperature
    if not rule.is_enabled:
        why = "the policy turns it off for such calls"
    elif temperature is None:
        why = "the call states no temperature"
    elif temperature > rule.temperature_max:
        why = f"the call's temperature {temperature:g} is above {rule.temperature_max:g}"
    elif call.cache_wish is not None and not call.cache_wish.may_read:
        why = "the caller wants a new answer"
    else:
        return {"is_used": True, "ttl_s": rule.ttl_s, "why_not": None}
    return {"is_used": False, "ttl_s": None, "why_not": why}
