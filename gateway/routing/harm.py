"""Is the candidate worse than the control? A sequential test, to be looked at as often as one likes. Pure.

A canary gives each unit (a conversation, a key, a request) to the candidate by a hash. If the candidate does
no harm, then of the units that ended in one stretch of time any others might just as well have been the
candidate's: which ones they are is a draw without replacement. So for a measure y ≥ 0 (0 or 1 for a failure,
a cost), n₁ units of the candidate among n, and any λ > 0 that was fixed before,

    E = exp(λ Σ y over the candidate's) / (mean of exp(λ y) over all n)^n₁

has an expectation of at most 1: for a convex function of the sum a draw without replacement comes to no more
than one with replacement (Hoeffding 1963, "Probability inequalities for sums of bounded random variables",
theorem 4), and that one's expectation is the denominator. Whatever the distribution and however it drifts
from stretch to stretch; an outage that hits both is in the denominator. The product over stretches is a
non-negative supermartingale that starts at 1, so is the mixture over several λ, and by Ville's inequality it
ever exceeds 1/a with a probability of at most a (Ramdas, Grünwald, Vovk, Shafer 2023, "Game-theoretic
statistics and safe anytime-valid inference", Statistical Science 38; for tables of two by two Turner, Ly,
Grünwald 2024, "Generic E-variables for exact sequential k-sample tests").

- Failures: y is 0 or 1.
- Latency: y says whether it exceeded the control's 95th percentile, as it was before that stretch.
- Cost: y is the cost in terms of the control's mean before that stretch, cut off at its 99th percentile
  (at 3 times the mean, if that is more), so that one huge request decides nothing.

The candidate's times and costs are divided by what is tolerated first: what is tested is "worse by
more than". What it does not do: it never proves that there is no harm, it only fails to see any.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final

import msgspec

LATENCY_QUANTILE: Final = 0.95
COST_QUANTILE: Final = 0.99
CAP_MEANS: Final = 3.0
"""Costs are not cut off below so many times their mean: where all are alike a dearer one would be, too."""
REFERENCE_MIN: Final = 60
"""So many of the control's values are needed before a quantile of them says anything."""
REFERENCE_MAX: Final = 600
_RATES: Final = (0.4, 0.9, 1.6, 2.3, 3.2)
"""λ for what happens or not: about the logarithm of how many times as often it happens."""
_SIZES: Final = (0.1, 0.2, 0.4, 0.8)
"""λ for costs in terms of their mean."""


class Evidence(msgspec.Struct):
    """How much speaks against the candidate in one measure, so far."""

    logs: list[float]
    """The logarithm of E for each λ."""
    units: int = 0
    """The candidate's that were looked at."""
    control_units: int = 0
    total: float = 0.0
    """The sum of y over the candidate's."""
    control_total: float = 0.0
    most: float = 0.0
    """The greatest logarithm of the mixture that there ever was: a look that came too early for a verdict
    counts."""

    @property
    def log_e(self) -> float:
        """The mixture's logarithm."""
        return _log_mean(self.logs)

    def add(self, lambdas: Sequence[float], candidate: Sequence[float], control: Sequence[float]) -> None:
        """Take a stretch in.

        Args:
            lambdas: as many as `logs`.
            candidate: y of each of its units, shape (n₁,), at least 0.
            control: the same of the control's, shape (n - n₁,).
        """
        if not candidate or not control:
            return
        counts = Counter([*candidate, *control])  # most values are 0 or 1
        summed = sum(candidate)
        for place, each in enumerate(lambdas):
            log_mean = _log_mean([each * value for value in counts], counts.values())
            self.logs[place] += each * summed - len(candidate) * log_mean
        self.units += len(candidate)
        self.control_units += len(control)
        self.total += summed
        self.control_total += sum(control)
        self.most = max(self.most, self.log_e)


def _log_mean(logs: Sequence[float], counts: Collection[int] | None = None) -> float:
    """The logarithm of the mean of what these are the logarithms of, each so many times."""
    most, times = max(logs), counts or [1] * len(logs)
    summed = sum(n * math.exp(each - most) for each, n in zip(logs, times, strict=True))
    return most + math.log(summed / sum(times))


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


class Tolerance(msgspec.Struct, frozen=True):
    """What is not held against a candidate."""

    latency_ratio: float = 0.10
    """So much slower."""
    cost_ratio: float = 0.05
    """So much dearer."""


class Observation(msgspec.Struct, frozen=True, array_like=True):
    """One unit, by its first request that ended under the canary."""

    is_candidate: bool
    is_failure: bool
    latency_class: str
    ttft_ms: int | None
    """At least; None: not measured, or the request failed."""
    total_ms: int | None
    cost_usd_nanos: int | None


class _Sizes(msgspec.Struct):
    """The control's latest values: what a stretch that comes is measured by."""

    values: list[float] = msgspec.field(default_factory=list)

    def add(self, values: Sequence[float]) -> None:
        self.values = [*self.values, *values][-REFERENCE_MAX:]

    @property
    def is_enough(self) -> bool:
        return len(self.values) >= REFERENCE_MIN


FAILURES: Final = "failures"
COST: Final = "cost"
CLASSES: Final = ("priority", "default", "flex")
LATENCIES: Final = tuple(f"{kind}_{tier}" for kind in ("ttft", "total") for tier in CLASSES)
MEASURES: Final = (FAILURES, COST, *LATENCIES)


class Suspicion(msgspec.Struct):
    """Everything that is known of a candidate's harm."""

    tolerance: Tolerance
    evidence: dict[str, Evidence] = msgspec.field(default_factory=dict)
    """By measure."""
    sizes: dict[str, _Sizes] = msgspec.field(default_factory=dict)
    units: int = 0
    """The candidate's, so far."""
    control_units: int = 0
    served: int = 0
    """Of the candidate's: those that got an answer."""

    def begin(self, control: Sequence[Observation]) -> None:
        """Learn of what the control did before the canary began."""
        self._learn(control)

    def add(self, stretch: Sequence[Observation]) -> None:
        """Take in the units of one stretch of time; where it ended must not depend on how they fared."""
        candidate = [one for one in stretch if one.is_candidate]
        control = [one for one in stretch if not one.is_candidate]
        self.units += len(candidate)
        self.control_units += len(control)
        self.served += sum(not one.is_failure for one in candidate)
        self._of(FAILURES, _RATES).add(
            _RATES, [float(one.is_failure) for one in candidate], [float(one.is_failure) for one in control]
        )
        for name in LATENCIES:
            self._add_latency(name, candidate, control)
        self._add_cost(candidate, control)
        self._learn(control)

    def _add_latency(
        self, name: str, candidate: Sequence[Observation], control: Sequence[Observation]
    ) -> None:
        sizes = self.sizes.get(name)
        theirs = _latencies(name, candidate)
        if sizes is None or not sizes.is_enough or not theirs:
            return
        limit = quantile(sizes.values, LATENCY_QUANTILE)
        allowed = limit * (1 + self.tolerance.latency_ratio)
        self._of(name, _RATES).add(
            _RATES,
            [float(value > allowed) for value in theirs],
            [float(value > limit) for value in _latencies(name, control)],
        )

    def _add_cost(self, candidate: Sequence[Observation], control: Sequence[Observation]) -> None:
        sizes = self.sizes.get(COST)
        if sizes is None or not sizes.is_enough:
            return
        mean = sum(sizes.values) / len(sizes.values)
        cap = max(quantile(sizes.values, COST_QUANTILE), CAP_MEANS * mean)
        if mean <= 0:
            return
        allowed = 1 + self.tolerance.cost_ratio
        self._of(COST, _SIZES).add(
            _SIZES,
            [min(value / allowed, cap) / mean for value in _costs(candidate)],
            [min(value, cap) / mean for value in _costs(control)],
        )

    def _learn(self, control: Sequence[Observation]) -> None:
        for name in LATENCIES:
            values = _latencies(name, control)
            if values:
                self.sizes.setdefault(name, _Sizes()).add(values)
        self.sizes.setdefault(COST, _Sizes()).add(_costs(control))

    def _of(self, name: str, lambdas: Sequence[float]) -> Evidence:
        found = self.evidence.get(name)
        if found is None:
            found = self.evidence[name] = Evidence([0.0] * len(lambdas))
        return found

    def harmed(self, *, error_probability: float, units_min: int) -> str | None:
        """The measure in which harm is seen; None: none is.

        Args:
            error_probability: with which a candidate that does no harm is ever accused, over all measures.
            units_min: no verdict before so many units of the candidate.
        """
        if self.units < units_min or not self.evidence:
            return None
        name, most = max(((name, one.most) for name, one in self.evidence.items()), key=lambda pair: pair[1])
        return name if most >= math.log(len(MEASURES) / error_probability) else None


def _latencies(name: str, units: Sequence[Observation]) -> list[float]:
    kind, _, tier = name.partition("_")
    mine = [one for one in units if one.latency_class == tier]
    found = [one.ttft_ms if kind == "ttft" else one.total_ms for one in mine]
    return [float(value) for value in found if value is not None]


def _costs(units: Sequence[Observation]) -> list[float]:
    return [float(one.cost_usd_nanos) for one in units if one.cost_usd_nanos is not None]
