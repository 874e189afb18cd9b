"""How does a candidate compare with what is active, over requests that both were asked? Pure.

Each pair is a request and its copy. One is taken from the other, so that what the requests have in common,
which is most of it, says nothing. Requests of one conversation are alike, so the interval of a mean
difference is a jackknife that leaves out one conversation at a time (the variance CV3 of MacKinnon, Nielsen
and Webb 2023, "Cluster-robust inference: A guide to empirical practice"), with Student's t for as many
conversations of one length as say as much as these (Kish's effective number). Below `UNITS_MIN`
conversations nothing is claimed.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Final

from gateway.ledger.pairs import Fate, Pair

UNITS_MIN: Final = 10
_CONFIDENCE: Final = 0.95
_ERRORS: Final = "errors"
_FREEDOM_MIN: Final = 5
"""Where one conversation is nearly all there is, its interval is as wide as this makes it."""


@dataclass(frozen=True, slots=True)
class Side:
    """How requests fared on one side."""

    requests: int
    errors: int
    """Those that got no answer."""
    targets: Mapping[str, int]
    """Requests by the target that answered, or was tried last."""
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    """None: nothing was streamed."""
    total_p50_ms: float | None
    total_p95_ms: float | None
    charge_usd_nanos_mean: float | None
    """Per request, all of its attempts; None: there is none with a price."""
    input_tokens_mean: float | None
    output_tokens_mean: float | None
    acceptance: float | None
    """Accepted of drafted tokens, 0 to 1; None: nothing was drafted."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The candidate less what is active, per request."""

    measure: str
    pairs: int
    units: int
    mean: float | None
    """None: no pair has it on both sides."""
    low: float | None
    high: float | None
    """Where the true mean is, 95 of 100 times; None: too few units to say."""


def side_of(fates: Iterable[Fate]) -> Side:
    """How these requests fared."""
    found = list(fates)
    answered = [one for one in found if one.is_answered]
    ttfts = [one.ttft_ms for one in answered if one.ttft_ms is not None]
    totals = [one.total_ms for one in answered if one.total_ms is not None]
    charges = [one.charge_usd_nanos for one in found if one.charge_usd_nanos is not None]
    drafted = sum(one.drafted_tokens for one in found)
    return Side(
        requests=len(found),
        errors=len(found) - len(answered),
        targets=dict(sorted(Counter(one.target for one in found).items())),
        ttft_p50_ms=quantile(ttfts, 0.5),
        ttft_p95_ms=quantile(ttfts, 0.95),
        total_p50_ms=quantile(totals, 0.5),
        total_p95_ms=quantile(totals, 0.95),
        charge_usd_nanos_mean=_mean(charges),
        input_tokens_mean=_mean([one.input_tokens for one in answered]),
        output_tokens_mean=_mean([one.output_tokens for one in answered]),
        acceptance=sum(one.accepted_tokens for one in found) / drafted if drafted else None,
    )


def _mean(values: Sequence[int]) -> float | None:
    return sum(values) / len(values) if values else None


def quantile(values: Sequence[int], share: float) -> float | None:
    """The smallest value that at least this share of them does not exceed; None of nothing."""
    return float(sorted(values)[max(0, math.ceil(share * len(values)) - 1)]) if values else None


def _errors(fate: Fate) -> float | None:
    return float(not fate.is_answered)


def _of_answers(read: Callable[[Fate], float | None]) -> Callable[[Fate], float | None]:
    return lambda fate: read(fate) if fate.is_answered else None


_MEASURES: Final[Mapping[str, Callable[[Fate], float | None]]] = {
    _ERRORS: _errors,
    "ttft_ms": lambda fate: fate.ttft_ms,
    "total_ms": lambda fate: fate.total_ms,
    "charge_usd_nanos": lambda fate: fate.charge_usd_nanos,
    "output_tokens": _of_answers(lambda fate: fate.output_tokens),
}


def differences_of(pairs: Sequence[Pair], units: Mapping[str, str]) -> list[Difference]:
    """The candidate less what is active, in each measure.

    Args:
        pairs: requests and copies.
        units: by the copy's request id: its conversation, or whatever stays together; one that is missing
            stands for itself.
    """
    found = []
    for measure, read in _MEASURES.items():
        by_unit: defaultdict[str, list[float]] = defaultdict(list)
        for pair in pairs:
            theirs, ours = read(pair.copy), read(pair.original)
            if theirs is not None and ours is not None:
                unit = units.get(pair.copy.request_id, pair.copy.request_id)
                by_unit[unit].append(theirs - ours)
        one = difference(measure, list(by_unit.values()))
        if measure == _ERRORS and one.mean is not None and one.low is not None and one.low == one.high:
            # None of them differed: so seldom that none would be seen, 95 of 100 times (the rule of three).
            reach = 3 / one.units
            one = replace(one, low=one.mean - reach, high=one.mean + reach)
        found.append(one)
    return found


def difference(measure: str, by_unit: Sequence[Sequence[float]]) -> Difference:
    """The mean of differences and where the true one is.

    Args:
        measure: its name.
        by_unit: the differences of each unit, at least one each.
    """
    count, groups = sum(map(len, by_unit)), len(by_unit)
    if not count:
        return Difference(measure, 0, 0, None, None, None)
    mean = sum(map(sum, by_unit)) / count
    if groups < UNITS_MIN:
        return Difference(measure, count, groups, mean, None, None)
    # How far the mean moves without each of them.
    moves = [(sum(values) - len(values) * mean) / (count - len(values)) for values in by_unit]
    deviation = math.sqrt((groups - 1) / groups * sum(move**2 for move in moves))
    alike = count**2 / sum(len(values) ** 2 for values in by_unit)
    reach = student_t(max(_FREEDOM_MIN, round(alike) - 1)) * deviation
    return Difference(measure, count, groups, mean, mean - reach, mean + reach)


def student_t(freedom: int) -> float:
    """What Student's t does not exceed on either side, 95 of 100 times.

    Cornish and Fisher's expansion (Abramowitz and Stegun 26.7.5), right to 0.001 from 5 degrees of freedom.
    """
    z = NormalDist().inv_cdf(0.5 + _CONFIDENCE / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(freedom) ** power for power, term in enumerate(terms, start=1))
