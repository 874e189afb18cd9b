"""What can a client do to the gateway by being slow, silent, many or large?"""

from __future__ import annotations

import json
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import pytest

from tests.e2e.faults.plant import LONG_MS, STORY, Asked, Customer, Plant, chat
from tests.e2e.site import CHAT, PATIENCE_S, eventually
from tests.support.gateway_process import PROGRAM, GatewayProcess
from tests.support.mock_process import MockVllm
from tests.support.mock_vllm_exchange import Reply, read_reply

CONTENT: Final = b'"delta":{"content"'
STREAM: Final[dict[str, Any]] = {**STORY, "stream": True}
MEGABYTE: Final = 1_000_000
FEW_FILES: Final = 512
"""Open files that a system allows until somebody asks for more."""
IDLE: Final = 2_000
TOKENS, CHOICES = 1_000, 120
LONG_TOKENS: Final = TOKENS * CHOICES
"""Of an answer far larger than all buffers between an engine and a client: about 30 MB of events."""
IMPATIENT: Final = {"TOLLGATE_CLIENTS__REQUEST_TIMEOUT_S": "3", "TOLLGATE_CLIENTS__KEEP_ALIVE_S": "600"}


@pytest.fixture(scope="module")
def long_winded() -> Iterator[MockVllm]:
    with MockVllm("--tokens", str(TOKENS)) as engine:
        yield engine


@pytest.fixture
def gateway(plant: Plant, long_winded: MockVllm) -> GatewayProcess:
    """With little patience, and few open files unless it asks for more; its third pool is long-winded."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    urls = {name: [engine.url] for name, engine in plant.engines.items()}
    return plant.gateway(
        "clients",
        {**urls, "third": [long_winded.url]},
        program=["prlimit", f"--nofile={FEW_FILES}:{hard}", *PROGRAM],
        **IMPATIENT,
    )


@pytest.fixture
def customer(plant: Plant, gateway: GatewayProcess) -> Customer:
    made = plant.customer("project/key")
    plant.until_known(gateway)
    return made


def memory_bytes(gateway: GatewayProcess) -> int:
    """What it holds in memory now."""
    pages = Path(f"/proc/{gateway.process.pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def open_files(gateway: GatewayProcess) -> int:
    return sum(1 for _ in Path(f"/proc/{gateway.process.pid}/fd").iterdir())


def head(key: str, *lines: str, path: str = CHAT) -> bytes:
    """A request's head with the empty line behind it."""
    first = (f"POST {path} HTTP/1.1", "host: tollgate", f"authorization: Bearer {key}")
    return "\r\n".join((*first, "content-type: application/json", *lines, "", "")).encode()


@contextmanager
def connected(gateway: GatewayProcess, *, receive_bytes: int | None = None) -> Iterator[socket.socket]:
    with socket.socket() as connection:
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.settimeout(PATIENCE_S)
        connection.connect(("127.0.0.1", gateway.port))
        yield connection


def send_until_closed(connection: socket.socket, pieces: Iterator[bytes]) -> int:
    """How many bytes could be sent before the gateway had enough."""
    sent = 0
    try:
        for piece in pieces:
            connection.sendall(piece)
            sent += len(piece)
    except OSError:
        pass
    return sent


# --------------------------------------------------------------------------------------------------- slow
def test_a_client_that_does_not_read_stops_the_engine_and_fills_no_memory(
    plant: Plant, gateway: GatewayProcess, customer: Customer, long_winded: MockVllm
) -> None:
    long_winded.reset()
    body = json.dumps({**STREAM, "model": "third", "max_tokens": TOKENS, "n": CHOICES}).encode()
    key = customer.keys["key"]
    with connected(gateway, receive_bytes=65_536) as slow:
        before = memory_bytes(gateway)
        slow.sendall(head(key, f"content-length: {len(body)}") + body)
        long_winded.wait_for(timeout_s=PATIENCE_S, in_flight=1)
        held = slow.recv(1_000)
        assert held.startswith(b"HTTP/1.1 200")
        highest = before
        for _ in range(20):  # whoever buffers without end does so now
            time.sleep(0.1)
            highest = max(highest, memory_bytes(gateway))
            assert chat(gateway, key).status_code == 200, "others are served meanwhile"
        assert long_winded.stats()["in_flight"] == 1, "the engine went on for nobody"
        grown = (highest - before) / MEGABYTE
        sys.stdout.write(f"\na client that does not read: {grown:.1f} MB more\n")
        assert grown < 15
        contents, total, ends = held.count(CONTENT), len(held), held
        while not ends.endswith(b"0\r\n\r\n"):
            data = slow.recv(1 << 20)
            assert data, "the stream broke off"
            contents += (ends[-len(CONTENT) + 1 :] + data).count(CONTENT)
            total += len(data)
            ends = (ends + data)[-100:]
    assert b"[DONE]" in ends
    assert contents == LONG_TOKENS, f"of {total} bytes"
    plant.assert_right(gateway)
    (row,) = plant.rows(customer, "output_tokens > 16")
    assert (row["state"], row["payer"], row["output_tokens"]) == ("answered", "tenant", LONG_TOKENS)


def test_what_does_not_become_a_request_in_time_is_closed(
    gateway: GatewayProcess, customer: Customer
) -> None:
    key = customer.keys["key"]
    began = (b"", b"POST /v1/chat", head(key, "x-half: a header")[:-3], head(key, "content-length: 9") + b"{")
    with ExitStack() as stack:
        connections = [stack.enter_context(connected(gateway)) for _ in began]
        for connection, start in zip(connections, began, strict=True):
            connection.sendall(start)
        assert chat(gateway, key).status_code == 200
        for connection in connections:
            reply = read_reply(connection)
            assert (reply.status, reply.header("connection")) == (408, "close")
            assert json.loads(reply.body)["error"]["code"] == "request_timeout"
            assert connection.recv(1) == b""


# --------------------------------------------------------------------------------------------------- many
def test_two_thousand_idle_connections_cost_little_and_keep_nobody_out(
    plant: Plant,
    gateway: GatewayProcess,
    customer: Customer,
    record_property: Callable[[str, Any], None],
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * IDLE + 500
    if hard < needed:
        pytest.skip(f"this system allows {hard} open files, and it takes {needed}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    key = customer.keys["key"]
    asking = head(key, path="/v1/models").replace(b"POST", b"GET", 1)

    def models(connection: socket.socket) -> Reply:
        connection.sendall(asking)
        return read_reply(connection)

    idle_files = open_files(gateway)
    before = memory_bytes(gateway)
    with ExitStack() as stack:
        connections = [stack.enter_context(connected(gateway)) for _ in range(IDLE)]
        assert {models(each).status for each in connections} == {200}
        assert open_files(gateway) >= IDLE, "they are kept alive"
        each_kb = (memory_bytes(gateway) - before) / IDLE / 1_000
        sys.stdout.write(f"\n{IDLE} idle connections: {each_kb:.1f} KB each\n")
        record_property("idle_connection_kb", round(each_kb, 1))
        assert each_kb < 100
        assert chat(gateway, key).status_code == 200
        assert {models(each).status for each in connections[::100]} == {200}
    eventually(lambda: open_files(gateway) < idle_files + 50)
    plant.assert_right(gateway)


# -------------------------------------------------------------------------------------------------- large
def chunks(count: int) -> Iterator[bytes]:
    """A body in megabytes, framed as chunks, that never ends."""
    framed = b"%x\r\n%s\r\n" % (MEGABYTE, b"x" * MEGABYTE)
    yield from (framed for _ in range(count))


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_hundred_megabytes_of_body_are_refused_and_not_kept(
    plant: Plant, gateway: GatewayProcess, customer: Customer, *, is_announced: bool
) -> None:
    length = 100 * MEGABYTE
    framing = f"content-length: {length}" if is_announced else "transfer-encoding: chunked"
    before = memory_bytes(gateway)
    with connected(gateway) as large:
        large.sendall(head(customer.keys["key"], framing))
        if is_announced:  # it is told before it has sent anything
            reply = read_reply(large)
            assert reply.status == 413
            assert json.loads(reply.body)["error"]["code"] == "payload_too_large"
        sent = send_until_closed(large, chunks(100))
        grown = (memory_bytes(gateway) - before) / MEGABYTE
    sys.stdout.write(f"\n100 MB of body: {sent / MEGABYTE:.0f} MB sent, {grown:.1f} MB more\n")
    assert sent < length, "it read all of it"
    assert grown < 60, "thrice the limit of a body"
    assert chat(gateway, customer.keys["key"]).status_code == 200
    plant.assert_right(gateway)
    assert len(plant.rows(customer)) == 1


def headers_without_end() -> Iterator[bytes]:
    line = b"x-bomb: " + b"b" * 8_000 + b"\r\n"
    for _ in range(100 * MEGABYTE // len(line)):
        yield line


def one_header_without_end() -> Iterator[bytes]:
    yield b"x-bomb: "
    for _ in range(100):
        yield b"b" * MEGABYTE


def a_line_without_end() -> Iterator[bytes]:
    for _ in range(100):
        yield b"b" * MEGABYTE


BOMBS: Final = {
    "headers": (True, headers_without_end),
    "one header": (True, one_header_without_end),
    "the request line": (False, a_line_without_end),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_head_without_end_is_refused(
    plant: Plant, gateway: GatewayProcess, customer: Customer, name: str
) -> None:
    has_line, pieces = BOMBS[name]
    start = head(customer.keys["key"])[:-2] if has_line else b"GET /"
    before = memory_bytes(gateway)
    with connected(gateway) as bomb:
        bomb.sendall(start)
        sent = send_until_closed(bomb, pieces())
    grown = (memory_bytes(gateway) - before) / MEGABYTE
    sys.stdout.write(f"\na bomb of {name}: {sent / MEGABYTE:.1f} MB sent, {grown:.1f} MB more\n")
    assert sent < 50 * MEGABYTE
    assert grown < 10
    assert chat(gateway, customer.keys["key"]).status_code == 200
    plant.assert_right(gateway)


def test_too_many_headers_are_refused_and_said(gateway: GatewayProcess, customer: Customer) -> None:
    many = [f"x-{number}: y" for number in range(300)]
    with connected(gateway) as client:
        client.sendall(head(customer.keys["key"], "content-length: 2", *many) + b"{}")
        reply = read_reply(client)
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (431, "head_too_large")


# ----------------------------------------------------------------------------------------------- leaving
@pytest.mark.parametrize(
    ("name", "body", "contents"),
    [("a whole answer", STORY, 0), ("before the first content", STREAM, 0), ("in a stream", STREAM, 2)],
)
def test_who_leaves_has_the_engine_stopped(
    plant: Plant,
    customer: Customer,
    record_property: Callable[[str, Any], None],
    *,
    name: str,
    body: dict[str, Any],
    contents: int,
) -> None:
    """How long that takes is printed; the promise is 100 ms."""
    plain = plant.engines["plain"]
    plain.control(ttft_ms=0 if contents else LONG_MS, tpot_ms=50, answer_tokens=400)
    took_ms = []
    plant.until_known(plant.other)
    for _ in range(20):
        with Asked(plant.other, customer.keys["key"], {**body, "max_tokens": 400}) as asked:
            plain.wait_for(timeout_s=PATIENCE_S, in_flight=1)
            if contents:
                asked.read_until(CONTENT, times=contents)
            else:
                time.sleep(0.03)  # clients leave when they have waited, not in the moment they asked
        left_s = time.monotonic()
        plain.wait_for(timeout_s=PATIENCE_S, in_flight=0)
        took_ms.append((time.monotonic() - left_s) * 1_000)
    sys.stdout.write(
        f"\nleft {name}: the engine stopped after {median(took_ms):.0f} ms, {max(took_ms):.0f} at most\n"
    )
    record_property("left_ms", [round(each) for each in took_ms])
    plant.assert_right()
    assert {(row["state"], row["payer"]) for row in plant.rows(customer)} == {("cancelled", "tenant")}
