"""Why would a call go where it goes, by what this gateway knows now? POST /admin/v1/policies/explain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from backends.pool import PoolSnapshot
from gateway.dependencies import Services, ServicesDep, SessionDep
from gateway.errors import ConfigurationError, InvalidRequest
from gateway.explain import Explanation, explain
from gateway.identity.auth import Caller
from gateway.imagined import Given, asked_of, call_of, prices_by_files, task_of
from gateway.inference import Call, Endpoint
from gateway.protocols.openai import parse_call
from gateway.recorded import Recorded, caller_of, recorded
from gateway.routing.policy import Policy, parse_policy
from gateway.routing.rules import BudgetLevel

router = APIRouter(prefix="/admin/v1/policies", tags=["policies"])
POLICY_CHARS_MAX = 500_000


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
    key: str | None = Field(default=None, description="who asks: the id of an API key")
    given: Given = Field(default_factory=Given, description="what else is so; it beats all the rest")
    policy: str | None = Field(
        default=None, max_length=POLICY_CHARS_MAX, description="a draft's YAML; null: the policy in force"
    )


@router.post("/explain", summary="Why a call would go where it goes")
async def explain_call(asked: ExplainRequest, services: ServicesDep, session: SessionDep) -> dict[str, Any]:
    """Facts, the rules that were tried, candidates with predictions, drops and the choice; nothing is sent.

    By the pools, prices, budgets and measurements as this process knows them now.
    """
    if asked.body is not None and asked.receipt is not None:
        raise InvalidRequest("Send `body` or `receipt`, not both.", param="receipt")
    request = None if asked.receipt is None else await recorded(session, asked.receipt)
    caller = None if request is None else request.caller
    if asked.key is not None:
        caller = await caller_of(session, asked.key)
    base = None if request is None else request.call
    if asked.body is not None:
        base = _parsed(asked.body, services)
    found = _explained(asked, services, base=base, request=request, caller=caller)
    shown: dict[str, Any] = msgspec.to_builtins(found)
    if request is not None:
        shown["recorded"] = {"went_to": list(request.went_to), "policy": request.policy}
    return shown


def _explained(
    asked: ExplainRequest,
    services: Services,
    *,
    base: Call | None,
    request: Recorded | None,
    caller: Caller | None,
) -> Explanation:
    routing, registry = services.pipeline.routing, services.registry
    now_ms = services.clock.epoch_ms() if request is None else request.at_ms
    policy, prices = routing.policy, routing.prices.at(services.clock.epoch_ms())
    if asked.policy is not None:
        policy = _draft(asked.policy, services)
        # What finance entered beats what files say, for a draft too.
        known, by_files = prices.by_target, prices_by_files(registry.specs, policy, now_ms)
        by_target = {**by_files.by_target, **known}
        prices = replace(by_files, by_target=by_target, refused=by_files.refused - known.keys())
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


def _draft(text: str, services: Services) -> Policy:
    try:
        return parse_policy(text, source="policy", pools=services.registry.specs)
    except ConfigurationError as error:
        raise InvalidRequest(str(error), param="policy") from None
