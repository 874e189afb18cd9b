"""Which candidate is asked for copies of requests, and how does it compare? /admin/v1/policies/shadow.

Running gateways follow within two seconds. What copies cost is the platform's, held by a budget of their own.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from gateway.admin.budget_owners import limit_of
from gateway.admin.policies import SOURCE, refused_policy
from gateway.admin.shadow_views import ShadowStatusView, ShadowView, newest_status, shadow_view
from gateway.admin.views import PageView
from gateway.dependencies import ActDep, PageDep, ServicesDep, SessionDep
from gateway.errors import InvalidRequest, NotFound
from gateway.ledger.buckets import Window
from gateway.policy_life import Proposal
from gateway.policy_shadow import HOURS_DEFAULT, Order, start_shadow, stop_shadow
from gateway.routing.shadows import page_shadows
from gateway.routing.split import Stickiness

router = APIRouter(prefix="/admin/v1/policies/shadow", tags=["policies"])

_EXAMPLE: dict[str, Any] = {"version": "default@3f2a9c41d07e", "percent": 10, "budget_usd": "2"}


class NewShadow(BaseModel):
    """A candidate, how much of the traffic is copied to it, and for how much money."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})

    version: str | None = Field(default=None, description="a stored version, or the beginning of its hash")
    text: str | None = Field(default=None, description="or a policy, YAML, which is stored with it")
    percent: float = Field(description="of the units whose requests are copied")
    budget_usd: str = Field(description="the most that copies may come to in a window, paid by the platform")
    window: Literal["day", "month"] = Field(default="day", description="of the budget, UTC")
    stickiness: Stickiness = Field(default=Stickiness.CONVERSATION, description="what a unit is")
    tenants: list[str] = Field(default_factory=list, description="only theirs; empty: all that have opted in")
    models: list[str] = Field(default_factory=list, description="only these aliases; empty: all")
    hours: float = Field(default=HOURS_DEFAULT, description="after which it ends")
    message: str | None = Field(default=None, description="why, for people")
    expected: str | None = Field(
        default=None, description="the version that must be active now, or nothing is done (409); null: any"
    )


class ShadowOrder(BaseModel):
    """Why a shadow shall end."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"number": 2, "message": "seen enough"}]}
    )

    number: int | None = Field(default=None, description="which, or nothing is done (409); null: any")
    message: str | None = Field(default=None, description="why, for people")


@router.get("", summary="The shadow under way, or the last one")
async def show_shadow(services: ServicesDep, session: SessionDep) -> ShadowStatusView:
    """Side by side: the requests that were copied, and their copies."""
    found = await newest_status(session, now_ms=services.clock.epoch_ms())
    if found is None:
        raise NotFound("There never was a shadow.")
    return found


@router.get("/history", summary="Shadows, the newest first")
async def list_shadows(services: ServicesDep, session: SessionDep, page: PageDep) -> PageView[ShadowView]:
    """What was shadowed beside which version, and how it ended."""
    found = await page_shadows(session, page, now_ms=services.clock.epoch_ms())
    return PageView(data=[shadow_view(each) for each in found.rows], next_cursor=found.next_cursor)


@router.post("", summary="Copy a part of the requests to a candidate", status_code=201)
async def start(services: ServicesDep, session: SessionDep, act: ActDep, *, new: NewShadow) -> ShadowView:
    """There is one at a time, and none beside a canary; the activation of any version ends it."""
    if (new.version is None) == (new.text is None):
        raise InvalidRequest("Say either `version` or `text`.", param="version")
    candidate = new.version if new.text is None else Proposal(new.text, SOURCE, new.message)
    order = Order(
        percent=new.percent,
        budget_usd_nanos=limit_of(new.budget_usd, param="budget_usd"),
        window=Window(new.window),
        stickiness=new.stickiness,
        tenants=new.tenants,
        models=new.models,
        hours=new.hours,
        message=new.message,
    )
    with refused_policy():
        shadow = await start_shadow(
            session,
            candidate or "",
            order,
            act=act,
            supply=services.policies.supply,
            expected=new.expected,
        )
    await session.commit()
    return shadow_view(shadow)


@router.post("/stop", summary="Copy nothing any more")
async def stop(
    services: ServicesDep, session: SessionDep, act: ActDep, *, order: ShadowOrder | None = None
) -> ShadowStatusView:
    """Copies under way end as they began."""
    asked = order or ShadowOrder()
    await stop_shadow(session, act=act, reason=asked.message or "stopped", number=asked.number)
    await session.commit()
    return await show_shadow(services, session)
