"""What would last week have cost under this policy, these prices, this fleet, and how sure is that?

The record corrects what is believed of the pools; both policies are replayed through `decide()` and simulated
on the same luck; what the simulator makes of the recorded decisions, against what was measured, corrects its
estimates; worlds that the record does not rule out give the intervals (`intervals`). What tenants were and
would be charged is arithmetic on tokens, to the nano. The same input and seed give the same result.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from backends.pool import PoolSpec
from gateway.analysis import beliefs as believing
from gateway.analysis.adaptive import Adaptive
from gateway.analysis.beliefs import Beliefs, before_the_record, fit_front, take_record
from gateway.analysis.claims import Drawn, Estimator, bases, charges_compared, compared
from gateway.analysis.figures import (
    COST,
    EVERYTHING,
    MEASURES,
    Counts,
    Group,
    Measured,
    count,
    groups_of,
    measure,
    times_of,
    works_of,
)
from gateway.analysis.fleet import FleetRun, SimulatedFleet, Tell, Work, luck_of, untold
from gateway.analysis.history import History, RecordedRequest
from gateway.analysis.intervals import Claim, Correction, correction_of
from gateway.analysis.replay import Habits, Placed, Replayed, Scenario, replay
from gateway.analysis.speed import occupancy
from gateway.errors import InvalidRequest

DRAWS: Final = 12
DRAWN_REQUESTS: Final = 8_000
"""Worlds are simulated for so many requests at most, in windows all over the record."""
WINDOWS: Final = 20
REQUESTS_MIN: Final = 50


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """A pool's part."""

    pool: str
    requests: int
    busy_ratio: float
    """Of all its replicas' time."""
    cost_usd_nanos: float
    """Of the time that it worked."""
    idle_usd_nanos: float
    """Of the rest, which is paid too."""


@dataclass(frozen=True, slots=True)
class Side:
    """One policy."""

    scenario: Scenario
    counts: dict[Group, Counts]
    claims: dict[Group, dict[str, Claim]]
    charges: dict[Group, Claim]
    pools: list[PoolLoad]
    cache_unknown: int
    older_unknown: int


@dataclass(frozen=True, slots=True)
class Check:
    """What the simulator makes of the record itself, of one pool: simulated over measured, by measure."""

    pool: str
    requests: int
    ratios: Mapping[str, float]
    step_scales: Sequence[float]
    """What the record made of the profile's steps: fixed, sequence, context, prompt."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What happened."""

    counts: dict[Group, Counts]
    times: dict[Group, dict[str, float]]
    pools: list[PoolLoad]
    charge_usd_nanos: int
    """As the ledger's report of the span has it."""


@dataclass(frozen=True, slots=True)
class Backtest:
    """The answer."""

    history: History
    recorded: Recorded
    baseline: Side
    candidate: Side
    differences: dict[Group, dict[str, Claim]]
    charge_differences: dict[Group, Claim]
    checks: list[Check]
    decided_alike: float
    """Share of the recorded decisions that the baseline decides alike."""
    unsupported: dict[tuple[str, str], int]
    """Requests that the candidate sends where nothing is known, by pool and task."""
    seed: int
    draws: int


def units(requests: int, *, draws: int = DRAWS) -> int:
    """How often `tell` will have counted a request in the end, about."""
    return 6 * requests + 2 * draws * min(requests, DRAWN_REQUESTS)


def run_backtest(
    history: History,
    *,
    candidate: Scenario,
    baseline: Scenario,
    seed: int = 0,
    draws: int = DRAWS,
    tell: Tell = untold,
    trusts_simulator: bool = False,
) -> Backtest:
    """Compare two policies on a record.

    Args:
        history: the record.
        candidate: what is asked about.
        baseline: what it is compared with, usually what was in force.
        seed: of everything that is drawn.
        draws: worlds that are drawn for the intervals, at least 2.
        tell: told how many requests more are done with one of the steps; see `units`.
        trusts_simulator: leave its error against real engines out of the intervals: only for worlds that are
            simulated themselves.

    Raises:
        InvalidRequest: the record is too small to say anything.
        ConfigurationError: a pool cannot be simulated.
        ProfileError: a profile cannot be read.
    """
    if len(history.requests) < REQUESTS_MIN:
        raise InvalidRequest(
            f"There are {len(history.requests)} requests in this span: a backtest needs {REQUESTS_MIN} at"
            " least. Name a longer span with --from and --to."
        )
    record = _Record(history, {**baseline.specs, **candidate.specs}, seed=seed, tell=tell)
    record.trusts_simulator = trusts_simulator
    habits = Habits(record.requests)
    before = record.simulate(baseline, habits, recorded_specs=baseline.specs)
    after = record.simulate(candidate, habits, recorded_specs=baseline.specs)
    drawn = record.drawn(before, after, draws=draws)
    one, other = record.estimator(after, drawn[1], habits), record.estimator(before, drawn[0], habits)
    whole = one.bases.get(EVERYTHING)
    return Backtest(
        history,
        record.what_happened(),
        record.side(before, other),
        record.side(after, one),
        {
            group: {name: compared(other, one, group=group, name=name) for name in MEASURES}
            for group in one.counts
        },
        {group: charges_compared(other, one, group) for group in one.counts},
        record.checks,
        _decided_alike(record.requests, before.replayed.placed),
        {} if whole is None else whole.where,
        seed,
        draws,
    )


@dataclass(frozen=True, slots=True)
class _Simulated:
    """A policy, replayed and simulated."""

    replayed: Replayed
    works: list[Work]
    run: FleetRun
    measured: Measured


class _Record:
    """The record, and what it teaches of the pools."""

    def __init__(self, history: History, specs: Mapping[str, PoolSpec], *, seed: int, tell: Tell) -> None:
        self.history, self.requests = history, history.requests
        self.specs, self.seed, self.tell = specs, seed, tell
        self.trusts_simulator = False
        self.luck = luck_of(len(self.requests), seed)
        self.beliefs: Beliefs = before_the_record(specs)
        self.ran = take_record(self.beliefs, self.requests)
        self.works = believing.works_of(self.requests, specs)
        run = self._run(self._fleet())
        fit_front(self.beliefs, self.requests, run)
        self.run = self._run(self._fleet())
        self.busy_s = self._recorded_busy_s()
        self.checks: list[Check] = []
        self.corrections = self._corrections()

    def _fleet(self) -> SimulatedFleet:
        return self.beliefs.fleet(self.specs)

    def _run(self, fleet: SimulatedFleet, works: Sequence[Work] | None = None) -> FleetRun:
        return fleet.run(
            self.works if works is None else works, self.luck, seed=self.seed, on_requests=self.tell
        )

    def _recorded_busy_s(self) -> dict[str, float]:
        """Of each pool: the time in which one of its recorded answers was at work, all replicas together."""
        return {
            name: sum(occupancy(runs, self.beliefs.pools[name].shape).busy_s for runs in replicas)
            for name, replicas in self.ran.items()
        }

    def _corrections(self) -> dict[str, Correction]:
        """What was measured over what is simulated, by pool; keeps the checks that are shown."""
        pairs: dict[str, list[tuple[tuple[float, float], tuple[float, float]]]] = defaultdict(list)
        for index, request in enumerate(self.requests):
            answer, times = request.answer, self.run.times.get(index)
            if answer is None or times is None or answer.total_ms is None:
                continue
            first_s = believing.first_token_s(answer)
            if first_s is not None:
                measured = (first_s, answer.total_ms / 1000)
                pairs[answer.pool].append((measured, (times.ttft_s, times.total_s)))
        found = {}
        for name, of_pool in pairs.items():
            belief = self.beliefs.pools[name]
            if len(of_pool) < believing.ANSWERS_MIN:
                continue
            correction = correction_of(
                [pair[0] for pair in of_pool], [pair[1] for pair in of_pool], seed=self.seed
            )
            busy_s, run = self.busy_s.get(name, 0.0), self.run.pools.get(name)
            logs, deviations = dict(correction.logs), dict(correction.deviations)
            if busy_s > 0 and run is not None and run.busy_s > 0 and belief.posterior.spans:
                logs[COST] = math.log(busy_s / run.busy_s)
                deviations[COST] = belief.posterior.noise / math.sqrt(belief.posterior.spans)
            found[name] = Correction(logs, deviations)
            ratios = {measure: math.exp(-log) for measure, log in logs.items()}
            self.checks.append(Check(name, len(of_pool), ratios, belief.posterior.mean))
        return found

    # ---------------------------------------------------------------------------------------------- policies
    def simulate(
        self, scenario: Scenario, habits: Habits, *, recorded_specs: Mapping[str, PoolSpec]
    ) -> _Simulated:
        """A policy on this record."""
        replayed = replay(
            self.requests,
            scenario,
            habits=habits,
            recorded_specs=recorded_specs,
            adaptive=self._adaptive(scenario),
            donors=self.history.donors,
            on_requests=self.tell,
        )
        works = works_of(self.requests, replayed.placed, scenario.specs)
        if works == self.works and scenario.specs == self.specs:
            run = self.run
            self.tell(len(works))
        else:
            run = self._run(self.beliefs.fleet(scenario.specs), works)
        return _Simulated(replayed, works, run, self._measure(replayed, run))

    def _adaptive(self, scenario: Scenario) -> Adaptive | None:
        if not scenario.is_adaptive:
            return None
        fleet = self.beliefs.fleet(scenario.specs)
        return Adaptive(fleet, scenario.specs, self.luck, start_ms=self.requests[0].at_ms)

    def _measure(
        self, replayed: Replayed, run: FleetRun, is_in: Callable[[int], bool] | None = None
    ) -> Measured:
        shapes = {
            name: belief.shape.scaled(belief.posterior.mean) for name, belief in self.beliefs.pools.items()
        }
        return measure(
            self.requests,
            replayed.placed,
            run,
            specs=replayed.scenario.specs,
            shapes=shapes,
            is_in=is_in,
        )

    def drawn(self, *sides: _Simulated, draws: int) -> list[Drawn]:
        """Each policy in the same worlds, on the same requests."""
        total = len(self.requests)
        is_whole = total <= DRAWN_REQUESTS
        window = DRAWN_REQUESTS // WINDOWS
        stride = total / WINDOWS

        def is_in(index: int) -> bool:
            return is_whole or index - int(int(index / stride) * stride) < window

        works = [[work for work in side.works if is_in(work.index)] for side in sides]
        centers: list[Measured] = []
        worlds: list[list[Measured]] = [[] for _ in sides]
        for number in range(-1, draws):
            luck = self.luck if number < 0 or not is_whole else luck_of(total, self.seed + 1 + number)
            seed = None if number < 0 else self.seed * 1_000 + number
            for side, of_side, known in zip(sides, works, worlds, strict=True):
                if number < 0 and is_whole:
                    centers.append(side.measured)
                    continue
                fleet = self.beliefs.fleet(side.replayed.scenario.specs, seed)
                run = fleet.run(of_side, luck, seed=self.seed, on_requests=self.tell)
                measured = self._measure(side.replayed, run, is_in)
                (centers if number < 0 else known).append(measured)
        return [Drawn(center, known) for center, known in zip(centers, worlds, strict=True)]

    def estimator(self, side: _Simulated, drawn: Drawn, habits: Habits) -> Estimator:
        """What a policy's claims are made of."""
        changes = {
            name: abs(math.log(busy_s / self.run.pools[name].busy_s))
            for name, busy_s in side.measured.busy_s.items()
            if busy_s > 0 and name in self.run.pools and self.run.pools[name].busy_s > 0
        }
        placed = side.replayed.placed
        return Estimator(
            count(self.requests, placed),
            side.measured,
            bases(
                self.requests,
                side.replayed,
                beliefs=self.beliefs,
                habits=habits,
                load_changes=changes,
            ),
            drawn,
            self.corrections,
            self.trusts_simulator,
        )

    def side(self, side: _Simulated, estimator: Estimator) -> Side:
        """A policy, as it is reported."""
        busy_s = {
            name: seconds
            * math.exp(self.corrections[name].logs.get(COST, 0.0) if name in self.corrections else 0.0)
            for name, seconds in side.measured.busy_s.items()
        }
        counts = estimator.counts
        return Side(
            side.replayed.scenario,
            dict(counts),
            estimator.claims(),
            {group: estimator.charge(group) for group in counts},
            self._loads(side.replayed.scenario.specs, busy_s, counts[EVERYTHING]),
            side.replayed.cache_unknown,
            side.replayed.older_unknown,
        )

    # ------------------------------------------------------------------------------------------ what happened
    def what_happened(self) -> Recorded:
        """The record itself."""
        counts = count(self.requests, [_as_recorded(request) for request in self.requests])
        ttfts: dict[Group, list[float]] = defaultdict(list)
        totals: dict[Group, list[float]] = defaultdict(list)
        for request in self.requests:
            answer = request.answer
            if answer is None or answer.total_ms is None:
                continue
            first_s = believing.first_token_s(answer)
            for group in groups_of(request):
                totals[group].append(answer.total_ms / 1000)
                if first_s is not None:
                    ttfts[group].append(first_s)
        return Recorded(
            counts,
            {group: times_of(ttfts[group], totals[group]) for group in totals},
            self._loads(self.specs, self.busy_s, counts[EVERYTHING]),
            self.history.charge_usd_nanos,
        )

    def _loads(
        self, specs: Mapping[str, PoolSpec], busy_s: Mapping[str, float], counts: Counts
    ) -> list[PoolLoad]:
        span_s = max(1.0, (self.requests[-1].at_ms - self.requests[0].at_ms) / 1000)
        loads = []
        for name, spec in sorted(specs.items()):
            paid_s, worked_s = span_s * spec.replicas, busy_s.get(name, 0.0)
            rate = float(spec.hardware.usd_per_hour) * 1e9 / 3600
            loads.append(
                PoolLoad(
                    name,
                    counts.by_pool.get(name, 0),
                    worked_s / paid_s,
                    worked_s * rate,
                    max(0.0, paid_s - worked_s) * rate,
                )
            )
        return loads


def _as_recorded(request: RecordedRequest) -> Placed:
    answer = request.answer
    paid = [each for each in request.attempts if each.is_tenants]
    unpriced = any(each.charge_usd_nanos is None for each in paid)
    charged = None if unpriced else request.charge_usd_nanos
    if request.cache == "hit":
        return Placed(request.attempts[0].pool, is_hit=True, charge_usd_nanos=charged)
    if answer is None:
        ended = paid[-1] if paid else None
        if ended is None:
            return Placed(None, refusal="no_answer")
        return Placed(ended.pool, usage=ended.usage, charge_usd_nanos=charged)
    return Placed(answer.pool, usage=answer.usage, charge_usd_nanos=charged)


def _decided_alike(requests: Sequence[RecordedRequest], placed: Sequence[Placed]) -> float:
    known = [
        place.targets == request.targets and place.drops == request.drops
        for request, place in zip(requests, placed, strict=True)
        if request.policy and place.target is not None
    ]
    return sum(known) / len(known) if known else 0.0
