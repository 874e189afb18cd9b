"""Which candidate stands beside the active policy? /admin/v1/policies/canary.

Running gateways follow within two seconds. A guard takes a candidate that does harm back by itself.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from gateway.admin.canary_views import CanaryStatusView, CanaryView, canary_view, newest_canary
from gateway.admin.policies import SOURCE, refused_policy
from gateway.admin.policy_views import OutcomeView, outcome_view
from gateway.admin.views import PageView
from gateway.dependencies import ActDep, PageDep, ServicesDep, SessionDep
from gateway.errors import InvalidRequest, NotFound
from gateway.policy_canary import (
    HOURS_DEFAULT,
    UNITS_DEFAULT,
    Order,
    promote_canary,
    start_canary,
    stop_canary,
)
from gateway.policy_life import Proposal
from gateway.routing.canaries import page_canaries
from gateway.routing.split import Stickiness

router = APIRouter(prefix="/admin/v1/policies/canary", tags=["policies"])

_EXAMPLE: dict[str, Any] = {"version": "default@3f2a9c41d07e", "percent": 5}


class NewCanary(BaseModel):
    """A candidate, and how much of the traffic it takes."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})

    version: str | None = Field(default=None, description="a stored version, or the beginning of its hash")
    text: str | None = Field(default=None, description="or a policy, YAML, which is stored with it")
    percent: float = Field(description="of the units that follow the candidate, at most 50")
    stickiness: Stickiness = Field(
        default=Stickiness.CONVERSATION,
        description="what a unit is. The guard's error bound holds for conversation and request; for key only"
        " if all keys send alike",
    )
    tenants: list[str] = Field(default_factory=list, description="only theirs; empty: all")
    models: list[str] = Field(default_factory=list, description="only these aliases; empty: all")
    units: int = Field(default=UNITS_DEFAULT, description="of the candidate, after which there is a verdict")
    hours: float = Field(default=HOURS_DEFAULT, description="after which it ends")
    auto_promote: bool = Field(default=False, description="activate a candidate that did no harm")
    message: str | None = Field(default=None, description="why, for people")
    expected: str | None = Field(
        default=None, description="the version that must be active now, or nothing is done (409); null: any"
    )


class CanaryOrder(BaseModel):
    """Why a canary shall end."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"number": 3, "message": "agreed"}]}
    )

    number: int | None = Field(default=None, description="which, or nothing is done (409); null: any")
    message: str | None = Field(default=None, description="why, for people")


@router.get("", summary="The canary under way, or the last one")
async def show_canary(session: SessionDep) -> CanaryStatusView:
    """With what its guard has seen so far."""
    found = await newest_canary(session)
    if found is None:
        raise NotFound("There never was a canary.")
    return found


@router.get("/history", summary="Canaries, the newest first")
async def list_canaries(session: SessionDep, page: PageDep) -> PageView[CanaryView]:
    """What was tried beside which version, and how it ended."""
    found = await page_canaries(session, page)
    return PageView(data=[canary_view(each) for each in found.rows], next_cursor=found.next_cursor)


@router.post("", summary="Let a part of the requests follow a candidate", status_code=201)
async def start(services: ServicesDep, session: SessionDep, act: ActDep, *, new: NewCanary) -> CanaryView:
    """There is one at a time; the activation of any version ends it."""
    if (new.version is None) == (new.text is None):
        raise InvalidRequest("Say either `version` or `text`.", param="version")
    candidate = new.version if new.text is None else Proposal(new.text, SOURCE, new.message)
    order = Order(
        percent=new.percent,
        stickiness=new.stickiness,
        tenants=new.tenants,
        models=new.models,
        units=new.units,
        hours=new.hours,
        auto_promote=new.auto_promote,
        message=new.message,
    )
    with refused_policy():
        canary = await start_canary(
            session,
            candidate or "",
            order,
            act=act,
            supply=services.policies.supply,
            expected=new.expected,
        )
    await session.commit()
    return canary_view(canary)


@router.post("/stop", summary="Let every request follow the active version again")
async def stop(session: SessionDep, act: ActDep, *, order: CanaryOrder | None = None) -> CanaryStatusView:
    """Requests under way end as they began."""
    asked = order or CanaryOrder()
    await stop_canary(session, act=act, reason=asked.message or "stopped", number=asked.number)
    await session.commit()
    return await show_canary(session)


@router.post("/promote", summary="Let every request follow the candidate")
async def promote(
    services: ServicesDep, session: SessionDep, act: ActDep, *, order: CanaryOrder | None = None
) -> OutcomeView:
    """An activation, if the version beside which it began is still the active one."""
    asked = order or CanaryOrder()
    with refused_policy():
        outcome = await promote_canary(
            session,
            act=act,
            supply=services.policies.supply,
            number=asked.number,
            message=asked.message,
        )
    await session.commit()
    return outcome_view(outcome)
