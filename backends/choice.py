"""Which of a pool's ready replicas takes a request, and why that one?

Four rules. *Affinity*: requests with the same key go to the same replica, where what they share is still in
the engine's prefix cache. Every replica has a rank for every key (rendezvous hashing: Thaler and Ravishankar,
"Using name-based mappings to increase hit rates", 1998): all gateways agree without telling each other
anything, and a replica that comes or goes moves no keys but its own. Loads are bounded as in "Consistent
Hashing with Bounded Loads" (Mirrokni, Thorup, Zadimoghaddam, arXiv:1608.01350): a replica that would have
more than `load_factor` times the mean passes a request on to the next in rank. *Least loaded*: the replica
with the fewest requests, for what has no key; what others have there is averaged over some looks
(`others_now`), so that it does not attract everybody at once. Of more than `LOOKED_AT_MAX` replicas two are
drawn, as by the next rule. *Two choices*: the less loaded of two drawn at random (Mitzenmacher 2001), which
balances worse and is surer where many gateways see old loads. *Round robin*: for comparisons.

Knows neither pools nor HTTP: `tests/load/replica_choice.py` replays a trace through the same code.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from enum import StrEnum
from hashlib import blake2b
from typing import Protocol, TypeVar

KEY_BYTES = 8
LOOKED_AT_MAX = 16
"""Replicas that the least loaded is looked for among; of more, two are drawn: that takes the same time."""
_MASK = 2 ** (8 * KEY_BYTES) - 1
_ROUNDING = 1e-9
"""1.1 * 10 / 11 is a hair above 1 in floating point, and no replica more than 1."""

_NEWS_WEIGHT = 0.3

Key = Callable[[], int | None]
"""Makes a request's key, 0 to 2**64 - 1, when somebody wants it; None: the request has none."""


class Rule(StrEnum):
    """How a pool chooses."""

    AFFINITY = "affinity"
    LEAST_LOADED = "least_loaded"
    TWO_CHOICES = "two_choices"
    ROUND_ROBIN = "round_robin"


BY_LOAD = frozenset({Rule.LEAST_LOADED, Rule.TWO_CHOICES})
"""Rules that look at nothing but loads."""


class Why(StrEnum):
    """Why a replica got a request."""

    ONLY = "only"
    """No other one could take it."""
    AFFINITY = "affinity"
    PASSED_ON = "passed_on"
    """Affinity would have overloaded the first in rank."""
    LEAST_LOADED = "least_loaded"
    TWO_CHOICES = "two_choices"
    ROUND_ROBIN = "round_robin"


# CPython 3.11 takes a tenth of a microsecond to find an enum's member by name, and each lease asks for some.
_AFFINITY, _ROUND_ROBIN, _TWO_CHOICES = Rule.AFFINITY, Rule.ROUND_ROBIN, Rule.TWO_CHOICES
_FOR_AFFINITY, _FOR_LEAST = Why.AFFINITY, Why.LEAST_LOADED


class Candidate(Protocol):
    """What is looked at of a replica."""

    multiplier: int
    """`multiplier_of` what it is known by."""
    requests: int
    """Under way there, as far as is known, ours and others'."""
    copies: int
    """Of these: copies, which nobody waits for. A replica with less of them is the better one of several that
    are alike, but they are no reason to leave the prefixes that a tenant pays less for."""


_C = TypeVar("_C", bound=Candidate)


def key_of(data: bytes) -> int:
    """A key that is the same in every process."""
    return int.from_bytes(blake2b(data, digest_size=KEY_BYTES).digest(), "little")


def multiplier_of(identity: str) -> int:
    """What ranks a replica: an odd number of its own."""
    return key_of(identity.encode()) | 1


def others_now(before: float | None, seen: float) -> float:
    """What others have at a replica, by the latest look at it and those before.

    Averaged over some looks: every gateway sees the same replica idle at the same time, and would send it all
    that comes until the next look. Measured (tests/load/replica_choice.py, four gateways, two replicas): with
    the latest look alone, two choices are worse than taking turns.

    Args:
        before: what this said last; None: nothing was known.
        seen: requests there less our own.
    """
    if before is None:
        return max(0.0, seen)
    return max(0.0, before + _NEWS_WEIGHT * (seen - before))


class Chooser:
    """Chooses for one pool."""

    __slots__ = ("_draw", "_turn", "at_ease", "load_factor", "rule")

    def __init__(
        self, rule: Rule, *, load_factor: float, at_ease: int, draw: Callable[[], float] = random.random
    ) -> None:
        """Only remembers.

        Args:
            rule: what it goes by where there is a choice.
            load_factor: of the mean load, 1 or more: a replica that would have more passes on what affinity
                brings it.
            at_ease: so many requests are no reason to pass anything on, whatever the mean is.
            draw: a number from 0 to below 1, for ties and for the two choices.
        """
        self.rule = rule
        self.load_factor = load_factor
        self.at_ease = at_ease
        self._draw = draw
        self._turn = 0

    def choose(self, candidates: Sequence[_C], key: Key | None = None) -> tuple[_C, Why]:
        """One of the candidates, of which there is at least one."""
        if len(candidates) == 1:
            return candidates[0], Why.ONLY
        if self.rule is _AFFINITY and key is not None:
            found = key()
            if found is not None:
                return self._by_affinity(candidates, found)
        if self.rule is _ROUND_ROBIN:
            self._turn += 1
            return candidates[self._turn % len(candidates)], Why.ROUND_ROBIN
        if self.rule is _TWO_CHOICES or len(candidates) > LOOKED_AT_MAX:
            return self._less_loaded_of_two(candidates), Why.TWO_CHOICES
        return self._least_loaded(candidates), _FOR_LEAST

    def bound(self, candidates: Sequence[Candidate]) -> int:
        """How many requests a replica may have that affinity brings one more, that one included.

        Never so few that nobody may have one more: the least loaded has at most the mean.
        """
        total = 1
        for each in candidates:
            total += each.requests - each.copies
        return max(self.at_ease, math.ceil(self.load_factor * total / len(candidates) - _ROUNDING))

    def _by_affinity(self, candidates: Sequence[_C], key: int) -> tuple[_C, Why]:
        key |= 1  # times an odd number, no two replicas have the same rank
        first, most = candidates[0], -1
        for each in candidates:
            # The upper bits of a product depend on all bits of both factors; the key is a hash already.
            rank = key * each.multiplier & _MASK
            if rank > most:
                first, most = each, rank
        bound = self.bound(candidates)
        if first.requests - first.copies < bound:
            return first, _FOR_AFFINITY
        ranked = sorted(candidates, key=lambda each: key * each.multiplier & _MASK, reverse=True)
        return next(each for each in ranked if each.requests - each.copies < bound), Why.PASSED_ON

    def _least_loaded(self, candidates: Sequence[_C]) -> _C:
        start = int(self._draw() * len(candidates))  # of several that are alike, not always the first
        best = candidates[start]
        for each in candidates[start:]:
            if each.requests < best.requests:
                best = each
        for each in candidates[:start]:
            if each.requests < best.requests:
                best = each
        return best

    def _less_loaded_of_two(self, candidates: Sequence[_C]) -> _C:
        count = len(candidates)
        first = int(self._draw() * count)
        second = (first + 1 + int(self._draw() * (count - 1))) % count
        one, other = candidates[first], candidates[second]
        return one if one.requests <= other.requests else other
