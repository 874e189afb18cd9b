"""What does a client get, and who pays, when one of two replicas dies, hangs or talks nonsense?"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from gateway.ledger.buckets import Scope
from tests.e2e.faults.plant import LONG_MS, STORY, Asked, Customer, Load, Plant, chat, leaving, metric
from tests.e2e.site import CHAT, PATIENCE_S, eventually
from tests.integration.gateway.databases import new_database
from tests.load.killed_replicas import disrupt
from tests.support.books import Row
from tests.support.mock_process import MockVllm

STREAM: Final[dict[str, Any]] = {**STORY, "stream": True, "max_tokens": 400}
SHORT: Final[dict[str, Any]] = {**STORY, "max_tokens": 2}
WATCHFUL: Final = {
    "TOLLGATE_HEALTH__POLL_INTERVAL_S": "0.2",
    "TOLLGATE_HEALTH__STALL_S": "2",
    "TOLLGATE_HEALTH__PROBE_TIMEOUT_S": "2",
    "TOLLGATE_HEALTH__IDLE_PROBE_S": "600",
    "TOLLGATE_HEALTH__BACKOFF_S": "0.2",
    "TOLLGATE_HEALTH__BACKOFF_S_MAX": "1",
}


def story_number(number: int, **fields: Any) -> dict[str, Any]:
    """Another conversation for each number: all turns of one go to the same replica."""
    return {**STORY, "messages": [{"role": "user", "content": f"Tell me story {number}"}], **fields}


class Twins:
    """Two replicas of the plain pool, and the gateway that asks them before any other pool."""

    def __init__(self, plant: Plant) -> None:
        self.plant = plant
        self.replicas = [MockVllm(), MockVllm()]
        self.ports = [replica.port for replica in self.replicas]
        urls = {name: [engine.url] for name, engine in plant.engines.items()}
        urls["plain"] = [replica.url for replica in self.replicas]
        self.gateway = plant.gateway("twins", urls, **WATCHFUL)

    def until_up(self) -> None:
        """Both take requests and behave."""
        for index, port in enumerate(self.ports):
            if self.replicas[index].process.poll() is not None:
                self.replicas[index].stop()
                self.replicas[index] = MockVllm("--port", str(port))
            self.replicas[index].clear()
        eventually(lambda: self._ready() == len(self.replicas), within_s=2 * PATIENCE_S)
        for replica in self.replicas:
            replica.wait_for(timeout_s=PATIENCE_S, in_flight=0)
            replica.reset()
            replica.control(ttft_ms=0, tpot_ms=0, answer_tokens=16)

    def control(self, **wanted: object) -> None:
        """Both of them."""
        for replica in self.replicas:
            replica.control(**wanted)

    def busy(self) -> MockVllm:
        """The one that has a request, once one has."""
        found: list[MockVllm] = []

        def one_is() -> bool:
            found[:] = [replica for replica in self.replicas if replica.stats()["in_flight"]]
            return bool(found)

        eventually(one_is)
        return found[0]

    def other_than(self, one: MockVllm) -> MockVllm:
        return next(replica for replica in self.replicas if replica is not one)

    def name_of(self, one: MockVllm) -> str:
        return f"plain-{self.replicas.index(one)}"

    def rows_of(self, customer: Customer, name: str) -> list[Row]:
        """The request's attempts, once everything is booked and right."""
        self.plant.assert_right(self.gateway)
        return self.plant.rows(customer, "client_request_id = :name", name=name)

    def _ready(self) -> float:
        return metric(self.gateway, 'tollgate_replicas_ready{pool="plain"}')


@pytest.fixture(scope="module")
def _twins(_plant: Plant) -> Iterator[Twins]:
    twins = Twins(_plant)
    yield twins
    for replica in twins.replicas:
        replica.stop()


@pytest.fixture
def twins(_twins: Twins, plant: Plant) -> Twins:
    assert plant is _twins.plant
    _twins.until_up()
    return _twins


@pytest.fixture
def customer(twins: Twins) -> Customer:
    made = twins.plant.customer("project/key")
    twins.plant.until_known(twins.gateway)
    return made


def _told(row: Row) -> tuple[str, str, str]:
    return row["replica"], row["state"], row["payer"]


# ---------------------------------------------------------------------------------------------- kill -9
def test_a_replica_that_is_killed_in_a_stream_ends_it_with_an_error(twins: Twins, customer: Customer) -> None:
    twins.control(tpot_ms=50, answer_tokens=400)
    with Asked(twins.gateway, customer.keys["key"], STREAM) as asked:
        victim = twins.busy()
        eventually(lambda: victim.stats()["completion_tokens"] >= 3)
        victim.stop()  # SIGKILL
        reply = asked.reply()
    assert (reply.status, reply.is_complete) == (200, True), "the client's stream ends properly"
    *contents, error, done = reply.events()
    assert done == "[DONE]"
    assert error["error"]["code"] == "upstream_unavailable"
    twins.other_than(victim).control(tpot_ms=0, answer_tokens=16)
    for _ in range(4):
        assert chat(twins.gateway, customer.keys["key"]).status_code == 200, "the other one serves on"
    (row,) = twins.rows_of(customer, asked.name)
    assert _told(row) == (twins.name_of(victim), "interrupted", "platform")
    seen = sum(1 for event in contents if event["choices"][0]["delta"].get("content"))
    assert row["output_tokens"] == seen >= 3


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_replica_that_is_killed_while_it_reads_the_prompt_is_replaced_by_the_other(
    twins: Twins, customer: Customer, *, is_stream: bool
) -> None:
    twins.control(ttft_ms=LONG_MS)
    with Asked(twins.gateway, customer.keys["key"], {**STORY, "stream": is_stream}) as asked:
        victim = twins.busy()
        other = twins.other_than(victim)
        other.control(ttft_ms=0)
        victim.stop()
        reply = asked.reply()
    assert (reply.status, reply.is_complete) == (200, True)
    assert b'"error"' not in reply.body
    first, second = twins.rows_of(customer, asked.name)
    assert _told(first) == (twins.name_of(victim), "failed", "platform")
    assert _told(second) == (twins.name_of(other), "answered", "tenant")
    assert second["output_tokens"] == 16


def test_no_request_fails_before_its_first_content_while_replicas_are_killed(
    plant: Plant, template: str, tmp_path: Path
) -> None:
    with new_database(plant.postgres.url, template=template) as own:  # its fleet has one pool, its policy too
        settings = {**plant.settings, "TOLLGATE_DATABASE_URL": own}
        figures = disrupt(tmp_path, settings, seconds=0, every_s=1.5, kills=2, clients=6)
    sys.stdout.write(f"\n{json.dumps(figures)}\n")
    assert figures["killed"] == 2
    assert figures["outcomes"]["answered"] > 10
    assert figures["outcomes"]["streamed"] > 10


# --------------------------------------------------------------------------------------------- nonsense
@pytest.mark.parametrize(
    ("fault", "value", "code"),
    [
        ("garbage", None, "upstream_unavailable"),
        ("garbage", "event", "upstream_protocol"),
        ("half_event", 0, "upstream_unavailable"),
        ("die_before_first_chunk", None, "upstream_unavailable"),
        ("hang", None, "upstream_timeout"),
    ],
)
def test_replicas_that_give_no_answer_are_replaced_and_the_platform_pays(
    twins: Twins, customer: Customer, *, fault: str, value: Any, code: str
) -> None:
    for replica in twins.replicas:
        replica.fault(fault, value, times=1)
    with Asked(twins.gateway, customer.keys["key"], STREAM) as asked:
        reply = asked.reply()
    assert (reply.status, reply.is_complete, reply.events()[-1]) == (200, True, "[DONE]")
    assert b'"error"' not in reply.body
    *failed, answered = twins.rows_of(customer, asked.name)
    assert {row["replica"] for row in failed} == {"plain-0", "plain-1"}
    assert {(*_told(row)[1:], row["error_code"]) for row in failed} == {("failed", "platform", code)}
    assert _told(answered) == ("third-0", "answered", "tenant")


@pytest.mark.parametrize(
    ("fault", "value", "code"),
    [("half_event", 3, "upstream_unavailable"), ("stall_mid_stream", "3,60", "upstream_timeout")],
)
def test_a_replica_that_stops_in_the_middle_ends_the_stream_with_an_error(
    twins: Twins, customer: Customer, *, fault: str, value: Any, code: str
) -> None:
    twins.control(tpot_ms=20)
    for replica in twins.replicas:
        replica.fault(fault, value, times=1)
    with Asked(twins.gateway, customer.keys["key"], STREAM) as asked:
        reply = asked.reply()
    *contents, error, done = reply.events()
    assert (done, error["error"]["code"]) == ("[DONE]", code)
    seen = sum(1 for event in contents if event["choices"][0]["delta"].get("content"))
    (row,) = twins.rows_of(customer, asked.name)
    assert (row["state"], row["payer"], row["output_tokens"]) == ("interrupted", "platform", seen)
    assert seen == 3


# --------------------------------------------------------------------------------------------- deep health
def test_a_hung_engine_that_answers_health_is_found_left_alone_and_taken_back(
    twins: Twins, customer: Customer
) -> None:
    gateway, key = twins.gateway, customer.keys["key"]
    victim, other = twins.replicas
    victim.fault("hang")
    hangs = metric(gateway, "tollgate_replica_hangs_total")
    with ThreadPoolExecutor(40) as pool:
        asked = []
        for number in range(40):  # conversations, until one is the victim's
            asked.append(pool.submit(chat, gateway, key, story_number(number, stream=True)))
            if victim.stats()["in_flight"]:
                break
        eventually(lambda: metric(gateway, "tollgate_replica_hangs_total") > hangs)
        assert httpx.get(f"{victim.url}/health", trust_env=False, timeout=30).status_code == 200
        before = victim.stats()["paths"].get(CHAT, 0)
        for number in range(8):
            answer = chat(gateway, key, story_number(number))
            assert answer.headers["x-tollgate-replica"] == twins.name_of(other)
        assert victim.stats()["paths"].get(CHAT, 0) == before, "nobody waits for it any more"
        assert {each.result().status_code for each in asked} == {200}, "who waited got the other one's answer"
    twins.until_up()  # it generates a token again

    def has_served_again() -> bool:
        for number in range(8):
            chat(gateway, key, story_number(number))
        return CHAT in victim.stats()["paths"]

    eventually(has_served_again)
    breaker = f'tollgate_replica_breaker{{replica="{twins.name_of(victim)}"}}'
    eventually(lambda: metric(gateway, breaker) == 0)
    twins.plant.assert_right(gateway)


# ------------------------------------------------------------------------------------------------- hedging
def test_a_slow_replica_is_outrun_by_a_fast_one(twins: Twins, customer: Customer) -> None:
    """tests/integration/gateway/test_hedging.py has who pays in all cases."""
    plant = twins.plant
    urls = {"plain": [replica.url for replica in twins.replicas]}
    urls |= {name: [plant.engines[name].url] for name in ("speculative", "third")}
    hedging = {"RATIO": "0.5", "QUANTILE": "0.5", "DELAY_S_MIN": "0.3"}
    gateway = plant.gateway(
        "hedging", urls, **{f"TOLLGATE_HEDGING__{name}": hedging[name] for name in hedging}
    )
    plant.until_known(gateway)
    key = customer.keys["key"]
    assert {chat(gateway, key, STREAM).status_code for _ in range(20)} == {200}
    for replica in twins.replicas:
        replica.fault("hold")
    slow, fast = twins.replicas
    with Asked(gateway, key, STREAM) as asked:
        for replica in twins.replicas:
            replica.wait_for(timeout_s=PATIENCE_S, in_flight=1)
        fast.clear()
        reply = asked.reply()
    assert (reply.status, reply.is_complete, reply.events()[-1]) == (200, True, "[DONE]")
    slow.wait_for(timeout_s=PATIENCE_S, in_flight=0)
    plant.assert_right(gateway)
    rows = plant.rows(customer, "client_request_id = :name", name=asked.name)
    found = {row["replica"]: (row["state"], row["payer"], row["error_code"]) for row in rows}
    assert found[twins.name_of(slow)] == ("failed", "platform", "hedge_lost")
    assert found[twins.name_of(fast)] == ("answered", "tenant", None)


# ------------------------------------------------------------------------------------------------ changes
def test_changes_while_requests_run_cut_and_refuse_nothing(twins: Twins, customer: Customer) -> None:
    """Keys, budgets, limits and prices are exchanged under streams that are on their way."""
    plant, gateway, key = twins.plant, twins.gateway, customer.keys["key"]
    twins.control(tpot_ms=50, answer_tokens=60)
    streams = [Asked(gateway, key, STREAM) for _ in range(6)]
    with leaving(streams), Load([gateway], [key], clients=2, body_of=lambda _: SHORT) as load:
        load.until_more(2)
        for _ in range(3):
            made = plant.customer("project/other")
            plant.budget(Scope.TENANT, made.tenant_id, 10**9)
        prices = gateway.cli("prices", "set", "plain", "--input", "0.2", "--output", "0.9")
        assert prices.returncode == 0, prices.stdout + prices.stderr
        limit = gateway.cli("limits", "set", "key", customer.key_ids["key"], "--requests-per-minute", "90000")
        assert limit.returncode == 0, limit.stdout + limit.stderr
        plant.until_known(gateway)
        load.until_more(10)
        replies = [each.reply() for each in streams]
    assert load.refusals == []
    assert all(reply.is_complete and reply.events()[-1] == "[DONE]" for reply in replies)
    assert not any(b'"error"' in reply.body for reply in replies)
    reset = gateway.cli("prices", "reset", "plain")
    assert reset.returncode == 0, reset.stdout + reset.stderr
    plant.assert_right(gateway)
