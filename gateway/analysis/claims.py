"""What may be said of a group of requests under a policy, and what may not?

Puts together what `intervals` names: for each group and measure the estimate, its deviation from each of the
sources, or the reason why nothing is claimed. Pure arithmetic on what was counted and simulated.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from gateway.analysis.beliefs import Beliefs, Support
from gateway.analysis.figures import COST, MEASURES, Counts, Group, Measured, groups_of
from gateway.analysis.history import RecordedRequest
from gateway.analysis.intervals import (
    GROUP_MIN,
    SIMULATOR,
    UNSUPPORTED_MAX,
    Claim,
    Correction,
    deviation,
    deviation_of_logs,
    difference,
    lognormal,
    mixed,
)
from gateway.analysis.replay import Habits, Placed, Replayed
from gateway.money import TOKENS_PER_RATE

DRAWN_TWICE: Final = 2
"""The record is one draw of an answer's length, what is asked about is another. How much of the variance of
lengths within a tenant and task is their prompts', and does not come again, a record without repetitions does
not tell: none is taken to be."""
_STRATUM_MIN: Final = 10


@dataclass(slots=True)
class Basis:
    """What a group's claims rest on, under one policy."""

    answered: int = 0
    external: int = 0
    unsupported: int = 0
    unknown_lengths: int = 0
    """Answers that another model would write, of which nobody knows how long they are."""
    profiled: int = 0
    where: dict[tuple[str, str], int] = field(default_factory=dict)
    """The unsupported, by pool and task."""
    strangeness: float = 0.0
    """Root of the mean square, over its requests, of how far each is from where the record has it: 1 for
    another pool, else by how much its pool's load differs."""
    length_deviation: float = 0.0
    """Of the logarithm of its output tokens, by chance alone."""
    moved_length_deviation: float = 0.0
    """The same, of those that moved only."""
    sampled: int = 0
    """Answers that would be others, were they drawn again."""
    cached_usd_nanos: float = 0.0
    """Standard deviation of its charge by how much of the prompts the other pools' prefix caches have."""


def bases(
    requests: Sequence[RecordedRequest],
    replayed: Replayed,
    *,
    beliefs: Beliefs,
    habits: Habits,
    load_changes: Mapping[str, float],
) -> dict[Group, Basis]:
    """By group.

    Args:
        requests: the record.
        replayed: where they go.
        beliefs: of the pools.
        habits: of the record.
        load_changes: by pool, the absolute logarithm of its busy time over the recorded one.
    """
    placed = replayed.placed
    cached = _CachedDoubt(replayed, habits)
    variances = _length_variances(requests)
    found: dict[Group, Basis] = defaultdict(Basis)
    squares: dict[Group, float] = defaultdict(float)
    lengths: dict[Group, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for request, place in zip(requests, placed, strict=True):
        if place.target is None or place.is_hit:
            continue
        answer, task = request.answer, request.task.type.value
        has_moved = answer is None or answer.pool != place.target
        support = Support.RECORDED  # where the record has the request itself there
        if has_moved and not place.is_external:
            support = beliefs.pools[place.target].support(task)
        if place.has_unknown_length:
            support = Support.NONE
        far = 1.0 if has_moved else min(1.0, load_changes.get(place.target, 0.0))
        chance = 0.0 if _is_certain(request) else variances.get((request.tenant_id, task), 0.0)
        for group in groups_of(request):
            if has_moved:
                cached.add(group, request, place)
            basis = found[group]
            basis.answered += 1
            basis.external += place.is_external
            basis.profiled += support is Support.PROFILED
            basis.sampled += not _is_certain(request)
            basis.unknown_lengths += place.has_unknown_length
            if support is Support.NONE:
                basis.unsupported += 1
                cell = (place.target, task)
                basis.where[cell] = basis.where.get(cell, 0) + 1
            squares[group] += far * far
            sums = lengths[group]
            sums[0] += place.usage.output + place.usage.reasoning
            sums[1] += chance
            sums[2] += chance if has_moved else 0.0
    for group, basis in found.items():
        basis.cached_usd_nanos = cached.deviation(group)
        tokens, all_of, moved = lengths[group]
        basis.strangeness = math.sqrt(squares[group] / basis.answered)
        if tokens:
            basis.length_deviation = math.sqrt(all_of) / tokens
            basis.moved_length_deviation = math.sqrt(moved) / tokens
    return dict(found)


class _CachedDoubt:
    """How far charges may be off by what prefix caches have of the prompts that moved."""

    def __init__(self, replayed: Replayed, habits: Habits) -> None:
        self._prices, self._habits = replayed.scenario.prices, habits
        self._sums: dict[Group, dict[tuple[str, str], float]] = defaultdict(lambda: defaultdict(float))

    def add(self, group: Group, request: RecordedRequest, place: Placed) -> None:
        """One request that moved."""
        answer, target = request.answer, place.target
        if answer is None or target is None or place.is_external:
            return
        price = self._prices.at(request.at_ms).find(target)
        if price is None or price.rates is None:
            return
        less = price.rates.input - price.rates.cached_input
        self._sums[group][target, answer.pool] += answer.usage.cached_input * less / TOKENS_PER_RATE

    def deviation(self, group: Group) -> float:
        """Of the group's charge, nano-USD."""
        return math.hypot(
            *(
                amount * self._habits.cached_ratio(*pools).deviation
                for pools, amount in self._sums.get(group, {}).items()
            )
        )


def _is_certain(request: RecordedRequest) -> bool:
    """The same request has the same answer."""
    return request.asked.temperature == 0


def _length_variances(requests: Sequence[RecordedRequest]) -> dict[tuple[str, str], float]:
    """Of one answer's tokens by chance, tokens squared, by tenant and task."""
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for request in requests:
        answer = request.answer
        if answer is None or _is_certain(request):
            continue
        one = sums[request.tenant_id, request.task.type.value]
        one[0] += 1
        one[1] += answer.output_tokens
        one[2] += answer.output_tokens**2
    return {
        key: DRAWN_TWICE * max(0.0, square / count - (total / count) ** 2)
        for key, (count, total, square) in sums.items()
        if count >= _STRATUM_MIN
    }


@dataclass(frozen=True, slots=True)
class Drawn:
    """A side's measures in the worlds that were drawn, and in the most probable one, of the same requests."""

    center: Measured
    worlds: Sequence[Measured]

    def logs(self, group: Group, name: str) -> tuple[float, list[float]]:
        """The value in the most probable world, and in each of the others; 0 where there is none."""
        of = [world.values.get(group, {}).get(name, 0.0) for world in self.worlds]
        return self.center.values.get(group, {}).get(name, 0.0), of


@dataclass(frozen=True, slots=True)
class Estimator:
    """Everything about one side that its claims need."""

    counts: Mapping[Group, Counts]
    measured: Measured
    bases: Mapping[Group, Basis]
    drawn: Drawn
    corrections: Mapping[str, Correction]
    trusts_simulator: bool = False
    """Its error against real engines is left out: for worlds that are simulated themselves."""

    def shares(self, group: Group, name: str) -> Mapping[str, float]:
        """Which part of a group's measure each pool has."""
        shares = self.measured.cost_shares if name == COST else self.measured.pool_shares
        return shares.get(group, {})

    def estimate(self, group: Group, name: str) -> float:
        """The best guess."""
        log, _ = mixed(self.corrections, self.shares(group, name), name)
        return self.measured.values.get(group, {}).get(name, 0.0) * math.exp(log)

    def extrapolated(self, group: Group, name: str) -> float:
        """What the simulator may be off by, for want of a record."""
        return self.simulator_error(name) * self.bases[group].strangeness

    def simulator_error(self, name: str) -> float:
        """Of a measure where the record has nothing like it."""
        return 0.0 if self.trusts_simulator else SIMULATOR[name]

    def deviation(self, group: Group, name: str) -> float:
        """Of the logarithm of the estimate."""
        center, drawn = self.drawn.logs(group, name)
        log, corrected = mixed(self.corrections, self.shares(group, name), name)
        return math.hypot(
            deviation_of_logs(center, drawn),
            corrected,
            # What the simulator could not explain may not hold where the load is another one.
            log * self.bases[group].strangeness,
            self.extrapolated(group, name),
            self.redrawn(group, name),
        )

    def redrawn(self, group: Group, name: str) -> float:
        """What a measure may be off by, because sampled answers have other lengths when drawn again."""
        basis = self.bases[group]
        if name == COST:
            return basis.length_deviation
        sampling = self.measured.samplings.get(group, {}).get(name, 0.0)
        return sampling * math.sqrt(DRAWN_TWICE * basis.sampled / basis.answered)

    def obstacle(self, group: Group, name: str) -> str | None:
        """Why nothing is claimed; None: it is."""
        basis = self.bases.get(group)
        if basis is None:
            return "no request of it is answered by a model"
        if basis.answered < GROUP_MIN:
            return f"only {basis.answered} requests: {GROUP_MIN} are needed"
        if basis.unsupported > UNSUPPORTED_MAX * basis.answered:
            cells = sorted(basis.where.items(), key=lambda pair: -pair[1])[:3]
            named = ", ".join(f"{task} on {pool} ({number} requests)" for (pool, task), number in cells)
            return f"the record has never seen, and no bench has measured: {named}"
        if name != COST and basis.external > UNSUPPORTED_MAX * basis.answered:
            return f"{basis.external} requests go outside the company, where no times are simulated"
        return None

    def claim(self, group: Group, name: str) -> Claim:
        """An interval, or why there is none."""
        refused = self.obstacle(group, name)
        if refused is not None:
            return Claim(None, refused)
        basis = self.bases[group]
        rests_on = Support.PROFILED if basis.profiled > UNSUPPORTED_MAX * basis.answered else Support.RECORDED
        interval = lognormal(self.estimate(group, name), self.deviation(group, name))
        return Claim(interval, rests_on=rests_on.value)

    def claims(self) -> dict[Group, dict[str, Claim]]:
        """Of all groups."""
        return {group: {name: self.claim(group, name) for name in MEASURES} for group in self.counts}

    def charge(self, group: Group) -> Claim:
        """What tenants would be charged; exact but for what is drawn again."""
        basis, counts = self.bases.get(group), self.counts[group]
        if basis is None:
            return Claim(lognormal(float(counts.charge_usd_nanos), 0.0))
        if basis.unknown_lengths > UNSUPPORTED_MAX * basis.answered:
            return Claim(None, f"nobody knows how long {basis.unknown_lengths} answers of another model are")
        charged = float(counts.charge_usd_nanos)
        if charged <= 0:
            return Claim(lognormal(charged, 0.0))
        return Claim(lognormal(charged, math.hypot(basis.length_deviation, basis.cached_usd_nanos / charged)))


def compared(other: Estimator, one: Estimator, *, group: Group, name: str) -> Claim:
    """What changes by the change alone, on the same luck: one minus other."""
    for side in (one, other):
        refused = side.obstacle(group, name)
        if refused is not None:
            return Claim(None, refused)
    before, after = other.estimate(group, name), one.estimate(group, name)
    center, center_before = one.drawn.logs(group, name), other.drawn.logs(group, name)
    ratios = [
        math.log(value / base) - math.log(center[0] / center_before[0])
        for value, base in zip(center[1], center_before[1], strict=True)
        if min(value, base, center[0], center_before[0]) > 0
    ]
    shares, shares_before = one.shares(group, name), other.shares(group, name)
    corrected = math.sqrt(
        sum(
            ((shares.get(pool, 0.0) - shares_before.get(pool, 0.0)) * found.deviations.get(name, 0.0)) ** 2
            for pool, found in one.corrections.items()
        )
    )
    basis = one.bases[group]
    extrapolated = one.simulator_error(name) * math.sqrt(
        max(0.0, basis.strangeness**2 - other.bases[group].strangeness ** 2)
    )
    redrawn = one.redrawn(group, name) * basis.strangeness
    if name == COST:
        redrawn = basis.moved_length_deviation
    log, _ = mixed(one.corrections, shares, name)
    transported = log * math.sqrt(max(0.0, basis.strangeness**2 - other.bases[group].strangeness ** 2))
    of_ratio = math.hypot(deviation(ratios), corrected, extrapolated, redrawn, transported)
    common = other.deviation(group, name)
    return Claim(difference(after, before, math.hypot(after * of_ratio, (after - before) * common)))


def charges_compared(other: Estimator, one: Estimator, group: Group) -> Claim:
    """What tenants would be charged more, or less."""
    refused = one.charge(group).refused
    if refused is not None or group not in other.counts:
        return Claim(None, refused)
    after, before = float(one.counts[group].charge_usd_nanos), float(other.counts[group].charge_usd_nanos)
    basis = one.bases.get(group)
    spread = 0.0
    if basis is not None:
        spread = math.hypot(after * basis.moved_length_deviation, basis.cached_usd_nanos)
    return Claim(difference(after, before, spread))
