"""When the client leaves, does the engine stop at once, and is what was done booked once?"""

from typing import Any, Final

import pytest

from tests.e2e.site import RawClient, Row, Site, mark

STORY: Final[dict[str, Any]] = {
    "model": "auto",
    "messages": [{"role": "user", "content": "Tell me a story"}],
    "max_tokens": 400,
}
STREAM: Final = {**STORY, "stream": True}


def _leave_after(site: Site, body: dict[str, Any], *, contents: int) -> Row:
    """Ask, read so many contents, hang up; the row once the engine has stopped."""
    name = mark()
    gone = site.metric("tollgate_clients_gone_total")
    with RawClient(site.gateway) as client:
        client.ask(body, f"x-request-id: {name}")
        site.plain.wait_for(in_flight=1)
        if contents:
            client.read_until(b'"delta":{"content"', times=contents)
    # The engine would go on for half a minute.
    stats = site.plain.wait_for(aborted=1, in_flight=0)
    (row,) = site.rows(1, client_request_id=name)
    assert (row["state"], row["payer"], row["pool"]) == ("cancelled", "tenant", "plain")
    assert row["usage_source"] == "estimated"
    assert row["output_tokens"] <= stats["completion_tokens"], "more was charged than the engine made"
    assert row["charge_usd_nanos"] == row["input_tokens"] * 150 + row["output_tokens"] * 600
    assert site.metric("tollgate_clients_gone_total") == gone + 1
    assert site.metric("tollgate_attempts_open") == 0
    assert site.metric("tollgate_held_usd") == 0
    assert site.speculative.stats()["requests"] == 0, "nobody waits for it any more: it is not tried again"
    return row


def test_before_a_whole_answer(site: Site) -> None:
    site.plain.control(ttft_ms=30_000)
    row = _leave_after(site, STORY, contents=0)
    assert (row["status_code"], row["output_tokens"], row["ttft_ms"]) == (499, 0, None)


def test_before_the_first_content_of_a_stream(site: Site) -> None:
    site.plain.control(ttft_ms=30_000)
    row = _leave_after(site, STREAM, contents=0)
    assert (row["status_code"], row["output_tokens"], row["ttft_ms"]) == (499, 0, None)


def test_while_the_engine_is_silent_before_its_headers(site: Site) -> None:
    site.plain.fault("hang")
    _leave_after(site, STREAM, contents=0)


@pytest.mark.parametrize("contents", [1, 5])
def test_in_the_middle_of_a_stream(site: Site, contents: int) -> None:
    site.plain.control(tpot_ms=50, answer_tokens=400)
    row = _leave_after(site, STREAM, contents=contents)
    assert contents <= row["output_tokens"] < 400
    assert row["ttft_ms"] is not None


def test_while_the_engine_is_silent_in_the_middle_of_a_stream(site: Site) -> None:
    site.plain.control(tpot_ms=5)
    site.plain.fault("stall_mid_stream", "3,60")
    row = _leave_after(site, STREAM, contents=3)
    assert row["output_tokens"] == 3


def test_with_continuous_usage_what_the_engine_counted_is_charged(site: Site) -> None:
    site.plain.control(tpot_ms=50, answer_tokens=400)
    name = mark()
    options = {"include_usage": True, "continuous_usage_stats": True}
    with RawClient(site.gateway) as client:
        client.ask({**STREAM, "stream_options": options}, f"x-request-id: {name}")
        client.read_until(b'"delta":{"content"', times=4)
    site.plain.wait_for(aborted=1, in_flight=0)
    (row,) = site.rows(1, client_request_id=name)
    assert (row["state"], row["usage_source"], row["input_tokens"]) == ("cancelled", "measured", 8)
    assert 4 <= row["output_tokens"] < 400


def test_a_client_that_leaves_during_a_fallback_leaves_that_too(site: Site) -> None:
    site.plain.fault("status", 500)
    site.speculative.control(ttft_ms=30_000)
    name = mark()
    with RawClient(site.gateway) as client:
        client.ask(STREAM, f"x-request-id: {name}")
        site.speculative.wait_for(in_flight=1)
    site.speculative.wait_for(aborted=1, in_flight=0)
    first, second = site.rows(2, client_request_id=name)
    assert (first["pool"], first["state"], first["payer"]) == ("plain", "failed", "platform")
    assert (second["pool"], second["state"], second["payer"]) == ("speculative", "cancelled", "tenant")


def test_a_client_that_left_before_its_request_was_whole_costs_nothing(site: Site) -> None:
    with RawClient(site.gateway) as client:
        client.send(client.head("content-length: 1000"))
        client.send(b'{"model": "auto"')
    assert site.post(STORY).status_code == 200
    assert site.plain.stats()["requests"] == 1


def test_many_who_leave_at_once(site: Site) -> None:
    site.plain.control(tpot_ms=50, answer_tokens=400)
    name = mark()
    clients = [RawClient(site.gateway) for _ in range(20)]
    for client in clients:
        client.ask(STREAM, f"x-request-id: {name}")
    for client in clients:
        client.read_until(b'"delta":{"content"')
    for client in clients:
        client.socket.close()
    site.plain.wait_for(aborted=20, in_flight=0, timeout_s=20)
    rows = site.rows(20, client_request_id=name)
    assert {(row["state"], row["payer"]) for row in rows} == {("cancelled", "tenant")}
    assert site.metric("tollgate_attempts_open") == 0
