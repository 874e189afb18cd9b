"""What does a test see of a running gateway from outside: its answers, its database, its socket?"""

import json
import re
import socket
import sqlite3
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from typing import Any, Final, Self

import httpx

from tests.support.gateway_process import GatewayProcess
from tests.support.mock_process import MockVllm
from tests.support.mock_vllm_exchange import Reply, read_reply

PATIENCE_S: Final = 60.0
CHAT: Final = "/v1/chat/completions"
Row = dict[str, Any]


class Site:
    """A gateway and the engines behind it."""

    def __init__(self, gateway: GatewayProcess, *, speculative: MockVllm, plain: MockVllm) -> None:
        self.gateway = gateway
        self.speculative = speculative
        self.plain = plain

    @property
    def url(self) -> str:
        return self.gateway.url

    def until_up(self) -> None:
        """Wait until every replica takes requests."""

        def is_up() -> bool:
            answer = httpx.get(f"{self.url}/readyz", trust_env=False, timeout=30)
            return answer.status_code == 200 and all(answer.json()["replicas_ready"].values())

        eventually(is_up)

    def post(self, body: dict[str, Any] | bytes, **more: Any) -> httpx.Response:
        """One chat request with the demo key."""
        headers = {**self.gateway.headers, "content-type": "application/json", **more.pop("headers", {})}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(
            f"{self.url}{more.pop('path', CHAT)}",
            content=content,
            headers=headers,
            trust_env=False,
            timeout=30,
        )

    def rows(self, count: int, **where: str) -> list[Row]:
        """The attempts in the database with these values, once so many have arrived.

        Raises:
            AssertionError: they never did, or there are more.
        """
        found: list[Row] = []

        def have_arrived() -> bool:
            found[:] = attempts(self.gateway, **where)
            return len(found) >= count

        eventually(have_arrived)
        assert len(found) == count
        return found

    def metric(self, sample: str) -> float:
        """A sample of /metrics; 0 before it first happened."""
        page = httpx.get(f"{self.url}/metrics", trust_env=False, timeout=30).text
        found = re.search(rf"^{re.escape(sample)} (\S+)$", page, flags=re.MULTILINE)
        return 0.0 if found is None else float(found[1])


def attempts(gateway: GatewayProcess, **where: str) -> list[Row]:
    """What the database of an embedded gateway holds of its callers now, oldest first."""
    condition = " AND ".join(["tenant_id <> 'platform'", *(f"{name} = ?" for name in where)])
    query = f"SELECT * FROM attempts WHERE {condition} ORDER BY started_at_ms, attempt_number"  # noqa: S608 - names of columns from the tests
    with closing(sqlite3.connect(gateway.state_dir / "tollgate.db", timeout=10)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(query, tuple(where.values()))]


def eventually(holds: Callable[[], object], *, within_s: float = PATIENCE_S) -> None:
    """Wait until it holds; for things that happen in other processes.

    What counts is when a look began: on a busy machine one can take longer than what it looks for.
    """
    began_s = looked_s = time.monotonic()
    while not holds():
        assert looked_s < began_s + within_s, "did not happen in time"
        time.sleep(0.02)
        looked_s = time.monotonic()


def mark() -> str:
    """A name of its own for a request, for its X-Request-Id."""
    return f"test-{uuid.uuid4().hex}"


class RawClient:
    """A connection on which a test says exactly what it wants."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.socket = socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE_S)
        self._gateway = gateway

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def head(self, *more: str, path: str = CHAT) -> bytes:
        """A request's head, up to and with the empty line."""
        authorization = f"authorization: {self._gateway.headers['authorization']}"
        lines = [f"POST {path} HTTP/1.1", "host: tollgate", authorization, *more, "", ""]
        return "\r\n".join(lines).encode()

    def ask(self, body: dict[str, Any], *more: str) -> None:
        """A whole, correct request."""
        content = json.dumps(body).encode()
        self.send(self.head("content-type: application/json", f"content-length: {len(content)}", *more))
        self.send(content)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read_until(self, text: bytes, times: int = 1) -> bytes:
        """What arrived until a text had come so often."""
        held = b""
        while held.count(text) < times:
            data = self.socket.recv(65536)
            assert data, f"the connection ended: {held!r}"
            held += data
        return held

    def reply(self) -> Reply:
        """One whole answer."""
        return read_reply(self.socket)
