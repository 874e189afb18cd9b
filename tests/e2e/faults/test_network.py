"""Who pays when a connection breaks, an engine fails or a client leaves, at every stage of an answer?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import httpx
import pytest

from gateway.ledger.buckets import Scope
from tests.e2e.faults.plant import LONG_MS, POOLS, STORY, Asked, Customer, Plant, chat
from tests.support.books import Row
from tests.support.tcp_proxy import Cut, Manner

STREAM: Final[dict[str, Any]] = {**STORY, "stream": True}
PATH: Final = "/v1/chat/completions"
POST: Final = f"POST {PATH}".encode()
PACE_MS: Final = 100
"""Between two tokens where something breaks between them: what was said before has been read by then."""
HEAD: Final = b"HTTP/1.1 200"
CONTENT: Final = b'"delta":{"content"'
LIMIT_NANOS: Final = 10**9
INPUT_NANOS, OUTPUT_NANOS = 150, 600
"""What a token costs at the plain and at the third pool."""


@pytest.fixture
def customer(plant: Plant) -> Customer:
    """With a budget, so that every charge is looked at there too."""
    made = plant.customer("project/key")
    plant.budget(Scope.TENANT, made.tenant_id, LIMIT_NANOS)
    plant.until_known()
    for engine in plant.engines.values():
        engine.control(tpot_ms=5)
    return made


def _rows_of(plant: Plant, customer: Customer, name: str) -> list[Row]:
    """The request's attempts, once everything is booked, and the rules that hold for any of them."""
    plant.assert_right()
    rows = plant.rows(customer, "client_request_id = :name", name=name)
    assert len({row["request_id"] for row in rows}) == 1
    assert [row["attempt_number"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(0 <= row["charge_usd_nanos"] <= row["hold_usd_nanos"] for row in rows)
    return rows


def _told(row: Row) -> tuple[str, str, str, str | None]:
    return row["pool"], row["state"], row["payer"], row["error_code"]


# --------------------------------------------------------------------------------- gateway and engine
@dataclass(frozen=True, slots=True)
class Break:
    """A connection between gateway and engine that breaks before anything reached the client."""

    cut: Cut
    is_streaming: bool
    is_read: bool
    """The engine may have read the prompt: somebody pays for it."""


BREAKS: Final = {
    "reset when asked": Break(Cut(asked=POST, times=2), True, False),
    "reset instead of the head": Break(Cut(reply=HEAD, asked=POST, times=2), True, False),
    "closed before the first content": Break(Cut(reply=CONTENT, asked=POST, manner=Manner.CLOSE), True, True),
    "stalled before the first content": Break(
        Cut(reply=CONTENT, asked=POST, manner=Manner.STALL), True, True
    ),
    "half a plain answer": Break(Cut(reply=b'"usage"', asked=POST), False, True),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_breaks_before_the_first_content_is_tried_elsewhere_and_the_platform_pays(
    plant: Plant, customer: Customer, name: str
) -> None:
    case = BREAKS[name]
    plant.engine_proxies["plain"].cut(case.cut)
    body = STREAM if case.is_streaming else STORY
    with Asked(plant.one, customer.keys["key"], body) as asked:
        reply = asked.reply()
    assert (reply.status, reply.is_complete) == (200, True)
    assert b"error" not in reply.body
    assert plant.engine_proxies["plain"].cuts_made
    first, second = _rows_of(plant, customer, asked.name)
    assert _told(first)[:3] == ("plain", "failed", "platform")
    assert (first["charge_usd_nanos"] > 0) is case.is_read
    assert first["charge_usd_nanos"] == first["input_tokens"] * INPUT_NANOS
    assert _told(second) == ("third", "answered", "tenant", None)
    assert second["output_tokens"] == 16
    code = "upstream_timeout" if case.cut.manner is Manner.STALL else "upstream_unavailable"
    assert first["error_code"] == code


@pytest.mark.parametrize("manner", Manner)
def test_what_breaks_after_the_first_content_is_told_in_the_stream_and_the_platform_pays(
    plant: Plant, customer: Customer, manner: Manner
) -> None:
    plant.engines["plain"].control(tpot_ms=PACE_MS)
    plant.engine_proxies["plain"].cut(Cut(reply=CONTENT, asked=POST, nth=6, manner=manner))
    with Asked(plant.one, customer.keys["key"], STREAM) as asked:
        reply = asked.reply()
    assert reply.is_complete, "the client's stream ends properly"
    *contents, error, done = reply.events()
    assert done == "[DONE]"
    assert "error" in error
    (row,) = _rows_of(plant, customer, asked.name)
    assert _told(row)[:3] == ("plain", "interrupted", "platform")
    assert row["usage_source"] == "estimated"
    seen = sum(1 for event in contents if event["choices"][0]["delta"].get("content"))
    assert row["output_tokens"] == seen == 5
    assert row["charge_usd_nanos"] == row["input_tokens"] * INPUT_NANOS + 5 * OUTPUT_NANOS


def test_two_pools_fail_before_the_first_content_and_a_third_one_after_it(
    plant: Plant, customer: Customer
) -> None:
    plant.engines["plain"].fault("error_before_first_content", times=1)
    plant.engines["third"].fault("die_before_first_chunk", times=1)
    plant.engines["speculative"].control(tpot_ms=PACE_MS)
    plant.engines["speculative"].fault("error_mid_stream", 2, times=1)
    with Asked(plant.one, customer.keys["key"], STREAM) as asked:
        reply = asked.reply()
    assert (reply.status, reply.is_complete) == (200, True)
    events = reply.events()
    assert events[-1] == "[DONE]"
    assert "error" in events[-2]
    rows = _rows_of(plant, customer, asked.name)
    assert [(row["pool"], row["state"]) for row in rows] == [
        ("plain", "failed"),
        ("third", "failed"),
        ("speculative", "interrupted"),
    ]
    assert {row["payer"] for row in rows} == {"platform"}
    assert all(row["charge_usd_nanos"] > 0 for row in rows), "each of them read the prompt"
    assert sum(row["output_tokens"] for row in rows) == rows[2]["output_tokens"] >= 2
    tried = {name: engine.stats()["paths"][PATH] for name, engine in plant.engines.items()}
    assert tried == dict.fromkeys(POOLS, 1), "it was tried again"


def test_every_pool_fails_after_it_read_the_prompt(plant: Plant, customer: Customer) -> None:
    for engine in plant.engines.values():
        engine.fault("error_before_first_content", times=1)
    name = "all fail"
    refused = chat(plant.one, customer.keys["key"], STREAM, name=name)
    assert refused.status_code in {httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE}
    rows = _rows_of(plant, customer, name)
    assert [(row["state"], row["payer"]) for row in rows] == [("failed", "platform")] * 3
    assert all(0 < row["charge_usd_nanos"] <= row["hold_usd_nanos"] for row in rows)


# --------------------------------------------------------------------------------- client and gateway
def test_a_client_that_leaves_pays_for_what_was_made_for_it(plant: Plant, customer: Customer) -> None:
    """Before the first token, in the middle, and after the last one; tests/e2e/test_hang_up.py has more."""
    plain, key = plant.engines["plain"], customer.keys["key"]
    names = []
    plain.control(ttft_ms=LONG_MS)
    with Asked(plant.one, key, STREAM) as early:
        plain.wait_for(in_flight=1)
    plain.wait_for(aborted=1, in_flight=0)
    plain.control(ttft_ms=0)
    for contents in (4, 16):  # then the engine is silent: who is there, and how far, is no race
        plain.fault("stall_mid_stream", f"{contents},60", times=1)
        with Asked(plant.one, key, STREAM) as asked:
            asked.read_until(CONTENT, times=contents)
        plain.wait_for(in_flight=0)
        names.append(asked.name)
    (row,) = _rows_of(plant, customer, early.name)
    assert (row["state"], row["payer"], row["output_tokens"]) == ("cancelled", "tenant", 0)
    assert row["charge_usd_nanos"] == row["input_tokens"] * INPUT_NANOS > 0
    for name, contents in zip(names, (4, 16), strict=True):
        (row,) = _rows_of(plant, customer, name)
        assert (row["state"], row["payer"], row["output_tokens"]) == ("cancelled", "tenant", contents)
        assert row["charge_usd_nanos"] == row["input_tokens"] * INPUT_NANOS + contents * OUTPUT_NANOS
