"""Does a policy that follows measurements move what it would move, by what the replay itself teaches it?"""

from __future__ import annotations

import pytest

from gateway.analysis.backtest import run_backtest
from gateway.analysis.replay import Scenario
from gateway.pricing.book import PriceBook
from gateway.pricing.catalog import cards_of
from gateway.routing.policy import parse_policy
from tests.load.backtest_truth import ALL_PLAIN, policy_of, policy_text
from tests.load.backtest_world import make_world, run_world

IN_ORDER = "economics:\n  enabled: false\n"


@pytest.mark.parametrize("margin", ["0.15", "0.99"])
def test_measurements_move_what_is_cheaper_elsewhere_by_the_margin(margin: str) -> None:
    world = make_world(5, seconds=300.0, per_s=3.0)
    before, prices = policy_of(ALL_PLAIN), PriceBook(cards_of(world.specs))
    text = policy_text(ALL_PLAIN).replace(
        IN_ORDER, f"economics:\n  enabled: true\n  switch_margin: {margin}\n"
    )
    adaptive = parse_policy(text, source="policy", pools=world.specs)
    recorded = run_world(world, before, run="recorded")
    found = [
        run_backtest(
            recorded.history,
            candidate=Scenario("adaptive", adaptive, world.specs, prices),
            baseline=Scenario("static", before, world.specs, prices),
            draws=2,
        )
        for _ in range(2)
    ]
    counts, again = (each.candidate.counts for each in found)
    assert counts == again
    # Records are guessed well, stories are not: the draft pays for the former only.
    moved = {
        task: counts["task", task].moved / counts["task", task].requests
        for task in ("extraction", "creative")
    }
    if margin == "0.15":
        assert (moved["extraction"] > 0.5, moved["creative"] < 0.3) == (True, True)
    else:
        assert moved["extraction"] < 0.1
