"""What does a request cost that is sent where it does not belong?"""

from __future__ import annotations

import pytest

from backends.files import load_pools
from gateway.inference import TaskType
from gateway.routing.training.money import POOLS, bill, pool_prices

PRICE = {
    "extra_cost": {"predictable": 0.08, "creative": 0.02},
    "extra_charge": {"predictable": 0.2, "creative": -0.2},
}


def test_only_confusions_of_nature_cost() -> None:
    tasks = (TaskType.CODE, TaskType.MATH, TaskType.CHAT)
    found = bill(tasks, [[90, 5, 5], [0, 50, 0], [10, 0, 40]], PRICE)
    assert found["cost_usd"] == pytest.approx(5 / 200 * 0.08 + 10 / 200 * 0.02)
    assert found["charge_usd"] == pytest.approx(5 / 200 * 0.2 - 10 / 200 * 0.2)
    assert [(pair["true"], pair["found"], pair["rows"]) for pair in found["dearest"]] == [
        ("code", "chat", 5),
        ("chat", "code", 10),
    ]


def test_nothing_confused_costs_nothing() -> None:
    assert bill((TaskType.CODE, TaskType.CHAT), [[7, 0], [0, 7]], PRICE) == {
        "cost_usd": 0.0,
        "charge_usd": 0.0,
        "dearest": [],
    }


def test_the_bundled_pools_have_prices() -> None:
    card = load_pools(POOLS)["plain"].rates
    assert card is not None
    assert pool_prices()["charge"]["plain"] == float(card.output)
