"""What does somebody imagine of a request and of the world, and what would the live code make of it?

For explanations and golden cases: a few facts become a `Call`, a caller's situation and a fleet whose
replicas are all up but for those that are said to be down. What is not said is as with a small chat of a
tenant without budgets. Nothing here decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
from pydantic import BeforeValidator, Field, field_validator

from backends.pool import PoolSpec, ReplicaState
from backends.registry import PoolRegistry
from gateway.explain import Asked
from gateway.identity.auth import Caller
from gateway.inference import Call, CallFacts, Endpoint, Task, TaskSource, TaskType
from gateway.pricing.book import PriceBook, Prices
from gateway.pricing.catalog import cards_of
from gateway.routing.classify import classify
from gateway.routing.policy import Policy
from gateway.routing.rule_file import Strict
from gateway.routing.rules import BYTES_PER_TOKEN, BudgetLevel, Situation

SMALL_BYTES = 400
"""Of a request of which nobody says how long it is."""


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Given(Strict):
    """What is said of a request; what is left out is as with the request at hand, or as usual."""

    model: str | None = Field(default=None, description="the alias that is asked for; left out: auto")
    task: TaskType | None = Field(default=None, description="as the caller declares it; left out: detected")
    text: str | None = Field(default=None, description="the user's words, from which the task is found")
    tenant: str | None = Field(default=None, description="who asks, by name")
    project: str | None = None
    tags: dict[str, str] = Field(default_factory=dict, description="those that an operator fixed")
    key: str | None = Field(default=None, description="what canaries by key stick to")
    conversation: str | None = Field(default=None, description="what canaries by conversation stick to")
    latency_class: Literal["priority", "default", "flex"] | None = None
    input_tokens: int | None = Field(default=None, ge=0)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    at: datetime | None = Field(default=None, description="when, ISO 8601; without an offset it is UTC")
    tools: bool | None = None
    format: Literal["text", "json_object", "json_schema"] | None = None
    media: bool | None = Field(default=None, description="images, sound or files")
    min_p_or_logit_bias: bool | None = Field(default=None, description="what speculating engines refuse")
    may_leave: bool | None = Field(default=None, description="the tenant's owner lets requests leave")
    down: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = Field(
        default=(), description="pools of which no replica is up"
    )
    budget_used_percent: float | None = Field(
        default=None, ge=0, description="of the budget over the caller that is used most"
    )

    @field_validator("at")
    @classmethod
    def _in_utc(cls, value: datetime | None) -> datetime | None:
        return value if value is None or value.tzinfo is not None else value.replace(tzinfo=UTC)


def call_of(given: Given, base: Call | None = None) -> Call:
    """A request as it is said to be.

    Args:
        given: what is said.
        base: the request at hand; None: a small chat.
    """
    call = base or _small_chat()
    facts = call.facts
    shown = {
        "instruction": given.text,
        "has_tools": given.tools,
        "has_media": given.media,
        "temperature": given.temperature,
        "needs_full_sampling": given.min_p_or_logit_bias,
    }
    if given.format is not None:
        shown["has_schema"] = given.format == "json_schema"
        shown["has_json_mode"] = given.format == "json_object"
    changed = {name: value for name, value in shown.items() if value is not None}
    changes = {
        "model_alias": given.model,
        "declared_task": given.task,
        "max_tokens": given.max_tokens,
        "affinity_key": given.conversation,
        "body_bytes": None
        if given.input_tokens is None
        else given.input_tokens * BYTES_PER_TOKEN * call.prompts,
    }
    return msgspec.structs.replace(
        call,
        facts=msgspec.structs.replace(facts, **changed),
        **{name: value for name, value in changes.items() if value is not None},
    )


def _small_chat() -> Call:
    return Call(
        endpoint=Endpoint.CHAT_COMPLETIONS,
        model_alias="auto",
        fields={"messages": msgspec.Raw(b'[{"role":"user","content":"Hello"}]')},
        is_streaming=False,
        wants_usage=False,
        wants_continuous_usage=False,
        max_tokens=None,
        choices=1,
        facts=CallFacts(instruction="Hello"),
        declared_task=None,
        tags={},
        end_user=None,
        service_tier=None,
        affinity_key=None,
        dropped=(),
        client_request_id=None,
        body_bytes=SMALL_BYTES,
    )


def task_of(call: Call, policy: Policy, recorded: Task | None = None) -> Task:
    """The task of a request: what is said of it now, what was found then, or what its words say."""
    if call.declared_task is None and recorded is not None and recorded.source is not TaskSource.DECLARED:
        return recorded
    return classify(call, policy)


def asked_of(given: Given, call: Call, *, prices: Prices, now_ms: int, caller: Caller | None = None) -> Asked:
    """Who asks, and when.

    Args:
        given: what is said; it beats what is known of the caller.
        call: the request.
        prices: of the instant.
        now_ms: the time, where none is said.
        caller: known by its key; None: nobody in particular.
    """
    level = None
    if given.budget_used_percent is not None:
        level = BudgetLevel("imagined", given.budget_used_percent)
    usual = "default" if caller is None else caller.class_unasked
    tier = call.service_tier if call.service_tier not in {None, "auto"} else usual
    may_leave = given.may_leave
    if may_leave is None:
        may_leave = caller is not None and not caller.is_internal_only
    tags = {**(dict(caller.fixed_tags) if caller else {}), **given.tags}
    situation = Situation(
        tenant=given.tenant or (caller.tenant_name if caller else ""),
        project=given.project or (caller.project_name if caller else ""),
        tags=tuple(sorted(tags.items())),
        key=given.key or (caller.key_lineage[-1] if caller and caller.key_lineage else ""),
        at_ms=now_ms if given.at is None else int(given.at.timestamp() * 1000),
        prices=prices.by_target,
        budget=level,
    )
    return Asked(
        situation=situation,
        latency_class=given.latency_class or tier or usual,
        may_leave=may_leave,
        unpriced=prices.refused,
        tenant_id=caller.tenant_id if caller else "",
    )


def fleet_of(specs: Mapping[str, PoolSpec], down: tuple[str, ...] = ()) -> PoolRegistry:
    """A fleet whose replicas are ready and idle, but for those of some pools."""
    registry = PoolRegistry(dict(specs))
    for pool, spec in specs.items():
        count = max(1, len(spec.urls) if spec.driver == "external" else spec.replicas)
        registry.set_replicas(pool, {f"{pool}-{number}": "http://127.0.0.1:1" for number in range(count)})
        if pool not in down:
            for number in range(count):
                registry.set_state(f"{pool}-{number}", ReplicaState.READY)
    return registry


def prices_by_files(specs: Mapping[str, PoolSpec], policy: Policy, at_ms: int) -> Prices:
    """What the pools' files and the policy say that each target costs.

    Raises:
        ConfigurationError: a rate that cannot be kept.
    """
    cards = cards_of(specs, {name: target.rates for name, target in policy.external.items()})
    return PriceBook(cards, allows_unpriced=policy.allow_unpriced).at(at_ms)
