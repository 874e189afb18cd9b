"""Which coefficients explain the measured step times best?

Weighted least squares by normal equations, in plain Python: a handful of columns and some dozens of rows
need no library. Errors count relative to what was measured, because a step of 5 ms and one of 200 ms are of
equal interest, and no coefficient is negative: the column whose coefficient would be is left out and the
rest fitted again, the most negative one first. What other programs of the machine disturbed only ever takes
longer, so a time that is far from the others' model counts less (Huber's weights, iterated).
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_SINGULAR: Final = 1e-10
"""Of a pivot, columns having norm 1: below it they cannot be told apart at the precision of a float."""
_ROUNDS: Final = 12
_FAR: Final = 1.5
"""Times the median error: what is further off is taken for disturbed."""
_LEAST_USUAL_ERROR: Final = 0.005


class Underdetermined(ValueError):
    """The measurements do not tell the coefficients apart; the text names those and says what to measure."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One measured time, and what it is the time of."""

    seconds: float
    amounts: Mapping[str, float]
    """Coefficient → how often it counts in this time; a missing one is 0."""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Fit:
    """What came out."""

    coefficients: dict[str, float]
    """Seconds per unit of each amount, 0 or above; 0 for those that were left out."""
    error_median_ratio: float
    error_max_ratio: float


def fit(observations: Sequence[Observation], names: Sequence[str]) -> Fit:
    """Seconds per unit of each named amount.

    Raises:
        Underdetermined: too few observations, or some amounts always rise together.
        ValueError: a measured time is not above 0.
    """
    if any(one.seconds <= 0 for one in observations):
        raise ValueError("a step takes time: every observation needs seconds above 0")
    if len(observations) < len(names):
        raise Underdetermined(
            f"{len(observations)} measurements cannot determine {len(names)} coefficients "
            f"({', '.join(names)}): measure more cells"
        )
    weighted = list(observations)
    for _ in range(_ROUNDS):
        found = _not_negative(weighted, names)
        errors = [_error_ratio(one, found) for one in observations]
        usual = max(_LEAST_USUAL_ERROR, statistics.median(errors))
        weighted = [
            dataclasses.replace(one, weight=one.weight * min(1.0, _FAR * usual / max(error, usual)) ** 0.5)
            for one, error in zip(observations, errors, strict=True)
        ]
    return Fit({name: found.get(name, 0.0) for name in names}, statistics.median(errors), max(errors))


def _error_ratio(one: Observation, found: Mapping[str, float]) -> float:
    modelled = sum(seconds * one.amounts.get(name, 0.0) for name, seconds in found.items())
    return abs(modelled - one.seconds) / one.seconds


def _not_negative(observations: Sequence[Observation], names: Sequence[str]) -> dict[str, float]:
    kept = list(names)
    found = _solve(observations, kept)
    while (worst := min(found, key=lambda name: found[name])) and found[worst] < 0:
        kept.remove(worst)
        if not kept:
            raise Underdetermined("no coefficient is above 0: the measurements contradict the model")
        found = _solve(observations, kept)
    return found


def _solve(observations: Sequence[Observation], names: Sequence[str]) -> dict[str, float]:
    """The least squares solution; rows are divided by their time, columns by their norm."""
    rows = [[one.weight * one.amounts.get(name, 0.0) / one.seconds for name in names] for one in observations]
    norms = [sum(row[column] ** 2 for row in rows) ** 0.5 for column in range(len(names))]
    silent = [name for name, norm in zip(names, norms, strict=True) if norm == 0]
    if silent:
        raise Underdetermined(f"nothing was measured that depends on {', '.join(silent)}")
    scaled = [[value / norm for value, norm in zip(row, norms, strict=True)] for row in rows]
    size = len(names)
    matrix = [
        [sum(row[i] * row[j] for row in scaled) for j in range(size)]
        + [sum(row[i] * one.weight for row, one in zip(scaled, observations, strict=True))]
        for i in range(size)
    ]
    _eliminate(matrix, names)
    return {name: matrix[row][size] / norms[row] for row, name in enumerate(names)}


def _eliminate(matrix: list[list[float]], names: Sequence[str]) -> None:
    """Gauss and Jordan in place, each time with the greatest pivot that is left on the diagonal."""
    left = list(range(len(matrix)))
    while left:
        pivot = max(left, key=lambda index: matrix[index][index])
        if matrix[pivot][pivot] < _SINGULAR:
            raise Underdetermined(
                f"the measurements cannot tell {', '.join(names[one] for one in left)} from the other "
                "coefficients: vary concurrency, input and output lengths"
            )
        left.remove(pivot)
        divisor = matrix[pivot][pivot]
        matrix[pivot] = [value / divisor for value in matrix[pivot]]
        for row in range(len(matrix)):
            factor = matrix[row][pivot]
            if row != pivot and factor:
                matrix[row] = [
                    value - factor * other for value, other in zip(matrix[row], matrix[pivot], strict=True)
                ]
