"""How does a backtest look outside? One form for `--json`, the report and the terminal.

Money as decimal strings of USD, times in seconds as floats. What is not claimed says why in `refused`, in
place of an estimate. Names of tenants are looked up by whoever has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.analysis.backtest import Backtest, PoolLoad, Side
from gateway.analysis.figures import COST, EVERYTHING, TIMES, Counts, Group
from gateway.analysis.intervals import Claim
from gateway.clock import instant_text
from gateway.money import usd_text

BY: Final = ("all", "class", "tenant", "task")
CHARGE: Final = "charge_usd"
_DIGITS: Final = 6
ASSUMED: Final = (
    "Requests come when they came, whatever the answers before them were like.",
    "Answers are as long as recorded; a pool of another model scales them by what the record says of both.",
    "What was refused before any attempt is counted and not replayed; nor are budgets, limits and hedging.",
    "An attempt that failed at a pool fails there again, and nowhere else.",
    "How much of a prompt a prefix cache has is compared between pools, not simulated.",
    "No budget runs low; a rule's canary that sticks to conversations is drawn for each request.",
    "A policy that follows measurements learns from the first request on, and explores nothing.",
)


def as_json(found: Backtest, tenants: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The whole answer.

    Args:
        found: the backtest.
        tenants: what people call them, by id.
    """
    names = tenants or {}
    history = found.history
    return {
        "object": "tollgate.backtest",
        "from": instant_text(history.from_ms),
        "to": instant_text(history.to_ms),
        "requests": len(history.requests),
        "baseline": _scenario(found.baseline),
        "candidate": _scenario(found.candidate),
        "record": {
            "charge_usd": usd_text(found.recorded.charge_usd_nanos),
            "platform_usd": usd_text(history.platform_usd_nanos),
            "corrections_usd": usd_text(history.corrections_usd_nanos),
            "without_receipt": history.without_receipt,
            "without_features": history.without_asked,
            "refused_before_any_attempt": dict(sorted(history.refused.items())),
            "decided_alike_ratio": round(found.decided_alike, _DIGITS),
        },
        "groups": [
            _group(found, group, names)
            for group in sorted(found.candidate.counts, key=lambda each: _order(found, each))
        ],
        "pools": _pools(found),
        "simulator": [
            {
                "pool": check.pool,
                "requests": check.requests,
                "simulated_over_measured": {name: round(each, 4) for name, each in check.ratios.items()},
                "step_scales": [round(each, 4) for each in check.step_scales],
            }
            for check in found.checks
        ],
        "not_claimed": not_claimed(found),
        "assumed": list(ASSUMED),
        "seed": found.seed,
        "draws": found.draws,
    }


def _order(found: Backtest, group: Group) -> tuple[int, int, str]:
    return BY.index(group[0]), -found.candidate.counts[group].requests, group[1]


def _scenario(side: Side) -> dict[str, str]:
    return {"name": side.scenario.name, "policy": side.scenario.policy.version}


def _group(found: Backtest, group: Group, tenants: Mapping[str, str]) -> dict[str, Any]:
    by, name = group
    recorded = found.recorded.counts.get(group, Counts())
    return {
        "by": by,
        "name": tenants.get(name, name) if by == "tenant" else name,
        **({"id": name} if by == "tenant" else {}),
        "requests": found.candidate.counts[group].requests,
        "recorded": {
            CHARGE: usd_text(recorded.charge_usd_nanos),
            **_counted(recorded),
            **{key: round(each, _DIGITS) for key, each in found.recorded.times.get(group, {}).items()},
        },
        "baseline": _side(found.baseline, group),
        "candidate": _side(found.candidate, group),
        "change": _change(found, group),
    }


def _counted(counts: Counts) -> dict[str, Any]:
    return {
        "cache_hits": counts.hits,
        "refusals": counts.refusals,
        "unpriced": counts.unpriced,
        "by_pool": counts.by_pool,
    }


def _side(side: Side, group: Group) -> dict[str, Any]:
    counts, claims = side.counts.get(group, Counts()), side.claims.get(group, {})
    shown: dict[str, Any] = {**_counted(counts), "moved": counts.moved}
    if group in side.charges:
        shown[CHARGE] = _money(side.charges[group])
    if claims:
        shown["cost_usd"] = _money(claims[COST])
        shown |= {name: _times(claims[name]) for name in TIMES}
    return shown


def _change(found: Backtest, group: Group) -> dict[str, Any]:
    claims = found.differences[group]
    return {
        CHARGE: _money(found.charge_differences[group]),
        "cost_usd": _money(claims[COST]),
        **{name: _times(claims[name]) for name in TIMES},
    }


def _money(claim: Claim) -> dict[str, Any]:
    if claim.interval is None:
        return {"refused": claim.refused}
    interval = claim.interval
    return {
        "estimate": usd_text(round(interval.estimate)),
        "low": usd_text(round(interval.low)),
        "high": usd_text(round(interval.high)),
        "rests_on": claim.rests_on,
    }


def _times(claim: Claim) -> dict[str, Any]:
    if claim.interval is None:
        return {"refused": claim.refused}
    interval = claim.interval
    return {
        "estimate": round(interval.estimate, _DIGITS),
        "low": round(interval.low, _DIGITS),
        "high": round(interval.high, _DIGITS),
        "rests_on": claim.rests_on,
    }


def _pools(found: Backtest) -> list[dict[str, Any]]:
    sides = {
        "recorded": found.recorded.pools,
        "baseline": found.baseline.pools,
        "candidate": found.candidate.pools,
    }
    loads = {side: {load.pool: load for load in pools} for side, pools in sides.items()}
    names = sorted({name for of_side in loads.values() for name in of_side})
    return [
        {"pool": name, **{side: _load(of_side.get(name)) for side, of_side in loads.items()}}
        for name in names
    ]


def _load(load: PoolLoad | None) -> dict[str, Any] | None:
    if load is None:
        return None
    return {
        "requests": load.requests,
        "busy_ratio": round(load.busy_ratio, 4),
        "cost_usd": usd_text(round(load.cost_usd_nanos)),
        "idle_usd": usd_text(round(load.idle_usd_nanos)),
    }


def not_claimed(found: Backtest) -> list[str]:
    """What rests on nothing, in sentences."""
    said = [
        f"{number:,} requests of {task} would go to {pool}: the record has never seen that, and no bench has"
        " measured it."
        for (pool, task), number in sorted(found.unsupported.items(), key=lambda pair: -pair[1])
    ]
    said += [
        f"{side.scenario.name}: {side.cache_unknown:,} requests might be answered from the cache, but the"
        " record does not know which of them are the same."
        for side in (found.baseline, found.candidate)
        if side.cache_unknown
    ]
    said += [
        f"{side.scenario.name}: {side.older_unknown:,} requests were answered from the cache by answers of"
        " the time before the record; what they would come to without it is not known, and they are left out."
        for side in (found.baseline, found.candidate)
        if side.older_unknown
    ]
    refused = found.differences[EVERYTHING]
    reasons = sorted({claim.refused for claim in refused.values() if claim.refused is not None})
    return said + [f"No figure over all requests: {reason}." for reason in reasons]


def verdict(claim: Mapping[str, Any], *, less: str, more: str) -> str:
    """What a change comes to, in a word, where chance does not explain it."""
    if "refused" in claim:
        return "not claimed"
    low, high = float(claim["low"]), float(claim["high"])
    if low > 0:
        return more
    return less if high < 0 else "no clear change"
