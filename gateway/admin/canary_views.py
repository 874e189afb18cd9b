"""How do canaries look outside? One form for the API's answers and the command line's `--json`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.views import moment, optional_moment
from gateway.jobs.leases import job_states
from gateway.paging import PageRequest
from gateway.routing.canaries import Canary, How, page_canaries
from gateway.routing.canary_state import JOB, State, evidence_of, state_of
from gateway.routing.split import Stickiness

_EXAMPLE: dict[str, Any] = {
    "number": 3,
    "version": "default@3f2a9c41d07e",
    "control": "default@91c0de55aa10",
    "percent": 5.0,
    "stickiness": "conversation",
    "tenants": [],
    "models": [],
    "units": 2000,
    "auto_promote": False,
    "started_at": "2026-11-20T12:00:00Z",
    "until": "2026-11-21T12:00:00Z",
    "actor": "ops",
    "message": "creative work to the plain pool",
    "end": {
        "how": "rolled_back",
        "reason": "10.4 % of its requests failed, 0.1 % of the control's (…)",
        "at": "2026-11-20T12:03:10Z",
        "actor": "guard",
        "evidence": {"harmed": "failures", "units": 96, "control_units": 1804, "measures": {}},
    },
}


class CanaryEndView(BaseModel):
    """Why no request follows a candidate any more."""

    how: How
    reason: str
    at: datetime | None = Field(description="null: when another version was activated")
    actor: str | None
    evidence: dict[str, Any] | None = Field(description="what the guard had seen")


class CanaryView(BaseModel):
    """A candidate beside the active version."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    number: int
    version: str = Field(description="the candidate")
    control: str = Field(description="the version that is active beside it")
    percent: float
    stickiness: Stickiness
    tenants: list[str] = Field(description="those that it is about; empty: all")
    models: list[str] = Field(description="aliases that it is about; empty: all")
    units: int = Field(description="units of the candidate after which there is a verdict")
    auto_promote: bool
    started_at: datetime
    until: datetime
    actor: str
    message: str | None
    end: CanaryEndView | None = Field(description="null: it is under way")


class CanaryStatusView(CanaryView):
    """The newest canary, and what its guard has seen so far."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{**_EXAMPLE, "end": None, "seen": None, "verdict": None, "seen_until": None}]
        }
    )

    seen: dict[str, Any] | None = Field(description="by the guard, so far; null: it has not looked yet")
    verdict: str | None = Field(description="null: none yet")
    seen_until: datetime | None


def canary_view(canary: Canary) -> CanaryView:
    """A canary without what its guard knows."""
    return CanaryView(**_fields(canary))


async def newest_canary(session: AsyncSession) -> CanaryStatusView | None:
    """The one under way or the last one; None: there never was one."""
    found = (await page_canaries(session, PageRequest(limit=1))).rows
    if not found:
        return None
    job = (await job_states(session)).get(JOB)
    state: State | None = state_of(None if job is None else job.last_result, found[0].number)
    if state is None:
        return CanaryStatusView(**_fields(found[0]), seen=None, verdict=None, seen_until=None)
    return CanaryStatusView(
        **_fields(found[0]),
        seen=evidence_of(state.suspicion, None),
        verdict=state.verdict,
        seen_until=optional_moment(state.seen_until_ms),
    )


def _fields(canary: Canary) -> dict[str, Any]:
    terms, end = canary.terms, canary.end
    return {
        "number": canary.number,
        "version": canary.version,
        "control": canary.control,
        "percent": round(terms.split.share * 100, 6),
        "stickiness": terms.split.stickiness,
        "tenants": sorted(terms.split.tenants),
        "models": sorted(terms.split.models),
        "units": terms.units_max,
        "auto_promote": terms.auto_promote,
        "started_at": moment(canary.at_ms),
        "until": moment(terms.until_ms),
        "actor": canary.actor,
        "message": terms.message,
        "end": None
        if end is None
        else CanaryEndView(
            how=end.how,
            reason=end.reason,
            at=optional_moment(end.at_ms),
            actor=end.actor,
            evidence=end.evidence,
        ),
    }
