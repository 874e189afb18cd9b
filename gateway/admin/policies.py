"""Which policies are there, and which one do requests follow? /admin/v1/policies.

What the YAML has wrong is told as a refusal of the request, with line and key. Running gateways follow an
activation within two seconds; requests under way end as they began.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from gateway.admin.policy_views import (
    ActivationView,
    ActiveView,
    OutcomeView,
    PolicyDiffView,
    VersionTextView,
    VersionView,
    activation_view,
    active_view,
    diff_view,
    outcome_view,
    version_text_view,
    version_view,
)
from gateway.admin.views import PageView
from gateway.dependencies import ActDep, PageDep, Services, ServicesDep, SessionDep
from gateway.errors import ConfigurationError, InvalidRequest, NotFound
from gateway.policy_life import (
    Proposal,
    Supply,
    check,
    draft,
    publish,
    put_into_force,
    roll_back,
    supply_of,
)
from gateway.routing.policy_diff import diff_policies
from gateway.routing.tables import MESSAGE_CHARS
from gateway.routing.versions import (
    find_version,
    page_activations,
    page_versions,
    read_active,
    show_version,
)

router = APIRouter(prefix="/admin/v1/policies", tags=["policies"])

SOURCE = "policy"
"""What messages call the YAML of a request."""
_TEXT = "the whole policy, YAML"
_MESSAGE = f"why, for people; at most {MESSAGE_CHARS} characters on one line"
_EXPECTED = "the version that must be in force now, or nothing is done (409); null: any"
_EXAMPLE: dict[str, Any] = {
    "text": "name: default\nmodels: …",
    "message": "creative work to the plain pool",
    "expected": "default@91c0de55aa10",
}


class NewDraft(BaseModel):
    """A policy that nothing follows yet."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"text": _EXAMPLE["text"], "message": _EXAMPLE["message"]}]},
    )

    text: str = Field(description=_TEXT)
    message: str | None = Field(default=None, description=_MESSAGE)


class NewPolicy(NewDraft):
    """A policy that all requests shall follow."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})

    expected: str | None = Field(default=None, description=_EXPECTED)


class ActivationOrder(BaseModel):
    """Why a stored version shall come into force."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"message": _EXAMPLE["message"], "expected": _EXAMPLE["expected"]}]},
    )

    message: str | None = Field(default=None, description=_MESSAGE)
    expected: str | None = Field(default=None, description=_EXPECTED)


class Rollback(ActivationOrder):
    """Which version shall come back."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"message": "too many refusals"}]}
    )

    version: str | None = Field(default=None, description="null: the one that was active before this one")


@router.get("", summary="Stored versions, the newest first")
async def list_versions(session: SessionDep, page: PageDep) -> PageView[VersionView]:
    """Drafts, checked, active and retired ones; without their YAML."""
    found = await page_versions(session, page)
    return PageView(data=[version_view(each) for each in found.rows], next_cursor=found.next_cursor)


@router.post("", summary="Store a draft, and see whether it fits the fleet", status_code=201)
async def store_draft(
    services: ServicesDep, session: SessionDep, act: ActDep, *, new: NewDraft
) -> VersionView:
    """Requests do not follow it. The same content again is the same version."""
    proposal = Proposal(new.text, SOURCE, new.message)
    with refused_policy():
        stored = await draft(session, proposal, act=act, supply=_supply(services))
    await session.commit()
    return version_view(stored)


@router.get("/active", summary="What requests follow")
async def show_active(services: ServicesDep, session: SessionDep) -> ActiveView:
    """The active version, with its YAML, and whether this gateway follows it, or why not."""
    active = await read_active(session)
    if active is None:
        raise NotFound("No policy was ever active.")
    refused = services.policies.refused
    return active_view(
        await show_version(session, active.version),
        in_force=services.pipeline.routing.policy.version,
        refused=None if refused is None else refused.reason,
    )


@router.get("/history", summary="Activations, the newest first")
async def list_activations(session: SessionDep, page: PageDep) -> PageView[ActivationView]:
    """Which version came into force when, by whom and why."""
    found = await page_activations(session, page)
    return PageView(data=[activation_view(each) for each in found.rows], next_cursor=found.next_cursor)


@router.get("/diff", summary="What differs between two versions")
async def show_diff(
    session: SessionDep,
    *,
    before: Annotated[str, Query(alias="from", description="a version, or the beginning of its hash")],
    after: Annotated[str, Query(alias="to", description="another one")],
) -> PolicyDiffView:
    """By meaning, key by key, and as text."""
    found = [await show_version(session, await find_version(session, each)) for each in (before, after)]
    names = found[0].version, found[1].version
    diff = await asyncio.to_thread(diff_policies, found[0].text, found[1].text, names=names)
    return diff_view(diff, names)


@router.post("/publish", summary="Store a policy, check it and put it into force")
async def publish_policy(
    services: ServicesDep, session: SessionDep, act: ActDep, *, new: NewPolicy
) -> OutcomeView:
    """All or nothing. Publishing what is in force already changes nothing."""
    proposal = Proposal(new.text, SOURCE, new.message)
    with refused_policy():
        outcome = await publish(session, proposal, act=act, supply=_supply(services), expected=new.expected)
    await session.commit()
    return outcome_view(outcome)


@router.post("/rollback", summary="Put the version before, or another one, back into force")
async def roll_back_policy(
    services: ServicesDep, session: SessionDep, act: ActDep, *, wanted: Rollback | None = None
) -> OutcomeView:
    """Rolling back twice returns to where it began."""
    asked = wanted or Rollback()
    with refused_policy():
        outcome = await roll_back(
            session,
            asked.version,
            act=act,
            supply=_supply(services),
            expected=asked.expected,
            message=asked.message,
        )
    await session.commit()
    return outcome_view(outcome)


@router.get("/{version}", summary="A version, with its YAML")
async def show_stored(session: SessionDep, version: str) -> VersionTextView:
    """By its name, its hash, or the beginning of its hash."""
    return version_text_view(await show_version(session, await find_version(session, version)))


@router.post("/{version}/check", summary="See whether a stored version fits the fleet")
async def check_stored(
    services: ServicesDep, session: SessionDep, act: ActDep, *, version: str
) -> VersionView:
    """Its state becomes checked, or draft again with what does not fit."""
    found = await check(session, version, act=act, supply=_supply(services))
    await session.commit()
    return version_view(found)


@router.post("/{version}/activate", summary="Put a stored version into force")
async def activate_stored(
    services: ServicesDep,
    session: SessionDep,
    act: ActDep,
    *,
    version: str,
    order: ActivationOrder | None = None,
) -> OutcomeView:
    """It must fit the fleet."""
    asked = order or ActivationOrder()
    with refused_policy():
        outcome = await put_into_force(
            session,
            version,
            act=act,
            supply=_supply(services),
            expected=asked.expected,
            message=asked.message,
        )
    await session.commit()
    return outcome_view(outcome)


def _supply(services: Services) -> Supply:
    return supply_of(services.settings, services.registry.specs)


@contextlib.contextmanager
def refused_policy() -> Iterator[None]:
    """What is wrong with a policy is the caller's."""
    try:
        yield
    except ConfigurationError as error:
        raise InvalidRequest(str(error), param="text") from None
