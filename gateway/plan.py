"""What is known of a request before it is answered, and what does its answer say about itself?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

from gateway.cache.lookup import CacheStatus, KeptAnswer, Slot
from gateway.course import Course
from gateway.economist import Economist, Forecasts
from gateway.identity.auth import Caller
from gateway.identity.limits import UNLIMITED, Permit
from gateway.inference import Call, RouteDecision, Target, Task
from gateway.money import UsdNanos
from gateway.pricing.book import PriceBook, Prices
from gateway.routing.policy import Policy
from gateway.routing.rules import BudgetLevel, Situation
from gateway.routing.shadows import Shadow
from gateway.routing.split import Split, Unit
from gateway.upstream.vllm import output_bound

CACHE_REPLICA = "cache"
"""Stands where an answer from the cache would name its replica."""


@dataclass(frozen=True, slots=True)
class Routing:
    """What routing needs and what may be exchanged while requests run: taken once per request."""

    policy: Policy
    prices: PriceBook
    answer_scopes: Mapping[str, str]
    """By alias: what decides its answers beside the request (see `cache.key.answer_scope`)."""
    economist: Economist
    """Who predicts, where the policy asks for it."""
    beside: Beside | None = None
    """A candidate that a part of the requests follows; None: there is none."""

    @property
    def watches_budgets(self) -> bool:
        """Some rule asks how much of a budget is used."""
        beside = self.beside
        return self.policy.rules.watches_budgets or (beside is not None and beside.routing.watches_budgets)


@dataclass(frozen=True, slots=True)
class Beside:
    """A candidate, and whose requests follow it or are copied to it."""

    split: Split
    routing: Routing
    shadow: Shadow | None = None
    """It is only asked for copies; None: it answers."""

    def unit_of(self, call: Call, caller: Caller, request_id: str) -> Unit | None:
        """What the request belongs to; None: it is not about this request."""
        return self.split.unit_of(
            call, tenant=caller.tenant_name, key_id=_oldest_key(caller), request_id=request_id
        )


def situation_of(caller: Caller, prices: Prices, level: BudgetLevel | None, *, now_ms: int) -> Situation:
    """Who asks, and when, as rules want to be told."""
    return Situation(
        caller.tenant_name,
        caller.project_name,
        caller.fixed_tags,
        _oldest_key(caller),
        now_ms,
        prices.by_target,
        level,
    )


def _oldest_key(caller: Caller) -> str:
    """The key that all its rotations come from."""
    return caller.key_lineage[-1] if caller.key_lineage else caller.key_id


class Copy(Protocol):
    """What could become a copy of a request."""

    @property
    def is_kept_inside(self) -> bool:
        """None is made: nothing of its tenant's may be copied."""

    def offer(self) -> None:
        """The request is over, answered or not: from now on its copy takes nothing from it."""


class Copies(Protocol):
    """Whoever makes them."""

    def of(self, call: Call, caller: Caller, request_id: str, *, unit: Unit, beside: Beside) -> Copy:
        """What could become one of this request."""


class ServedFacts(msgspec.Struct, frozen=True):
    """What every answer says about itself."""

    request_id: str
    task: Task
    policy_version: str
    pool: str
    replica: str
    cache: CacheStatus
    dropped: tuple[str, ...]
    max_tokens_set: int | None
    """The bound that we put in; None if the caller gave one."""


class Plan(msgspec.Struct, frozen=True):
    """What is known of a request before it is answered."""

    call: Call
    caller: Caller
    request_id: str
    task: Task
    course: Course
    prices: Prices
    """As they were when it was reserved: it is settled at these, whatever changes meanwhile."""
    bounds: list[UsdNanos | None]
    """The most that an attempt at each target can come to; None: it is unpriced."""
    slot: Slot | None
    """Where its answer is kept; None if it is not."""
    permit: Permit = UNLIMITED
    """Ends with the request."""
    forecasts: Forecasts | None = None
    """What was predicted of its targets; None: nothing."""
    unit: Unit | None = None
    """What it belongs to in the canary that it was planned under; None: there was none, or it is not about
    this request."""
    copy: Copy | None = None
    """What is offered once it is over; None: it is not copied."""
    held_by: str | None = None
    """The budget without whose hold it must not be sent; None: there may be none."""
    counted_input: int | None = None
    """Input tokens as an engine counts them, where only those are held for; None: nobody was asked."""

    @property
    def decision(self) -> RouteDecision:
        """Who may answer."""
        return self.course.decision

    @property
    def cache(self) -> CacheStatus:
        """What the cache had to do with an answer that a model gave."""
        return CacheStatus.BYPASS if self.slot is None else CacheStatus.MISS

    def facts(self, target: Target, replica: str) -> ServedFacts:
        """What the answer of a replica says about itself."""
        call, decision = self.call, self.decision
        return ServedFacts(
            self.request_id,
            self.task,
            decision.policy_version,
            target.pool,
            replica,
            self.cache,
            call.dropped + target.withheld,
            None if call.max_tokens is not None else output_bound(call, decision, target),
        )

    def facts_of_kept(self, kept: KeptAnswer) -> ServedFacts:
        """What an answer from the cache says about itself: who gave it when it was new."""
        facts = self.facts(self.decision.targets[0], CACHE_REPLICA)
        return msgspec.structs.replace(facts, pool=kept.pool, cache=CacheStatus.HIT)
