"""A quarter of an hour in a world that is recorded."""

from __future__ import annotations

import pytest

from gateway.analysis.replay import Scenario
from gateway.pricing.book import PriceBook
from gateway.pricing.catalog import cards_of
from tests.load.backtest_truth import BY_NATURE, policy_of
from tests.load.backtest_world import Happened, World, make_world, run_world


@pytest.fixture(scope="session")
def world() -> World:
    return make_world(5, seconds=500.0)


@pytest.fixture(scope="session")
def by_nature(world: World) -> Scenario:
    return Scenario("by nature", policy_of(BY_NATURE), world.specs, PriceBook(cards_of(world.specs)))


@pytest.fixture(scope="session")
def happened(world: World, by_nature: Scenario) -> Happened:
    return run_world(world, by_nature.policy, run="recorded")
