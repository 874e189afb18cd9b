"""Why would a call go where it goes, by what this gateway knows now? POST /admin/v1/policies/explain."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from backends.pool import PoolSnapshot
from gateway.dependencies import Services, ServicesDep, SessionDep
from gateway.errors import ConfigurationError, InvalidRequest
from gateway.explain import Explanation, explain
from gateway.identity.auth import Caller
from gateway.imagined import Given, asked_of, call_of, task_of
from gateway.inference import Call, Endpoint
from gateway.policy_life import refuse_large
from gateway.protocols.openai import parse_call
from gateway.recorded import Recorded, caller_of, recorded
from gateway.routing.policy import Policy, parse_policy
from gateway.routing.rules import BudgetLevel

router = APIRouter(prefix="/admin/v1/policies", tags=["policies"])


class ExplainRequest(BaseModel):
    """What shall be explained: a request's body, a receipt, or facts alone."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "body": {"model": "auto", "messages": [{"role": "user", "content": "Translate: hello"}]},
                    "given": {"tenant": "acme", "at": "2026-11-20T23:00:00Z"},
                }
            ]
        },
    )

    body: dict[str, Any] | None = Field(
        default=None, description="as it would be sent to /v1/chat/completions or /v1/completions"
    )
    receipt: str | None = Field(default=None, description="the x-request-id of a request that was served")
    key_id: str | None = Field(default=None, description="who asks: the id of an API key")
    given: Given = Field(default_factory=Given, description="what else is so; it beats all the rest")
    policy: str | None = Field(default=None, description="a draft's YAML; null: the policy in force")


class TriedRuleView(BaseModel):
    """A rule, and what became of it."""

    name: str
    is_matched: bool
    why_not: list[str] = Field(description="each condition that does not hold")


class PredictionView(BaseModel):
    """What the call was thought to take; the cost is supply's, not the charge."""

    queue_ms: float
    first_token_ms: float
    token_ms: float
    total_ms: float
    cost_usd: str


class CandidateView(BaseModel):
    """A target that would be tried, in its order."""

    target: str
    is_external: bool
    charge_usd_at_most: str | None = Field(description="null: it is unpriced")
    predicted: PredictionView | None = Field(description="null: nothing is predicted of it")


class DropView(BaseModel):
    """A target that was taken out."""

    target: str
    reason: str


class CacheView(BaseModel):
    """Whether an answer that was given before would do."""

    is_used: bool
    ttl_s: int | None
    why_not: str | None


class RefusalView(BaseModel):
    """What the caller would be told."""

    status: int
    code: str
    message: str


class RecordedView(BaseModel):
    """What became of the request when it was served."""

    went_to: list[str] = Field(description="targets in the order in which they were tried")
    policy: str


class ExplanationView(BaseModel):
    """All that leads to a choice."""

    policy: str
    facts: dict[str, Any] = Field(description="what rules look at")
    rules: list[TriedRuleView] = Field(description="in their order, up to the one that decides")
    rule: str | None = Field(description="the one that decides; null: the routes do")
    branch: str | None = Field(description="canary or budget_low; null: the rule's main part")
    reason: str | None
    candidates: list[CandidateView]
    drops: list[DropView]
    decided_by: str | None = Field(description="what put the first candidate first")
    cache: CacheView
    attempts_max: int | None = Field(description="null: as in the settings")
    hedging: bool | None = Field(description="null: as in the settings")
    budget_low: str | None
    error: RefusalView | None = Field(description="null: the call would be sent")
    recorded: RecordedView | None = Field(default=None, description="null: it was never served")


@router.post("/explain", summary="Why a call would go where it goes")
async def explain_call(asked: ExplainRequest, services: ServicesDep, session: SessionDep) -> ExplanationView:
    """Facts, the rules that were tried, candidates with predictions, drops and the choice; nothing is sent.

    By the pools, prices, budgets and measurements as this process knows them now.
    """
    if asked.body is not None and asked.receipt is not None:
        raise InvalidRequest("Send `body` or `receipt`, not both.", param="receipt")
    request = None if asked.receipt is None else await recorded(session, asked.receipt)
    caller = None if request is None else request.caller
    if asked.key_id is not None:
        caller = await caller_of(session, asked.key_id)
    base = None if request is None else request.call
    if asked.body is not None:
        base = _parsed(asked.body, services)
    draft = None if asked.policy is None else await _draft(asked.policy, services)
    found = _explained(asked, services, draft=draft, base=base, request=request, caller=caller)
    shown = ExplanationView.model_validate(msgspec.to_builtins(found))
    if request is None:
        return shown
    was = RecordedView(went_to=list(request.went_to), policy=request.policy)
    return shown.model_copy(update={"recorded": was})


def _explained(
    asked: ExplainRequest,
    services: Services,
    *,
    draft: Policy | None,
    base: Call | None,
    request: Recorded | None,
    caller: Caller | None,
) -> Explanation:
    routing, registry = services.pipeline.routing, services.registry
    now_ms = services.clock.epoch_ms() if request is None else request.at_ms
    policy, book = routing.policy, routing.prices
    if draft is not None:  # its own rates outside, and what finance entered before them, as if it were active
        policy, book = draft, services.policies.book_of(draft)
    prices = book.at(services.clock.epoch_ms())
    call = call_of(asked.given, base)
    who = asked_of(asked.given, call, prices=prices, now_ms=now_ms, caller=caller)
    if asked.given.budget_used_percent is None and caller is not None:
        fullest = services.pipeline.fullest(caller)
        level = None if fullest is None else BudgetLevel(*fullest)
        who = msgspec.structs.replace(who, situation=msgspec.structs.replace(who.situation, budget=level))
    pools = {each.spec.name: each for each in registry.snapshots()}
    for name in asked.given.down:
        if name not in pools:
            raise InvalidRequest(
                f"There is no pool {name[:64]!r}; known: {', '.join(sorted(pools))}.", param="given.down"
            )
        pools[name] = PoolSnapshot(spec=pools[name].spec)
    task = task_of(call, policy, None if request is None else request.task)
    return explain(call, task, policy, asked=who, pools=pools, prices=prices, economist=routing.economist)


def _parsed(body: dict[str, Any], services: Services) -> Call:
    endpoint = Endpoint.CHAT_COMPLETIONS
    if "messages" not in body and "prompt" in body:
        endpoint = Endpoint.COMPLETIONS
    return parse_call(endpoint, msgspec.json.encode(body), {}, limits=services.parse_limits)


async def _draft(text: str, services: Services) -> Policy:
    refuse_large(text, source="policy")
    try:
        # In a thread: requests must not stand still while somebody's YAML is read.
        return await asyncio.to_thread(parse_policy, text, source="policy", pools=services.registry.specs)
    except ConfigurationError as error:
        raise InvalidRequest(str(error), param="policy") from None
