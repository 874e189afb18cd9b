"""Is a call answered the same whichever way it takes: straight from the socket, or through ASGI?"""

import json
import socket
import time
from typing import Any, Final

import pytest

from gateway.api.direct import BODY_BYTES_MAX
from tests.e2e.site import RawClient, Site, mark

HELLO: Final[dict[str, Any]] = {"model": "auto", "messages": [{"role": "user", "content": "Say hello"}]}
BODY: Final = json.dumps(HELLO).encode()
SIZED: Final = f"content-length: {len(BODY)}"
ANSWER: Final = b'"object":"chat.completion"'


def test_the_pieces_in_which_a_request_arrives_do_not_matter(site: Site) -> None:
    with RawClient(site.gateway) as client:
        whole = client.head(SIZED) + BODY
        for cut in (1, 40, len(whole) - len(BODY), len(whole) - len(BODY) + 1, len(whole) - 1):
            client.send(whole[:cut])
            time.sleep(0.02)
            client.send(whole[cut:])
            reply = client.reply()
            assert (reply.status, reply.is_complete) == (200, True), cut


def test_requests_that_do_not_wait_for_each_other_are_answered_in_their_order(site: Site) -> None:
    site.plain.control(ttft_ms=100)
    site.speculative.control(ttft_ms=100)
    names = [mark() for _ in range(3)]
    with RawClient(site.gateway) as client:
        heads = [client.head(SIZED, f"x-request-id: {name}") for name in names]
        client.send(b"".join(head + BODY for head in heads))
        answers = client.read_until(ANSWER, times=3)
        assert answers.count(b"HTTP/1.1 200 OK\r\n") == 3
    started = [site.rows(1, client_request_id=name)[0] for name in names]
    ends = [row["ended_at_ms"] for row in started]
    assert ends == sorted(ends)


@pytest.mark.parametrize(
    ("more", "content"),
    [
        (("transfer-encoding: chunked",), b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)),
        ((f"content-length: {len(BODY) + BODY_BYTES_MAX}",), BODY + b" " * BODY_BYTES_MAX),
    ],
    ids=["in chunks", "large"],
)
def test_other_kinds_of_requests_are_answered_too(site: Site, more: tuple[str, ...], content: bytes) -> None:
    with RawClient(site.gateway) as client:
        for _ in range(2):
            client.send(client.head(*more) + content)
            assert client.reply().status == 200
            client.ask(HELLO)  # and straight again, over the same connection
            assert client.reply().status == 200


def test_a_client_that_asks_whether_it_may_send_its_body_is_told(site: Site) -> None:
    with RawClient(site.gateway) as client:
        client.send(client.head(SIZED, "expect: 100-continue"))
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        client.send(BODY)
        assert client.reply().status == 200


@pytest.mark.parametrize("body", [HELLO, {**HELLO, "stream": True}], ids=["whole", "stream"])
def test_a_connection_is_closed_behind_the_answer_if_the_client_wants_it(
    site: Site, body: dict[str, Any]
) -> None:
    with RawClient(site.gateway) as client:
        client.ask(body, "connection: close")
        reply = client.reply()
        assert (reply.status, reply.is_complete, reply.header("connection")) == (200, True, "close")
        assert client.socket.recv(1) == b""


def test_an_idle_connection_is_closed_and_a_busy_one_is_not(site: Site) -> None:
    site.plain.control(ttft_ms=7_000)
    site.speculative.control(ttft_ms=7_000)
    with RawClient(site.gateway) as client:
        client.ask(HELLO)
        assert client.reply().status == 200  # took longer than an idle connection is kept here, 5 s
        began_s = time.monotonic()
        assert client.socket.recv(1) == b""
        assert 4 < time.monotonic() - began_s < 15


def test_a_stream_waits_for_a_client_that_reads_slowly(site: Site) -> None:
    tokens = 900
    site.plain.control(answer_tokens=tokens)
    name = mark()
    body = {**HELLO, "messages": [{"role": "user", "content": "Tell me a story"}], "max_tokens": tokens}
    with RawClient(site.gateway) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.ask(
            {**body, "stream": True, "stream_options": {"include_usage": True}}, f"x-request-id: {name}"
        )
        held = client.read_until(b'"delta":{"content"')
        time.sleep(1)
        held += client.read_until(b"data: [DONE]")
    contents = held.count(b'"delta":{"content"')
    assert tokens - 5 <= contents <= tokens + 5  # one may be cut where we paused
    (row,) = site.rows(1, client_request_id=name)
    assert (row["state"], row["output_tokens"], row["usage_source"]) == ("answered", tokens, "measured")
