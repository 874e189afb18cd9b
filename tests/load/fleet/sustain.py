"""What does a fleet carry while 95 of 100 requests keep their targets, and what does a token cost?

A fleet's hours are paid whether they are used or not. So the cost of a rule is what its hours come to per
output token at the greatest load that it carries with the P95 of the time to the first token and of the
time per token within a target: USD per hour of all cards / tokens per hour. The load is raised over a
grid; between two points the P95 is taken to grow as a power of the load.

Targets are multiples of an idle plain replica's step, so that they ask alike of slow and fast cards. The
tight one lets few requests run at once (low load), the loose one nearly fills the engines (high load).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from tests.load.fleet.blind import least_loaded, round_robin
from tests.load.fleet.gateways import tollgate, under_policy
from tests.load.fleet.oracle import oracle
from tests.load.fleet.play import MakeRule, Played, play
from tests.load.fleet.pools import PLAIN_A100, PLAIN_H100, Fleet, profile_of
from tests.load.fleet.traffic import draw, means_of, rows_of

GRID: Final = (0.03, 0.06, 0.1, 0.15, 0.22, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Loads, as shares of what the fleet's cards could compute if batches had no end (`capacity`)."""
LOADS: Final = {"low": 0.1, "moderate": 0.3, "high": 0.6}
"""Loads of the grid at which all rules are compared by themselves."""

SPAN_S: Final = 30.0
"""A run lasts at least so long: in less, fast cards take in more than they answer, and nothing is steady."""


@dataclass(frozen=True, slots=True)
class Target:
    """What shall hold 95 of 100 times."""

    load: str
    """Which load it goes with."""
    ttft_s: float
    idle_steps: float
    """Time per token, in steps of an idle plain replica."""


TARGETS: Final = (Target("low", 0.5, 1.5), Target("moderate", 1.0, 3.0), Target("high", 2.0, 8.0))
ORACLE, TOLLGATE, STATIC = "oracle", "Tollgate", "static order"
BLIND: Final = ("round robin", "least loaded", "all to plain", "all to speculative")
CONVERTED: Final = ("converted to plain", "converted to speculative")
"""Other fleets on the same cards: every replica is of one pool, the least loaded one is taken."""
RULES: Final = (*BLIND, STATIC, TOLLGATE, ORACLE, *CONVERTED)
ALTRUISMS: Final = (0.0, 0.3)
"""With which the oracle is run."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A fleet and its traffic."""

    fleet: Fleet
    traffic: str

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.fleet.name}; {self.traffic}"


def tpot_s(fleet: Fleet, target: Target) -> float:
    """The target in seconds: of the slowest plain card, one sequence of 1,000 tokens."""
    cards = {pool.card for pool, _ in fleet.pools}
    plain = PLAIN_A100 if "a100" in cards else PLAIN_H100
    times = profile_of(plain).step_time
    return target.idle_steps * (times.fixed_s + times.batched_token_s + 1_000 * times.kv_token_s)


@cache
def capacity(cell: Cell) -> float:
    """Requests per second that the cards could compute without speculation, in batches without end."""
    means = means_of(rows_of(cell.traffic))
    total = 0.0
    for pool, count in cell.fleet.pools:
        times = profile_of(pool).step_time
        context = means.input_tokens + means.output_tokens / 2
        decode_s = means.output_tokens * (times.batched_token_s + times.kv_token_s * context)
        total += count / (means.input_tokens * times.batched_token_s + decode_s)
    return total


Rates = Mapping[str, SequenceOf[float]]
"""Rule → requests per second that it carries, by seed."""
Figure = Callable[[Rates], float]
BOOTSTRAP: Final = 1_000


class Runs:
    """Simulations of one cell with one seed; each is made once."""

    def __init__(self, cell: Cell, *, seed: int, requests: int, on_run: Callable[[], None]) -> None:
        """Nothing has been run.

        Args:
            cell: fleet and traffic.
            seed: of everything that is drawn.
            requests: in a run, or as many as come in `SPAN_S`.
            on_run: called after each.
        """
        self.cell = cell
        self._seed = seed
        self._requests = requests
        self._on_run = on_run
        self._known: dict[tuple[str, str, float], Played] = {}

    def at(self, rule: str, target: Target, share: float) -> Played:
        """What comes of a rule at a share of the capacity; of the oracle its best run by the target."""
        if rule == ORACLE:
            runs = [self._run(f"{ORACLE} {each}", target, share) for each in ALTRUISMS]
            return min(runs, key=lambda run: self.excess(run, target))
        return self._run(rule, target, share)

    def excess(self, played: Played, target: Target) -> float:
        """How many times too slow; up to 1 the target is kept."""
        return played.excess(target.ttft_s, tpot_s(self.cell.fleet, target))

    def _run(self, rule: str, target: Target, share: float) -> Played:
        key = (rule, target.load if rule == TOLLGATE else "", share)
        found = self._known.get(key)
        if found is None:
            rate = share * capacity(self.cell)
            fleet, make = self._made(rule, target)
            count = max(self._requests, math.ceil(rate * SPAN_S))
            arrivals = draw(self.cell.traffic, count, rate=rate, seed=self._seed)
            found = self._known[key] = play(arrivals, fleet, make, seed=self._seed, rate=rate)
            self._on_run()
        return found

    def _made(self, rule: str, target: Target) -> tuple[Fleet, MakeRule]:
        fleet, means = self.cell.fleet, means_of(rows_of(self.cell.traffic))
        if rule in CONVERTED:
            pool = fleet.pools[-1 if rule == CONVERTED[0] else 0][0]
            return fleet.all_of(pool), least_loaded
        if rule.startswith(ORACLE):
            return fleet, oracle(float(rule.removeprefix(ORACLE)))
        makers: dict[str, Callable[[], MakeRule]] = {
            "round robin": lambda: round_robin,
            "least loaded": lambda: least_loaded,
            "all to plain": lambda: under_policy(fleet, means, only="plain"),
            "all to speculative": lambda: under_policy(fleet, means, only="speculative"),
            STATIC: lambda: under_policy(fleet, means),
            TOLLGATE: lambda: tollgate(fleet, means, targets=(target.ttft_s, tpot_s(fleet, target))),
        }
        return fleet, makers[rule]()

    def sustained(self, rule: str, target: Target, *, near: int = 0) -> tuple[float, int]:
        """Requests per second that the rule carries within the target; 0: not even the least load.

        Args:
            rule: which.
            target: which.
            near: place in the grid where the search begins.

        Returns:
            The rate, and the place in the grid below it.
        """
        place = near
        while place > 0 and self.excess(self.at(rule, target, GRID[place]), target) > 1:
            place -= 1
        below = self.excess(self.at(rule, target, GRID[place]), target)
        if below > 1:
            return 0.0, 0
        while place + 1 < len(GRID):
            above = self.excess(self.at(rule, target, GRID[place + 1]), target)
            if above > 1:
                share = _crossing((GRID[place], below), (GRID[place + 1], above))
                return capacity(self.cell) * share, place
            place, below = place + 1, above
        return capacity(self.cell) * GRID[-1], place


def _crossing(below: tuple[float, float], above: tuple[float, float]) -> float:
    """Where the excess becomes 1."""
    slope = math.log(above[1] / below[1]) / math.log(above[0] / below[0])
    if slope <= 0:
        return below[0]
    return below[0] * math.exp(-math.log(below[1]) / slope)


# ------------------------------------------------------------------------------------------- what it costs
def usd_per_million(cell: Cell, rate: float) -> float:
    """Of output tokens, at so many requests per second; infinite at none."""
    if rate <= 0:
        return math.inf
    tokens_per_hour = rate * means_of(rows_of(cell.traffic)).output_tokens * 3600
    return cell.fleet.usd_per_hour / tokens_per_hour * 1e6


def rules_of(cell: Cell) -> tuple[str, ...]:
    """Those that make sense: cards of two kinds cannot all become the same pool."""
    return RULES if cell.fleet.is_of_one_card else RULES[: -len(CONVERTED)]


def compared(cell: Cell, rates: Rates, *, seed: int = 1) -> dict[str, Any]:
    """Costs of one cell and target, and what Tollgate's are of the best task-blind rule's.

    Args:
        cell: fleet and traffic.
        rates: rule → what it carries, by seed.
        seed: of the bootstrap.
    """
    costs = {rule: usd_per_million(cell, _mean(found)) for rule, found in rates.items()}
    best = min(BLIND, key=costs.__getitem__)
    figures: dict[str, Any] = {
        "usd_per_million_tokens": {rule: _rounded(cost) for rule, cost in costs.items()},
        "requests_per_s": {rule: round(_mean(found), 2) for rule, found in rates.items()},
        "requests_per_s_by_seed": {rule: [round(rate, 2) for rate in found] for rule, found in rates.items()},
        "best_blind": best,
    }
    if not costs[best] < math.inf:
        return figures
    for rule in (STATIC, TOLLGATE, ORACLE):
        figures[f"{rule} / best task-blind"] = interval(rates, _saves(best, rule), seed=seed)
    figures["gap closed"] = interval(
        rates,
        lambda drawn: _gap_closed(_mean(drawn[best]), _mean(drawn[TOLLGATE]), _mean(drawn[ORACLE])),
        seed=seed,
    )
    converted = [rule for rule in CONVERTED if rule in rates]
    if converted:
        hardest = min(converted, key=costs.__getitem__)
        figures["best_converted"] = hardest
        figures[f"{TOLLGATE} / best converted"] = interval(rates, _saves(hardest, TOLLGATE), seed=seed)
        figures[f"{ORACLE} / best converted"] = interval(rates, _saves(hardest, ORACLE), seed=seed)
    return figures


def _saves(than: str, rule: str) -> Figure:
    """One rule's cost over another one's: their loads the other way round."""
    return lambda drawn: _ratio(_mean(drawn[than]), _mean(drawn[rule]))


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else math.inf


def _gap_closed(blind: float, ours: float, best: float) -> float:
    """Share of the way, in cost, from the blind rule to the oracle; NaN where there is none to go."""
    if min(blind, ours, best) <= 0 or best <= blind * 1.005:
        return math.nan
    return (1 / blind - 1 / ours) / (1 / blind - 1 / best)


def interval(rates: Rates, figure: Figure, *, seed: int) -> list[float | None]:
    """A figure and its 95 % interval: seeds drawn again with replacement, the same for all rules."""
    chance = random.Random(seed)
    count = len(next(iter(rates.values())))
    found = []
    for _ in range(BOOTSTRAP):
        drawn = [chance.randrange(count) for _ in range(count)]
        value = figure({rule: [each[place] for place in drawn] for rule, each in rates.items()})
        if math.isfinite(value):
            found.append(value)
    found.sort()
    middle = _rounded(figure(rates))
    if not found:
        return [middle, None, None]
    return [middle, _rounded(found[int(0.025 * len(found))]), _rounded(found[int(0.975 * len(found))])]


def _mean(values: SequenceOf[float]) -> float:
    return sum(values) / len(values)


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
