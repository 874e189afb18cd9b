"""Is the truth where a backtest says that it is?

In a world with hidden differences (`backtest_world`) an hour runs under policy A and is recorded; policy B is
backtested from the record; then B runs in the same world: the same requests, other luck. Counted is how often
the truth lies in the stated 95 % interval, and how wide that is. Three pairs of policies take turns.

The stated intervals are for real vLLM and contain the simulator's measured error against it, which this
world, being simulated, does not have. So the intervals without it, by the record alone, are counted too.

    python -m tests.load.backtest_truth [--seeds 60] [--seconds 3600]

Writes tests/load/results/backtest_truth.{json,md}.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from gateway.analysis.backtest import Backtest, run_backtest
from gateway.analysis.figures import COST, EVERYTHING, TIMES, times_of
from gateway.analysis.intervals import Claim, Interval
from gateway.analysis.replay import Scenario
from gateway.pricing.book import PriceBook
from gateway.pricing.catalog import cards_of
from gateway.routing.policy import Policy, parse_policy
from tests.load.backtest_world import CLASSES, Happened, make_world, run_world
from tests.load.measured import RESULTS, command_line, commit, write_result
from tests.support.pool_files import policy_in_order

NAME: Final = "backtest_truth"
COVERED_MIN: Final = 0.88
WIDTH_MAX: Final = 0.20
CHARGE: Final = "charge_usd_nanos"
_BASE: Final = policy_in_order()


BY_NATURE: Final = "  predictable: [speculative, plain]\n  creative: [plain, speculative]\n"


def policy_text(routes: str, natures: str = "") -> str:
    """The shipped policy with other routes, in their order, or with other natures of tasks."""
    return _BASE.replace(BY_NATURE, routes).replace("  default: chat  ", f"{natures}  default: chat  ")


def policy_of(routes: str, natures: str = "") -> Policy:
    """The same, ready to decide."""
    return parse_policy(policy_text(routes, natures), source="policy", pools=("plain", "speculative"))


ALL_PLAIN: Final = "  predictable: [plain, speculative]\n  creative: [plain, speculative]\n"
ALL_SPECULATIVE: Final = "  predictable: [speculative, plain]\n  creative: [speculative, plain]\n"
QA_PLAIN: Final = "  natures: {qa: creative, summarization: creative}\n"
PAIRS: Final = (
    ("all plain → by nature", policy_of(ALL_PLAIN), policy_of(BY_NATURE)),
    ("by nature → qa and summaries plain", policy_of(BY_NATURE), policy_of(BY_NATURE, QA_PLAIN)),
    ("by nature → all speculative", policy_of(BY_NATURE), policy_of(ALL_SPECULATIVE)),
)


@dataclass(frozen=True, slots=True)
class Seen:
    """One figure of one seed: what was said, and what was true."""

    name: str
    interval: Interval
    truth: float
    level: float
    """What widths and errors are relative to: the estimate; of a change, what changes."""

    @property
    def is_covered(self) -> bool:
        """The truth is where it was said to be."""
        return self.interval.low <= self.truth <= self.interval.high

    @property
    def width_ratio(self) -> float:
        """Of the level."""
        return (self.interval.high - self.interval.low) / self.level

    @property
    def error_ratio(self) -> float:
        """Of the level."""
        return abs(self.truth - self.interval.estimate) / self.level


def one_seed(
    seed: int, *, seconds: float, draws: int = 12, trusts_simulator: bool = False
) -> tuple[str, list[Seen], list[str]]:
    """A world, two policies, and what became of the claims; the refused ones by name."""
    label, before, after = PAIRS[seed % len(PAIRS)]
    world = make_world(seed, seconds=seconds)
    recorded = run_world(world, before, run="recorded")
    prices = PriceBook(cards_of(world.specs))
    found = run_backtest(
        recorded.history,
        candidate=Scenario("candidate", after, world.specs, prices),
        baseline=Scenario("baseline", before, world.specs, prices),
        seed=seed,
        draws=draws,
        trusts_simulator=trusts_simulator,
    )
    happened = run_world(world, after, run="afterwards")
    again = run_world(world, before, run="afterwards")
    return (label, *_compared(found, happened, again))


def _compared(found: Backtest, after: Happened, before: Happened) -> tuple[list[Seen], list[str]]:
    seen: list[Seen] = []
    refused: list[str] = []

    def say(name: str, claim: Claim, truth: float, level: float | None = None) -> None:
        if claim.interval is None:
            refused.append(name)
        else:
            seen.append(Seen(name, claim.interval, truth, level or claim.interval.estimate))

    cost, cost_before = after.cost_usd_nanos, before.cost_usd_nanos
    charge, charge_before = after.history.charge_usd_nanos, before.history.charge_usd_nanos
    say("cost", found.candidate.claims[EVERYTHING][COST], cost)
    say("charge", found.candidate.charges[EVERYTHING], charge)
    say("cost, change", found.differences[EVERYTHING][COST], cost - cost_before, cost_before)
    say("charge, change", found.charge_differences[EVERYTHING], charge - charge_before, charge_before)
    for tier in CLASSES:
        claims, changes = found.candidate.claims["class", tier], found.differences["class", tier]
        truth, base = _times(after, tier), _times(before, tier)
        for name in TIMES:
            say(f"{name}, {tier}", claims[name], truth[name])
            say(f"{name}, {tier}, change", changes[name], truth[name] - base[name], base[name])
    return seen, refused


def _times(happened: Happened, tier: str) -> dict[str, float]:
    ttfts, totals = [], []
    for request in happened.history.requests:
        if request.latency_class == tier:
            answer = request.answer
            total_ms = 0.0 if answer is None else answer.total_ms or 0.0
            generation_ms = 0.0 if answer is None else answer.generation_ms or 0.0
            ttfts.append((total_ms - generation_ms) / 1000)
            totals.append(total_ms / 1000)
    return times_of(ttfts, totals)


def table_of(seen: Sequence[Seen]) -> dict[str, dict[str, float]]:
    """By figure: the seeds, the share that is covered, the median width and error."""
    by_name: dict[str, list[Seen]] = defaultdict(list)
    for each in seen:
        by_name[each.name].append(each)
    return {
        name: {
            "seeds": len(of_name),
            "covered": round(sum(each.is_covered for each in of_name) / len(of_name), 3),
            "width_median": round(statistics.median(each.width_ratio for each in of_name), 3),
            "error_median": round(statistics.median(each.error_ratio for each in of_name), 4),
        }
        for name, of_name in by_name.items()
    }


def main() -> int:
    """Run what the command line asks for; 1 where a gate is missed."""
    parser = argparse.ArgumentParser(description="Is the truth where a backtest says that it is?")
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    by_pair: dict[str, list[Seen]] = defaultdict(list)
    alone: list[Seen] = []
    refusals: dict[str, int] = defaultdict(int)
    with ProcessPoolExecutor(arguments.jobs) as processes:
        work = functools.partial(one_seed, seconds=arguments.seconds)
        for number, (label, seen, refused) in enumerate(processes.map(work, range(arguments.seeds)), start=1):
            by_pair[label] += seen
            for name in refused:
                refusals[name] += 1
            print(f"{number} of {arguments.seeds}: {label}", flush=True)
        trusting = functools.partial(work, trusts_simulator=True)
        for number, (_, seen, _) in enumerate(processes.map(trusting, range(arguments.seeds)), start=1):
            alone += seen
            print(f"by the record alone: {number} of {arguments.seeds}", flush=True)
    rows = table_of([each for seen in by_pair.values() for each in seen])
    figures = {
        "gate": {"covered_min": COVERED_MIN, "width_max": WIDTH_MAX, "figure": "cost"},
        "seeds": arguments.seeds,
        "seconds": arguments.seconds,
        "figures": rows,
        "by_the_record_alone": table_of(alone),
        "by_pair": {label: table_of(seen) for label, seen in by_pair.items()},
        "refused": dict(refusals),
    }
    write_result(NAME, figures)
    (RESULTS / f"{NAME}.md").write_text(as_markdown(figures), encoding="utf-8")
    return 0 if rows["cost"]["covered"] >= COVERED_MIN and rows["cost"]["width_median"] <= WIDTH_MAX else 1


def as_markdown(figures: dict[str, Any]) -> str:
    """The tables, for people."""
    lines = [
        "# Is the truth where a backtest says that it is?",
        "",
        f"{figures['seeds']} worlds of {figures['seconds']:.0f} s; `{command_line()}`, commit {commit()}.",
        "An hour is recorded under one policy in a world with hidden differences, another policy is",
        "backtested from the record, then runs in the same world. `covered`: how often the truth was in",
        "the stated 95 % interval; `width`: of the interval, relative to the estimate (of a change: to what",
        "changes).",
        "",
    ]
    tables = [
        ("All pairs", figures["figures"]),
        ("All pairs, without the simulator's error against real vLLM", figures["by_the_record_alone"]),
        *figures["by_pair"].items(),
    ]
    for title, rows in tables:
        lines += [f"## {title}", "", "| figure | seeds | covered | width, median | error, median |"]
        lines += ["|---|---:|---:|---:|---:|"]
        lines += [
            f"| {name} | {row['seeds']} | {row['covered']:.0%} | {row['width_median']:.1%} |"
            f" {row['error_median']:.1%} |"
            for name, row in rows.items()
        ] + [""]
    if figures["refused"]:
        lines += [f"Not claimed: {name}, in {count} worlds." for name, count in figures["refused"].items()]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(main())
