"""What do the fault tests break? Two gateways on one PostgreSQL and one Redis, in front of three engines.

The first gateway reaches its database and its engines through proxies that can cut a connection; the second
one reaches them directly. Tests share all of it and have tenants of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import select
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import httpx
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.db import create_engine, session_factory
from gateway.identity.key_store import create_key
from gateway.identity.store import create_tenant, ensure_project
from gateway.ledger.buckets import Scope, Window
from gateway.ledger.budget_store import Owner, create_budget
from tests.e2e.site import CHAT, PATIENCE_S, eventually, mark
from tests.support.books import Row, assert_books_are_right, query
from tests.support.breakable_servers import BreakablePostgres, BreakableRedis
from tests.support.factories import make_act
from tests.support.gateway_process import GatewayProcess
from tests.support.mock_process import MockVllm
from tests.support.mock_vllm_exchange import Reply, read_reply
from tests.support.pool_files import DEFAULT_POLICY, pool_text
from tests.support.tcp_proxy import TcpProxy

POOLS: Final = ("speculative", "plain", "third")
STORY: Final[dict[str, Any]] = {
    "model": "auto",
    "messages": [{"role": "user", "content": "Tell me a story"}],
    "max_tokens": 16,
}
"""Creative: plain first, then third, then speculative."""
JSON: Final = "application/json"
LONG_MS: Final = 60_000
"""Milliseconds that an engine takes when a test shall end it, not time."""
_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True)
class Customer:
    """A tenant, and its keys by the names that a test gave them."""

    tenant_id: str
    projects: dict[str, str]
    key_ids: dict[str, str]
    keys: dict[str, str]


@dataclass(slots=True)
class Plant:
    """Servers, engines and gateways."""

    folder: Path
    postgres: BreakablePostgres
    redis: BreakableRedis
    engines: dict[str, MockVllm]
    database_url: str
    database_proxy: TcpProxy
    engine_proxies: dict[str, TcpProxy]
    _running: dict[str, GatewayProcess] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, str]:
        """Of every gateway on this database."""
        return {
            "TOLLGATE_DATABASE_URL": self.database_url,
            "TOLLGATE_REDIS_URL": self.redis.url,
            "TOLLGATE_ADMIN_KEY": "tga-" + "a" * 40,
            "TOLLGATE_SECRET_KEY": "s" * 40,
            "TOLLGATE_POLICY": str(self.folder / "policy.yaml"),
            # The longest that may be set: a busy machine must not decide who is refused.
            "TOLLGATE_BUDGETS__RECALL_S": "10",
            "TOLLGATE_TIMEOUTS__FIRST_TOKEN_S": "5",
            "TOLLGATE_TIMEOUTS__BETWEEN_TOKENS_S": "2",
            # What engines generate and what is booked are compared: no probe may generate anything.
            "TOLLGATE_HEALTH__IDLE_PROBE_S": "3600",
        }

    @property
    def one(self) -> GatewayProcess:
        """The gateway behind the proxies."""
        port = self.database_proxy.port
        database = re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{port}", self.database_url)
        urls = {name: [f"http://127.0.0.1:{proxy.port}"] for name, proxy in self.engine_proxies.items()}
        return self.gateway("one", urls, TOLLGATE_DATABASE_URL=database)

    @property
    def other(self) -> GatewayProcess:
        """The gateway that nothing is between."""
        return self.gateway("other", {name: [mock.url] for name, mock in self.engines.items()})

    @property
    def pair(self) -> tuple[GatewayProcess, GatewayProcess]:
        """Both."""
        return self.one, self.other

    def gateway(
        self,
        name: str,
        urls: Mapping[str, Sequence[str]],
        *,
        program: Sequence[str] | None = None,
        **more: str,
    ) -> GatewayProcess:
        """The gateway of this name, started when it is first asked for.

        Args:
            name: its folder's.
            urls: base URLs of the engines, by pool.
            program: what stands for `tollgate`; None: itself.
            more: further settings.
        """
        found = self._running.get(name)
        if found is None:
            folder = self.folder / name
            write_fleet(folder, urls)
            settings = {**self.settings, **more}
            found = self._running[name] = GatewayProcess(folder, {}, settings=settings, program=program)
        assert found.process.poll() is None, f"the gateway ended by itself:\n{found.said()[-4000:]}"
        return found

    def stop(self) -> None:
        """End the gateways."""
        for gateway in self._running.values():
            gateway.stop()

    # ------------------------------------------------------------------------------------- what is sold
    def customer(self, *keys: str) -> Customer:
        """A new tenant with these keys, each written PROJECT/NAME."""

        async def make(session: AsyncSession) -> Customer:
            act = make_act()
            tenant = await create_tenant(session, f"tenant-{secrets.token_hex(4)}", act=act)
            made = Customer(tenant.id, {}, {}, {})
            for written in keys:
                project_name, _, name = written.partition("/")
                project = await ensure_project(session, tenant, project_name, act=act)
                key = await create_key(session, project, name, act=act)
                made.projects[project_name] = project.id
                made.key_ids[name], made.keys[name] = key.id, key.secret
            return made

        return self.change(make)

    def budget(self, scope: Scope, scope_id: str, limit_usd_nanos: int, *, name: str = "budget") -> str:
        """A new hard budget for good, known to both gateways; its id."""

        async def make(session: AsyncSession) -> str:
            budget = await create_budget(
                session,
                f"{name}-{secrets.token_hex(4)}",
                owner=Owner(scope, scope_id, None),
                window=Window.TOTAL,
                limit_usd_nanos=limit_usd_nanos,
                is_hard=True,
                act=make_act(),
            )
            return budget.id

        return self.change(make)

    def change(self, work: Callable[[AsyncSession], Awaitable[_Made]]) -> _Made:
        """Change the database as an operator does."""

        async def run() -> _Made:
            engine = create_engine(self.database_url)
            try:
                async with session_factory(engine)() as session:
                    made = await work(session)
                    await session.commit()
                    return made
            finally:
                await engine.dispose()

        return asyncio.run(run())

    def until_known(self, *gateways: GatewayProcess) -> None:
        """Wait until the gateways know all that was changed so far.

        A look takes over keys and budgets one after the other: once a key is known that was made when
        another one was known already, a whole look lies between.
        """
        for _ in range(2):
            key = self.customer("canary/key").keys["key"]
            for gateway in gateways or self.pair:
                eventually(partial(_knows, gateway, key))

    # ---------------------------------------------------------------------------------- what is to see
    def rows(self, customer: Customer, condition: str = "true", **values: object) -> list[Row]:
        """The tenant's attempts in the books now."""
        statement = (
            f"SELECT * FROM attempts WHERE tenant_id = :tenant_id AND {condition}"  # noqa: S608 - from the tests
            " ORDER BY started_at_ms, attempt_number"
        )
        return query(self.database_url, statement, tenant_id=customer.tenant_id, **values)

    def until_booked(self, *gateways: GatewayProcess) -> None:
        """Wait until nothing is under way or on its way to the database."""
        for gateway in gateways or self.pair:
            eventually(partial(_is_quiet, gateway), within_s=2 * PATIENCE_S)

    def until_up(self) -> None:
        """Wait until every engine takes requests, by both gateways' account."""
        for gateway in self.pair:
            eventually(partial(_is_up, gateway))

    def window(self, budget_id: str) -> Row:
        """A budget's only bucket."""
        (row,) = query(self.database_url, "SELECT * FROM budget_windows WHERE budget_id = :id", id=budget_id)
        return row

    def assert_right(self, *others: GatewayProcess) -> None:
        """The books are right, and nobody holds anything; `others` beside the pair."""
        self.until_booked(*self.pair, *others)
        for gateway in (*self.pair, *others):
            assert metric(gateway, "tollgate_held_usd") == 0
        assert_books_are_right(self.settings)


def write_fleet(folder: Path, urls: Mapping[str, Sequence[str]]) -> None:
    """Pool files of three pools, the third at the rates of the plain one."""
    pools = folder / "pools"
    pools.mkdir(parents=True, exist_ok=True)
    for name, addresses in urls.items():
        kind = "speculative" if name == "speculative" else "plain"
        text = pool_text(kind, addresses).replace(f"name: {kind}", f"name: {name}")
        if len(addresses) > 1:
            # Whose turn it is can be known beforehand; which of two is drawn cannot.
            text += "replica_choice:\n  rule: round_robin\n"
        (pools / f"{name}.yaml").write_text(text)


def write_policy(path: Path) -> None:
    """The default policy with a third pool behind the plain one."""
    text = DEFAULT_POLICY.read_text()
    for before in ("pools: [speculative, plain]", "predictable: [speculative, plain]"):
        text = text.replace(before, f"{before[:-1]}, third]")
    alone = "models:\n  third:\n    pools: [third]\n    description: The third pool, always\n"
    text = text.replace("models:\n", alone, 1)
    path.write_text(text.replace("creative: [plain, speculative]", "creative: [plain, third, speculative]"))


# ------------------------------------------------------------------------------------------ as a client
def chat(
    gateway: GatewayProcess, key: str, body: dict[str, Any] = STORY, *, name: str = ""
) -> httpx.Response:
    """One whole answer; the same bytes as `Asked` sends, for a body's length decides what is held for it."""
    headers = {"authorization": f"Bearer {key}", "x-request-id": name or mark(), "content-type": JSON}
    content = json.dumps(body).encode()
    return httpx.post(f"{gateway.url}{CHAT}", content=content, headers=headers, trust_env=False, timeout=60)


class Asked:
    """A request that was sent on a connection of its own, and whose answer is not read yet."""

    def __init__(
        self,
        gateway: GatewayProcess,
        key: str,
        body: dict[str, Any] = STORY,
        *,
        just_before: Callable[[], object] = lambda: None,
    ) -> None:
        """Connect, do something, send."""
        self.name = mark()
        """Its X-Request-Id, which is on its rows."""
        self.body = body
        content = json.dumps(body).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: tollgate\r\nauthorization: Bearer {key}\r\n"
            f"x-request-id: {self.name}\r\ncontent-type: {JSON}\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        self.socket = socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE_S)
        just_before()
        with contextlib.suppress(ConnectionError):  # it may be dead by now; the reply is incomplete then
            self.socket.sendall(head.encode() + content)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    @property
    def is_answered(self) -> bool:
        """The answer has begun."""
        waiting = select.poll()  # select() knows no descriptor above 1023
        waiting.register(self.socket, select.POLLIN)
        return bool(waiting.poll(0))

    def read_until(self, text: bytes, times: int = 1) -> bytes:
        """What arrived until a text had come so often."""
        held = b""
        while held.count(text) < times:
            data = self.socket.recv(65_536)
            assert data, f"the connection ended: {held!r}"
            held += data
        return held

    def reply(self) -> Reply:
        """The whole answer; incomplete where the connection ends before."""
        return read_reply(self.socket)

    def leave(self) -> None:
        """Hang up."""
        self.socket.close()


class Load:
    """Clients that ask one after the other, as long as the block lasts."""

    def __init__(
        self,
        gateways: Sequence[GatewayProcess],
        keys: Sequence[str],
        *,
        clients: int = 4,
        body_of: Callable[[int], dict[str, Any]] = lambda _: STORY,
    ) -> None:
        self.statuses: Counter[tuple[str, int]] = Counter()
        """How often each key got each status; 0: the connection failed."""
        self.refusals: list[str] = []
        self._stops = threading.Event()
        self._lock = threading.Lock()
        self._body_of = body_of
        self._threads = [
            threading.Thread(
                target=self._run, args=(gateways[index % len(gateways)], keys[index // 2 % len(keys)], index)
            )
            for index in range(clients)
        ]

    @property
    def answered(self) -> int:
        """Requests so far that were answered."""
        with self._lock:
            return sum(count for (_, status), count in self.statuses.items() if status == httpx.codes.OK)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stops.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE_S)

    def pause(self, seconds: float) -> None:
        """Let it go on for so long: a fault has a length."""
        self._stops.wait(seconds)

    def until_more(self, count: int) -> None:
        """Wait until so many more were answered."""
        enough = self.answered + count
        eventually(lambda: self.answered >= enough)

    def _run(self, gateway: GatewayProcess, key: str, index: int) -> None:
        headers = {"authorization": f"Bearer {key}"}
        number = index
        with httpx.Client(base_url=gateway.url, headers=headers, trust_env=False, timeout=60) as client:
            while not self._stops.is_set():
                number += len(self._threads)
                status, said = 0, "no answer"
                with contextlib.suppress(httpx.TransportError):
                    answer = client.post(CHAT, json=self._body_of(number))
                    status, said = answer.status_code, answer.text
                with self._lock:
                    self.statuses[key, status] += 1
                    if status != httpx.codes.OK:
                        self.refusals.append(said)
                if status != httpx.codes.OK:
                    self._stops.wait(0.05)  # who is refused does not ask again at once


def metric(gateway: GatewayProcess, sample: str) -> float:
    """A sample of /metrics; 0 before it first happened."""
    page = httpx.get(f"{gateway.url}/metrics", trust_env=False, timeout=30).text
    found = re.search(rf"^{re.escape(sample)} (\S+)$", page, flags=re.MULTILINE)
    return 0.0 if found is None else float(found[1])


def _is_quiet(gateway: GatewayProcess) -> bool:
    return not (metric(gateway, "tollgate_attempts_open") or metric(gateway, "tollgate_spool_unshipped"))


def _is_up(gateway: GatewayProcess) -> bool:
    answer = httpx.get(f"{gateway.url}/readyz", trust_env=False, timeout=30)
    return answer.status_code == httpx.codes.OK and all(answer.json()["replicas_ready"].values())


def _knows(gateway: GatewayProcess, key: str) -> bool:
    headers = {"authorization": f"Bearer {key}"}
    answer = httpx.get(f"{gateway.url}/v1/models", headers=headers, trust_env=False, timeout=30)
    return answer.status_code == httpx.codes.OK


@contextlib.contextmanager
def leaving(asked: Sequence[Asked]) -> Iterator[None]:
    """All of them hang up at the end."""
    try:
        yield
    finally:
        for each in asked:
            each.leave()
