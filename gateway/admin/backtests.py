"""What would a policy have cost on recorded requests? /admin/v1/policies/backtest.

Asked for, it runs in a process of its own, one at a time; whoever asked looks again until it is over. The
result is what `tollgate policy backtest --json` prints, its figures those of the report's plots.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from fastapi import APIRouter
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from gateway.admin.policies import SOURCE
from gateway.admin.views import PageView, moment, optional_moment
from gateway.dependencies import ActDep, PageDep, Services, ServicesDep, SessionDep
from gateway.errors import ConfigurationError, InvalidRequest, NotFound
from gateway.inference import new_id
from gateway.jobs.backtest_store import (
    RUNNING,
    begin_backtest,
    cancel_backtest,
    page_backtests,
    show_backtest,
)
from gateway.jobs.backtest_tables import BacktestJob
from gateway.policy_life import refuse_large
from gateway.routing.policy import parse_policy
from gateway.routing.versions import find_version, read_active, text_of

FIRST_YEAR = 2000

router = APIRouter(prefix="/admin/v1/policies/backtest", tags=["policies"])

DAYS: Final = 7
DRAWS: Final = 12
DRAWS_MAX: Final = 60
_EXAMPLE: Final[dict[str, Any]] = {
    "version": "default@3f2a9c41d07e",
    "from": "2026-11-20T00:00:00Z",
    "to": "2026-11-27T00:00:00Z",
}


class NewBacktest(BaseModel):
    """A policy, and the recorded requests on which it shall be tried."""

    model_config = ConfigDict(
        extra="forbid", populate_by_name=True, json_schema_extra={"examples": [_EXAMPLE]}
    )

    version: str | None = Field(
        default=None, description="a stored version, a draft too, or the beginning of its hash"
    )
    text: str | None = Field(default=None, description="or a policy, YAML; it is not stored")
    baseline: str | None = Field(
        default=None, description="the version that it is compared with; null: the active one"
    )
    since: AwareDatetime | None = Field(
        default=None, alias="from", description=f"first instant; null: {DAYS} days before `to`"
    )
    until: AwareDatetime | None = Field(
        default=None, alias="to", description="first instant that does not count; null: now"
    )
    seed: int = Field(default=0, ge=0, le=2**31, description="of everything that is drawn")
    draws: int = Field(default=DRAWS, ge=2, le=DRAWS_MAX, description="worlds for the intervals")


class BacktestView(BaseModel):
    """A backtest, without what it found."""

    id: str
    state: str = Field(description="running, done, failed or cancelled", examples=[RUNNING])
    stage: str = Field(description="what it does now: starting, reading or simulating", examples=["reading"])
    progress_ratio: float = Field(description="of the stage, 0 to 1")
    candidate: str
    baseline: str
    since: datetime = Field(serialization_alias="from")
    until: datetime = Field(serialization_alias="to")
    seed: int
    draws: int
    at: datetime
    ended_at: datetime | None = Field(description="null: it is under way")
    actor: str
    error: str | None = Field(description="null: it has not failed")


class BacktestResultView(BacktestView):
    """A backtest, and what it found."""

    result: dict[str, Any] | None = Field(
        description="as `tollgate policy backtest --json` prints it; null: nothing yet", examples=[None]
    )


@router.post("", summary="Try a policy on recorded requests", status_code=201)
async def start(services: ServicesDep, session: SessionDep, act: ActDep, *, new: NewBacktest) -> BacktestView:
    """Runs in a process of its own, one at a time (409); look at it until it is over."""
    if (new.version is None) == (new.text is None):
        raise InvalidRequest("Say either `version` or `text`.", param="version")
    until = new.until or datetime.fromtimestamp(act.at_ms / 1000, UTC)
    if until.year < FIRST_YEAR:
        raise InvalidRequest("Nothing was recorded then: `to` is too early.", param="to")
    since = new.since or until - timedelta(days=DAYS)
    if since >= until:
        raise InvalidRequest("`from` must be before `to`.", param="from")
    active = await read_active(session)
    if active is None:
        raise NotFound("No policy was ever active.")
    baseline = active.version if new.baseline is None else await find_version(session, new.baseline)
    against = await text_of(session, baseline)
    if new.text is None:
        candidate = await find_version(session, new.version or "")
        text = await text_of(session, candidate)
    else:
        candidate, text = SOURCE, new.text
    version = await _read(text, candidate, services)
    job = BacktestJob(
        id=new_id("bt_", act.at_ms),
        slot=1,
        state=RUNNING,
        stage="starting",
        candidate=version if new.text is not None else candidate,
        baseline=baseline,
        from_ms=int(since.timestamp() * 1000),
        to_ms=int(until.timestamp() * 1000),
        seed=new.seed,
        draws=new.draws,
        at_ms=act.at_ms,
        beat_ms=act.at_ms,
        actor_id=act.actor.id,
        actor_name=act.actor.name,
    )
    view = BacktestView(**_fields(job))
    errand = services.backtests.errand(
        candidate=text,
        baseline=against,
        from_ms=job.from_ms,
        to_ms=job.to_ms,
        seed=job.seed,
        draws=job.draws,
    )
    await begin_backtest(session, job)
    await session.commit()
    services.backtests.start(view.id, errand)
    return view


async def _read(text: str, source: str, services: Services) -> str:
    """The version of a policy that fits the pools.

    Raises:
        InvalidRequest, PayloadTooLarge: it is none, or too long.
    """
    refuse_large(text, source=source)
    try:
        policy = await asyncio.to_thread(parse_policy, text, source=source, pools=services.registry.specs)
    except ConfigurationError as error:
        raise InvalidRequest(str(error), param="text") from None
    return policy.version


@router.get("", summary="Backtests, the newest first")
async def list_backtests(session: SessionDep, page: PageDep) -> PageView[BacktestView]:
    """Without what they found."""
    found = await page_backtests(session, page)
    return PageView(
        data=[BacktestView(**_fields(each)) for each in found.rows], next_cursor=found.next_cursor
    )


@router.get("/{backtest}", summary="A backtest, and what it found")
async def show(session: SessionDep, backtest: str) -> BacktestResultView:
    """How far it is, or its result."""
    job = await show_backtest(session, backtest)
    return BacktestResultView(**_fields(job), result=job.result)


@router.post("/{backtest}/cancel", summary="End a backtest that is under way")
async def cancel(session: SessionDep, backtest: str) -> BacktestView:
    """Its process ends within two seconds; one that is over stays as it is."""
    view = BacktestView(**_fields(await cancel_backtest(session, backtest)))
    await session.commit()
    return view


def _fields(job: BacktestJob) -> dict[str, Any]:
    return {
        "id": job.id,
        "state": job.state,
        "stage": job.stage,
        "progress_ratio": job.progress_ratio,
        "candidate": job.candidate,
        "baseline": job.baseline,
        "since": moment(job.from_ms),
        "until": moment(job.to_ms),
        "seed": job.seed,
        "draws": job.draws,
        "at": moment(job.at_ms),
        "ended_at": optional_moment(job.ended_at_ms),
        "actor": job.actor_name,
        "error": job.error,
    }
