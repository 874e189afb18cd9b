"""How does a candidate do that is asked for copies of requests? A part of `/console/policies`."""

from __future__ import annotations

from fastapi.responses import Response

from gateway.console.pages import page
from gateway.dependencies import ActorDep, ServicesDep, SessionDep
from gateway.ledger.budget_store import get_budget, state_of
from gateway.ledger.pairs import pairs_of
from gateway.routing.receipts import units_of
from gateway.routing.shadows import newest_shadow, read_skips
from gateway.shadow_figures import Difference, differences_of, side_of

LONGEST_MS = 4 * 3_600_000
"""A copy that was under way when its shadow ended is over by then."""
_MEASURES = {
    "errors": "requests without an answer",
    "ttft_ms": "first token",
    "total_ms": "whole time",
    "charge_usd_nanos": "charge per request, USD",
    "output_tokens": "output tokens",
}


async def show_shadow(services: ServicesDep, session: SessionDep, actor: ActorDep) -> Response:
    """The shadow under way or the last one, side by side with what is active."""
    now_ms = services.clock.epoch_ms()
    shadow = await newest_shadow(session, now_ms=now_ms)
    if shadow is None:
        return page("policies_shadow.html", actor=actor, shadow=None)
    until_ms = now_ms + 1
    if shadow.end is not None and shadow.end.at_ms is not None:
        until_ms = min(until_ms, shadow.end.at_ms + LONGEST_MS)
    pairs = await pairs_of(session, shadow.number, since_ms=shadow.at_ms, until_ms=until_ms)
    copies = [(one.copy.request_id, one.copy.started_at_ms) for one in pairs]
    units = await units_of(session, copies, split=shadow.terms.split.number)
    budget = await get_budget(session, shadow.terms.budget_id)
    return page(
        "policies_shadow.html",
        actor=actor,
        shadow=shadow,
        pairs=len(pairs),
        sides=(side_of(one.original for one in pairs), side_of(one.copy for one in pairs)),
        differences=[
            (_MEASURES.get(one.measure, one.measure), *_told(one)) for one in differences_of(pairs, units)
        ],
        budget=budget,
        spent=await state_of(session, budget, now_ms=now_ms),
        skips=await read_skips(session, shadow.number),
    )


def _told(one: Difference) -> tuple[str, str, str]:
    """The mean difference, its interval, and what it comes to."""
    if one.mean is None:
        return "not known", "", "no pair has it on both sides"
    if one.low is None or one.high is None:
        return _number(one, one.mean), "", f"not claimed: {one.units} conversations are too few"
    word = "no clear change"
    if one.low > 0:
        word = "more"
    elif one.high < 0:
        word = "less"
    return _number(one, one.mean), f"{_number(one, one.low)} to {_number(one, one.high)}", word


def _number(one: Difference, value: float) -> str:
    if one.measure == "charge_usd_nanos":
        return f"{value / 1e9:+.9f}"
    if one.measure == "errors":
        return f"{value * 100:+.2f} %"
    return f"{value:+,.1f}{' ms' if one.measure.endswith('_ms') else ''}"
