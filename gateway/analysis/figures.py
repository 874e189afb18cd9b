"""What do the requests of a scenario add up to: money, times, hits, refusals, by class, tenant and task?

Charges are whole nano-USD. What supply costs is engine time at the pool's price: while several requests are
at work on a replica each has an equal part of the moment, so that the parts add up to the time that it was
busy; hours that nobody used are no request's, and are shown as idle. Times are seconds. An answer from the
cache counts as answered at once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from backends.pool import PoolSpec
from gateway.analysis.fleet import FleetRun, Work
from gateway.analysis.history import RecordedRequest
from gateway.analysis.replay import Placed, work_of
from gateway.analysis.speed import Ran, Shape, occupancy

EVERYTHING: Final = ("all", "")
Group = tuple[str, str]
"""What it is a group by (`class`, `tenant`, `task`, `pool`; `all`), and of what."""
TIMES: Final = ("ttft_p50_s", "ttft_p95_s", "total_p50_s", "total_p95_s")
COST: Final = "cost_usd_nanos"
MEASURES: Final = (COST, *TIMES)
"""What is estimated, with intervals."""
_QUANTILES: Final = {"ttft_p50_s": 0.5, "ttft_p95_s": 0.95, "total_p50_s": 0.5, "total_p95_s": 0.95}


@dataclass(slots=True)
class Counts:
    """What is counted of a group, without a simulation."""

    requests: int = 0
    hits: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    charge_usd_nanos: int = 0
    unpriced: int = 0
    moved: int = 0
    """Answered elsewhere than in the record."""
    by_pool: dict[str, int] = field(default_factory=dict)
    tokens: int = 0


def groups_of(request: RecordedRequest) -> tuple[Group, ...]:
    """All that a request counts in."""
    return (
        EVERYTHING,
        ("class", request.latency_class),
        ("tenant", request.tenant_id),
        ("task", request.task.type.value),
    )


def count(requests: Sequence[RecordedRequest], placed: Sequence[Placed]) -> dict[Group, Counts]:
    """What is counted, by group."""
    found: dict[Group, Counts] = defaultdict(Counts)
    for request, place in zip(requests, placed, strict=True):
        answer = request.answer
        moved = place.target is not None and answer is not None and place.target != answer.pool
        for group in groups_of(request):
            counts = found[group]
            counts.requests += 1
            if place.refusal is not None:
                counts.refusals[place.refusal] = counts.refusals.get(place.refusal, 0) + 1
                continue
            if place.charge_usd_nanos is None:
                counts.unpriced += 1
            else:
                counts.charge_usd_nanos += place.charge_usd_nanos
            if place.is_hit:
                counts.hits += 1
                continue
            counts.moved += moved
            counts.tokens += place.usage.output + place.usage.reasoning
            if place.target is not None:
                counts.by_pool[place.target] = counts.by_pool.get(place.target, 0) + 1
    return dict(found)


def works_of(
    requests: Sequence[RecordedRequest], placed: Sequence[Placed], pools: Collection[str]
) -> list[Work]:
    """What a scenario asks of the pools, in the order of time."""
    start_ms = requests[0].at_ms if requests else 0
    return [
        work_of(index, request, place, start_ms=start_ms)
        for index, (request, place) in enumerate(zip(requests, placed, strict=True))
        if place.target in pools and not place.is_hit and not place.is_external
    ]


@dataclass(slots=True)
class Measured:
    """What a run of the fleet comes to."""

    values: dict[Group, dict[str, float]]
    """By group: the measures; a group without requests of a kind lacks them."""
    busy_s: dict[str, float]
    """By pool, all replicas together."""
    pool_shares: dict[Group, dict[str, float]]
    """By group: which part of its requests each pool answered."""
    cost_shares: dict[Group, dict[str, float]]
    """By group: which part of its cost each pool has."""
    samplings: dict[Group, dict[str, float]]
    """By group: how far each time would be off by chance, had other requests of the same kind come: standard
    deviation of its logarithm."""


def measure(
    requests: Sequence[RecordedRequest],
    placed: Sequence[Placed],
    run: FleetRun,
    *,
    specs: Mapping[str, PoolSpec],
    shapes: Mapping[str, Shape],
    is_in: Callable[[int], bool] | None = None,
) -> Measured:
    """Add up what a fleet did.

    Args:
        requests: the record.
        placed: where they went.
        run: what became of those that went to pools.
        specs: the pools.
        shapes: how steps of each pool cost.
        is_in: whether a request, by its number, counts; None: all do.
    """
    shares_s: dict[int, float] = {}
    for name, pool_run in run.pools.items():
        _share_out(
            pool_run.replicas,
            pool_run.indices,
            busy_s=pool_run.busy_s,
            shape=shapes[name],
            into=shares_s,
        )
    costs: dict[Group, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    ttfts: dict[Group, list[float]] = defaultdict(list)
    totals: dict[Group, list[float]] = defaultdict(list)
    pools: dict[Group, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    rates = {name: float(spec.hardware.usd_per_hour) * 1e9 / 3600 for name, spec in specs.items()}
    for index, (request, place) in enumerate(zip(requests, placed, strict=True)):
        if place.target is None or (is_in is not None and not is_in(index)):
            continue
        groups = groups_of(request)
        if place.is_hit:
            for group in groups:
                ttfts[group].append(0.0)
                totals[group].append(0.0)
            continue
        times = run.times.get(index)
        if times is None:  # outside the company: nobody knows how long that takes
            if place.is_external:
                for group in groups:
                    costs[group][place.target] += place.charge_usd_nanos or 0
            continue
        cost = shares_s.get(index, 0.0) * rates[place.target]
        for group in groups:
            costs[group][place.target] += cost
            ttfts[group].append(times.ttft_s)
            totals[group].append(times.total_s)
            pools[group][place.target] += 1
    values = {
        group: {COST: sum(costs[group].values()), **_times(ttfts[group], totals[group])} for group in ttfts
    }
    return Measured(
        values,
        {name: pool_run.busy_s for name, pool_run in run.pools.items()},
        {group: _parts(found) for group, found in pools.items()},
        {group: _parts(found) for group, found in costs.items()},
        {group: _samplings(ttfts[group], totals[group]) for group in ttfts},
    )


def _parts(amounts: Mapping[str, float]) -> dict[str, float]:
    total = sum(amounts.values())
    return {name: amount / total for name, amount in amounts.items()} if total else {}


def _share_out(
    replicas: Sequence[Sequence[Ran]],
    indices: Sequence[Sequence[int]],
    *,
    busy_s: float,
    shape: Shape,
    into: dict[int, float],
) -> None:
    met = [occupancy(runs, shape) for runs in replicas]
    present_s = sum(each.busy_s for each in met)
    factor = busy_s / present_s if present_s > 0 else 0.0
    for found, numbers in zip(met, indices, strict=True):
        for index, share_s in zip(numbers, found.shares_s, strict=True):
            into[index] = share_s * factor


def _times(ttfts: list[float], totals: list[float]) -> dict[str, float]:
    ttfts.sort()
    totals.sort()
    of = {"ttft": ttfts, "total": totals}
    return {name: at_quantile(of[name.split("_")[0]], share) for name, share in _QUANTILES.items()}


def _samplings(ttfts: Sequence[float], totals: Sequence[float]) -> dict[str, float]:
    """Of ordered times: half the distance of the order statistics that are one deviation off (binomial)."""
    of, found = {"ttft": ttfts, "total": totals}, {}
    for name, share in _QUANTILES.items():
        ordered = of[name.split("_")[0]]
        off = math.sqrt(share * (1 - share) / len(ordered)) if ordered else 0.0
        low, high = at_quantile(ordered, max(0.0, share - off)), at_quantile(ordered, min(1.0, share + off))
        found[name] = math.log(high / low) / 2 if low > 0 else 0.0
    return found


def at_quantile(ordered: Sequence[float], share: float) -> float:
    """The least value that so large a share do not exceed; 0 of nothing."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def times_of(ttfts: list[float], totals: list[float]) -> dict[str, float]:
    """The four times of some requests."""
    return _times(list(ttfts), list(totals))
