"""Is a limit kept to the nano-dollar when two gateways are stormed at once, and none refused for nothing?"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any, Final

import httpx
import pytest

from gateway.ledger.buckets import Scope
from gateway.ledger.budget_store import update_budget
from tests.e2e.faults.plant import LONG_MS, STORY, Asked, Customer, Load, Plant, chat, leaving
from tests.e2e.site import eventually
from tests.support.books import highest_use, query
from tests.support.factories import make_act

CLIENTS: Final = 200
FIT: Final = 77
SIZES: Final = (1, 40, 150, 600)
"""max_tokens."""
INPUT_NANOS, OUTPUT_NANOS = 150, 600
"""What one more token may come to, at the dearest pool's rates."""
PROMPT_TOKENS: Final = 8
"""Of the story, as the engine counts them."""


def story(max_tokens: int) -> dict[str, Any]:
    """Three digits always: a body of another length has another hold."""
    return {**STORY, "max_tokens": max_tokens, "user": "x" * (8 - len(str(max_tokens)))}


def least_hold(max_tokens: int) -> int:
    """What is held where the limit is too tight for the body's bytes: its tokens are counted then."""
    return PROMPT_TOKENS * INPUT_NANOS + max_tokens * OUTPUT_NANOS


def hold_of(plant: Plant, customer: Customer, body: dict[str, Any]) -> int:
    """What is held for this body, as its row says; asked with a key that no budget is over."""
    answer = chat(plant.other, customer.keys["probe"], body)
    assert answer.status_code == 200, answer.text
    plant.until_booked(plant.other)
    found: int = plant.rows(customer, "request_id = :id", id=answer.headers["x-request-id"])[0][
        "hold_usd_nanos"
    ]
    return found


def _storm(
    plant: Plant, customer: Customer, bodies: list[dict[str, Any]], *, budget_id: str, limit: int
) -> tuple[list[Asked], list[Asked]]:
    """All at once on both gateways, and the engines keep them; who is under way, and who is refused."""
    for engine in plant.engines.values():
        engine.reset()
        engine.control(ttft_ms=LONG_MS)
    asked = [
        Asked(plant.pair[index % 2], customer.keys["spender"], body) for index, body in enumerate(bodies)
    ]
    with leaving(asked):

        def is_decided() -> bool:
            lent = query(
                plant.database_url,
                "SELECT posted_usd_nanos + leased_usd_nanos + unattributed_usd_nanos AS used"
                " FROM budget_windows WHERE budget_id = :id",
                id=budget_id,
            )
            assert all(row["used"] <= limit for row in lent), lent
            under_way: int = sum(engine.stats()["in_flight"] for engine in plant.engines.values())
            return under_way + sum(each.is_answered for each in asked) == len(asked)

        eventually(is_decided, within_s=60)
        refused = [each for each in asked if each.is_answered]
        admitted = [each for each in asked if not each.is_answered]
        for each in refused:
            reply = each.reply()
            assert reply.status == 402, reply.body
            assert b'"budget_exceeded"' in reply.body
    return admitted, refused


def _finish(plant: Plant, customer: Customer, admitted: list[Asked], *, limit: int) -> list[int]:
    """Everybody left; each is booked once, and nothing was above the limit at any moment. What was held."""
    plant.assert_right()
    rows = [row for row in plant.rows(customer) if row["key_id"] == customer.key_ids["spender"]]
    assert sorted(row["client_request_id"] for row in rows) == sorted(each.name for each in admitted)
    assert {(row["state"], row["payer"]) for row in rows} == {("cancelled", "tenant")}
    assert highest_use(rows) <= limit
    return [row["hold_usd_nanos"] for row in rows]


def test_two_hundred_equal_requests_fill_a_limit_exactly(plant: Plant) -> None:
    customer = plant.customer("free/probe", "bound/spender")
    plant.until_known()
    body = story(40)
    hold, least = hold_of(plant, customer, body), least_hold(40)
    rest = 2 * least + least // 2
    assert rest < hold
    limit = FIT * hold + rest
    budget_id = plant.budget(Scope.PROJECT, customer.projects["bound"], limit)
    plant.until_known()
    admitted, refused = _storm(plant, customer, [body] * CLIENTS, budget_id=budget_id, limit=limit)
    assert len(admitted) == limit // hold + rest // least == FIT + 2
    assert len(refused) == CLIENTS - len(admitted)
    holds = _finish(plant, customer, admitted, limit=limit)
    assert Counter(holds) == {hold: FIT, least: 2}


@pytest.mark.parametrize("seed", [11])
def test_of_mixed_sizes_none_is_refused_that_would_have_fitted(plant: Plant, seed: int) -> None:
    customer = plant.customer("free/probe", "bound/spender")
    plant.until_known()
    holds = {size: hold_of(plant, customer, story(size)) for size in SIZES}
    assert holds[40] - holds[1] == 39 * OUTPUT_NANOS, "bodies of one length differ in their output only"
    draw = random.Random(seed)
    sizes = draw.choices(SIZES, k=CLIENTS)
    limit = sum(holds[size] for size in sizes) // 3
    budget_id = plant.budget(Scope.TENANT, customer.tenant_id, limit)
    plant.until_known()
    admitted, refused = _storm(
        plant, customer, [story(size) for size in sizes], budget_id=budget_id, limit=limit
    )
    assert refused
    free = limit - sum(_finish(plant, customer, admitted, limit=limit))
    assert free >= 0
    # Nothing ended meanwhile: what is free now is the least that was free when any of them was refused.
    assert min(least_hold(each.body["max_tokens"]) for each in refused) > free, f"seed {seed}"


def test_budgets_over_each_other_are_held_together_and_nobody_waits_in_a_circle(plant: Plant) -> None:
    customer = plant.customer("free/probe", "p1/a", "p1/b", "p2/c", "p2/d")
    plant.until_known()
    high = hold_of(plant, customer, story(101))
    tenant = plant.budget(Scope.TENANT, customer.tenant_id, 9 * high, name="tenant")
    plant.budget(Scope.PROJECT, customer.projects["p1"], 5 * high, name="project")
    for key in ("a", "c"):
        plant.budget(Scope.KEY, customer.key_ids[key], 2 * high, name=f"key-{key}")
    plant.until_known()
    deadlocks = _deadlocks(plant)
    for engine in plant.engines.values():
        engine.control(ttft_ms=20)
    keys = [customer.keys[name] for name in "abcd"]
    with Load(plant.pair, keys, clients=16, body_of=lambda number: story(1 + number * 37 % 101)) as load:
        load.until_more(20)
        eventually(lambda: any("budget_exceeded" in said for said in load.refusals))
        load.pause(1.5)
    assert {status for _, status in load.statuses} == {200, 402}
    assert all("budget_exceeded" in said for said in load.refusals)
    plant.assert_right()
    assert _deadlocks(plant) == deadlocks
    assert "deadlock detected" not in plant.postgres.log
    # Nothing is left held by those that a narrower budget refused: the tenant's rest can be had whole, and no
    # more than that.
    rest = least_hold(301)
    limit = plant.window(tenant)["posted_usd_nanos"] + rest
    plant.change(lambda session: update_budget(session, tenant, limit_usd_nanos=limit, act=make_act()))
    plant.until_known()
    for gateway in plant.pair:
        refused = chat(gateway, customer.keys["d"], story(302))
        assert refused.status_code == httpx.codes.PAYMENT_REQUIRED, refused.text
    answer = chat(plant.one, customer.keys["d"], story(301))
    assert answer.status_code == 200, answer.text
    plant.assert_right()


def _deadlocks(plant: Plant) -> int:
    (row,) = query(
        plant.database_url, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    )
    return int(row["deadlocks"])
