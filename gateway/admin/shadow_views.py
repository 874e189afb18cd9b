"""How do shadows look outside? One form for the API's answers and the command line's `--json`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.views import moment, optional_moment
from gateway.ledger.budget_store import get_budget, state_of
from gateway.ledger.pairs import Fate, Pair, pairs_of
from gateway.money import usd_text
from gateway.routing.receipts import units_of
from gateway.routing.shadows import How, Shadow, newest_shadow, read_skips
from gateway.routing.split import Stickiness
from gateway.shadow_figures import Difference, Side, differences_of, side_of

PAIRS_SHOWN = 10
LONGEST_MS = 4 * 3_600_000
"""A copy that was under way when its shadow ended is over by then."""

_EXAMPLE: dict[str, Any] = {
    "number": 2,
    "version": "default@3f2a9c41d07e",
    "control": "default@91c0de55aa10",
    "percent": 10.0,
    "stickiness": "conversation",
    "tenants": [],
    "models": [],
    "budget_id": "bud_019e6f0c1a2b4c5d6e7f80910a1b2c3d",
    "started_at": "2026-11-20T12:00:00Z",
    "until": "2026-11-27T12:00:00Z",
    "actor": "ops",
    "message": "creative work to the plain pool",
    "end": None,
}
_SIDE: dict[str, Any] = {
    "requests": 412,
    "errors": 1,
    "error_percent": 0.243,
    "targets": {"plain": 412},
    "ttft_p50_ms": 81.0,
    "ttft_p95_ms": 140.0,
    "total_p50_ms": 900.0,
    "total_p95_ms": 2100.0,
    "charge_usd_mean": "0.000031450",
    "input_tokens_mean": 310.2,
    "output_tokens_mean": 102.7,
    "acceptance": None,
}
_FATE: dict[str, Any] = {
    "request_id": "req_019e6f0c1a2b4c5d6e7f80910a1b2c3d",
    "target": "plain",
    "is_answered": True,
    "error_code": None,
    "ttft_ms": 80,
    "total_ms": 911,
    "charge_usd": "0.000030010",
    "output_tokens": 99,
}


class ShadowEndView(BaseModel):
    """Why a candidate is asked for no copies any more."""

    how: How
    reason: str
    at: datetime | None = Field(description="null: when another version was activated")
    actor: str | None


class ShadowView(BaseModel):
    """A candidate that is asked for copies of requests; nobody gets its answers."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    number: int
    version: str = Field(description="the candidate")
    control: str = Field(description="the version that answers")
    percent: float = Field(description="of the units whose requests are copied")
    stickiness: Stickiness
    tenants: list[str] = Field(description="those that it is about; empty: all that have opted in")
    models: list[str] = Field(description="aliases that it is about; empty: all")
    budget_id: str = Field(description="the budget that its copies draw on")
    started_at: datetime
    until: datetime
    actor: str
    message: str | None
    end: ShadowEndView | None = Field(description="null: it is under way")


class ShadowBudgetView(BaseModel):
    """What copies may come to, and what they did in the window of now."""

    window: str
    window_start: datetime
    window_end: datetime | None
    limit_usd: str
    posted_usd: str = Field(description="spent and booked")
    left_usd: str = Field(description="neither booked nor lent to gateways")


class SideView(BaseModel):
    """How the pairs' requests fared on one side."""

    requests: int
    errors: int = Field(description="requests that got no answer")
    error_percent: float | None
    targets: dict[str, int] = Field(description="requests by the target that answered, or was tried last")
    ttft_p50_ms: float | None = Field(description="null: nothing was streamed")
    ttft_p95_ms: float | None
    total_p50_ms: float | None
    total_p95_ms: float | None
    charge_usd_mean: str | None = Field(description="per request, all of its attempts, whoever pays")
    input_tokens_mean: float | None
    output_tokens_mean: float | None
    acceptance: float | None = Field(description="accepted of drafted tokens; null: nothing was drafted")


class DifferenceView(BaseModel):
    """The candidate less what is active, per request, over requests that both were asked."""

    measure: str = Field(description="errors (share), ttft_ms, total_ms, charge_usd or output_tokens")
    pairs: int
    units: int = Field(description="conversations, or what stays together, in these pairs")
    mean: float | str | None = Field(description="money as a decimal string; null: no pair has both")
    low: float | str | None = Field(description="the true mean is above, 97.5 of 100 times; null: too few")
    high: float | str | None


class FateView(BaseModel):
    """One request, or one copy."""

    request_id: str
    target: str
    is_answered: bool
    error_code: str | None
    ttft_ms: int | None
    total_ms: int | None
    charge_usd: str | None
    output_tokens: int


class PairView(BaseModel):
    """A request and its copy; both can be explained by their ids."""

    at: datetime
    original: FateView
    copied: FateView


class ShadowStatusView(ShadowView):
    """The newest shadow, and how its candidate compares so far."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    **_EXAMPLE,
                    "budget": {
                        "window": "day",
                        "window_start": "2026-11-20T00:00:00Z",
                        "window_end": "2026-11-21T00:00:00Z",
                        "limit_usd": "2.000000000",
                        "posted_usd": "0.013001000",
                        "left_usd": "1.980000000",
                    },
                    "skips": {"loaded": 12},
                    "active": _SIDE,
                    "candidate": _SIDE,
                    "differences": [
                        {
                            "measure": "total_ms",
                            "pairs": 411,
                            "units": 96,
                            "mean": -41.2,
                            "low": -77.9,
                            "high": -4.5,
                        }
                    ],
                    "pairs": [{"at": "2026-11-20T12:40:00Z", "original": _FATE, "copied": _FATE}],
                }
            ]
        }
    )

    budget: ShadowBudgetView
    skips: dict[str, int] = Field(description="requests that were not copied, by reason")
    active: SideView
    candidate: SideView
    differences: list[DifferenceView]
    pairs: list[PairView] = Field(description=f"the last {PAIRS_SHOWN}")


def shadow_view(shadow: Shadow) -> ShadowView:
    """A shadow without what became of its copies."""
    return ShadowView(**_fields(shadow))


async def newest_status(session: AsyncSession, *, now_ms: int) -> ShadowStatusView | None:
    """The one under way or the last one, with all that is booked of it; None: there never was one."""
    shadow = await newest_shadow(session, now_ms=now_ms)
    if shadow is None:
        return None
    over_ms = now_ms + 1
    if shadow.end is not None and shadow.end.at_ms is not None:
        over_ms = min(over_ms, shadow.end.at_ms + LONGEST_MS)
    pairs = await pairs_of(session, shadow.number, since_ms=shadow.at_ms, until_ms=over_ms)
    copies = [(one.copy.request_id, one.copy.started_at_ms) for one in pairs]
    units = await units_of(session, copies, split=shadow.terms.split.number)
    budget = await get_budget(session, shadow.terms.budget_id)
    state = await state_of(session, budget, now_ms=now_ms)
    return ShadowStatusView(
        **_fields(shadow),
        budget=ShadowBudgetView(
            window=budget.window,
            window_start=moment(state.window_start_ms),
            window_end=optional_moment(state.window_end_ms),
            limit_usd=usd_text(budget.limit_usd_nanos),
            posted_usd=usd_text(state.posted_usd_nanos),
            left_usd=usd_text(state.left_usd_nanos),
        ),
        skips=await read_skips(session, shadow.number),
        active=_side(side_of(one.original for one in pairs)),
        candidate=_side(side_of(one.copy for one in pairs)),
        differences=[_difference(one) for one in differences_of(pairs, units)],
        pairs=[_pair(one) for one in pairs[:PAIRS_SHOWN]],
    )


def _fields(shadow: Shadow) -> dict[str, Any]:
    terms, end = shadow.terms, shadow.end
    return {
        "number": shadow.number,
        "version": shadow.version,
        "control": shadow.control,
        "percent": round(terms.split.share * 100, 6),
        "stickiness": terms.split.stickiness,
        "tenants": sorted(terms.split.tenants),
        "models": sorted(terms.split.models),
        "budget_id": terms.budget_id,
        "started_at": moment(shadow.at_ms),
        "until": moment(terms.until_ms),
        "actor": shadow.actor,
        "message": terms.message,
        "end": None
        if end is None
        else ShadowEndView(how=end.how, reason=end.reason, at=optional_moment(end.at_ms), actor=end.actor),
    }


def _side(side: Side) -> SideView:
    charge = side.charge_usd_nanos_mean
    return SideView(
        requests=side.requests,
        errors=side.errors,
        error_percent=round(100 * side.errors / side.requests, 3) if side.requests else None,
        targets=dict(side.targets),
        ttft_p50_ms=side.ttft_p50_ms,
        ttft_p95_ms=side.ttft_p95_ms,
        total_p50_ms=side.total_p50_ms,
        total_p95_ms=side.total_p95_ms,
        charge_usd_mean=None if charge is None else usd_text(round(charge)),
        input_tokens_mean=_rounded(side.input_tokens_mean),
        output_tokens_mean=_rounded(side.output_tokens_mean),
        acceptance=_rounded(side.acceptance),
    )


def _difference(found: Difference) -> DifferenceView:
    is_money = found.measure == "charge_usd_nanos"
    values = [
        (usd_text(round(value)) if is_money else round(value, 4)) if value is not None else None
        for value in (found.mean, found.low, found.high)
    ]
    return DifferenceView(
        measure=found.measure.removesuffix("_nanos"),
        pairs=found.pairs,
        units=found.units,
        mean=values[0],
        low=values[1],
        high=values[2],
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _pair(pair: Pair) -> PairView:
    return PairView(
        at=moment(pair.copy.started_at_ms), original=_fate(pair.original), copied=_fate(pair.copy)
    )


def _fate(fate: Fate) -> FateView:
    return FateView(
        request_id=fate.request_id,
        target=fate.target,
        is_answered=fate.is_answered,
        error_code=fate.error_code,
        ttft_ms=fate.ttft_ms,
        total_ms=fate.total_ms,
        charge_usd=None if fate.charge_usd_nanos is None else usd_text(fate.charge_usd_nanos),
        output_tokens=fate.output_tokens,
    )
