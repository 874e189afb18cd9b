"""Do two gateways keep their books right for minutes of mixed traffic while things break?

    python -m tests.load.soak --seconds 600 --seed 7

Two `tollgate serve` on one PostgreSQL and one Redis, two mock engines, eight clients. Faults are drawn from
the seed, which is printed: a gateway is killed and started again, PostgreSQL's connections are cut, Redis is
paused, an engine misbehaves. The books are compared every few seconds and at the end. What must hold then:

- all books say the same, nothing is lent any more, no budget is passed, no charge exceeded its hold;
- every answer that a client saw whole is booked once, at exactly the cost that its header named;
- what is booked as measured is at most what the engines generated, and what is missing is no more than the
  attempts without a measurement can account for: ANSWER_TOKENS each.

Exit status 0: it held; 1: it did not, and seed, rule and journal are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import redis
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from gateway.clock import Clock
from gateway.ledger.buckets import Scope, Window
from gateway.migrate import upgrade
from gateway.money import usd_nanos_from_decimal
from tests.integration.ledger.accounts import WRONG, check_books, journal_text
from tests.integration.ledger.audited import audit
from tests.integration.ledger.site import Site
from tests.load.measured import write_result
from tests.support.gateway_process import GatewayProcess, json_of
from tests.support.mock_process import MockVllm
from tests.support.servers import postgres_server, redis_server

ANSWER_TOKENS: Final = 16
"""The mock engine's whole answer: what one attempt can generate at most."""
CLIENTS: Final = 8
LIMIT_USD_NANOS: Final = 4_000_000
"""Of one tenant's budget: reached within the run, so that refusals are part of the traffic."""
ENGINE_FAULTS: Final = (
    ("status", "503", 4),
    ("die_mid_stream", "3", 3),
    ("die_before_first_chunk", None, 2),
    ("error_mid_stream", "2", 3),
    ("no_usage", None, 3),
)
PROMPTS: Final = ("Tell me a story about a fox.", "Extract all names: Bob met Ann.", "Write a poem.")


@dataclass
class Seen:
    """What the clients saw."""

    costs: dict[str, int] = field(default_factory=dict)
    """Nano-USD by request id, of answers that came whole."""
    outcomes: Counter[str] = field(default_factory=Counter)


class Soak:
    """The servers, the traffic and the faults."""

    def __init__(self, folder: Path, seed: int, *, database: str, redis_url: str) -> None:
        self.draw = random.Random(seed)
        self.seed = seed
        self.folder = folder
        self.database = database
        self.redis = redis.Redis.from_url(redis_url)
        self.settings = {
            "TOLLGATE_DATABASE_URL": database,
            "TOLLGATE_REDIS_URL": redis_url,
            "TOLLGATE_ADMIN_KEY": "tga-" + "a" * 40,
            "TOLLGATE_SECRET_KEY": "s" * 40,
        }
        self.mocks = {"speculative": MockVllm("--speculative", "3"), "plain": MockVllm()}
        self.gateways = [self.start(number) for number in range(2)]
        self.keys = [self.new_key(tenant) for tenant in ("bounded", "unbounded")]
        self.seen = Seen()
        self.faults: Counter[str] = Counter()
        self.audits = 0
        self._is_over = threading.Event()

    def start(self, number: int) -> GatewayProcess:
        """A gateway in its own folder; the same folder again recovers its spool."""
        urls = {name: [mock.url] for name, mock in self.mocks.items()}
        folder = self.folder / f"gateway-{number}"
        folder.mkdir(exist_ok=True)
        return GatewayProcess(folder, urls, settings=self.settings)

    def new_key(self, tenant: str) -> str:
        """A key of a new tenant."""
        json_of(self.gateways[0].cli("tenants", "create", tenant, "--json"))
        key: str = json_of(self.gateways[0].cli("keys", "create", "--tenant", tenant, "--json"))["key"]
        return key

    # ------------------------------------------------------------------------------------------- traffic
    def client(self, number: int) -> None:
        """One client that asks until the end."""
        draw = random.Random(self.seed * 1_000 + number)
        with httpx.Client(trust_env=False, timeout=20) as client:
            while not self._is_over.is_set():
                try:
                    outcome = self.ask(client, draw)
                except httpx.HTTPError:
                    outcome = "connection lost"
                    self._is_over.wait(0.1)
                self.seen.outcomes[outcome] += 1
                self._is_over.wait(draw.random() * 0.05)

    def ask(self, client: httpx.Client, draw: random.Random) -> str:
        """One request; returns what became of it."""
        url = f"{draw.choice(self.gateways).url}/v1/chat/completions"
        headers = {"authorization": f"Bearer {draw.choice(self.keys)}"}
        body: dict[str, Any] = {
            "model": "auto",
            "messages": [{"role": "user", "content": draw.choice(PROMPTS)}],
        }
        kind = draw.choice(["plain", "plain", "stream", "hang up", "cached", "bad"])
        if kind == "bad":
            body["max_tokens"] = -1
        elif kind == "cached":
            body["temperature"] = 0
        if kind in {"stream", "hang up"}:
            with client.stream("POST", url, json={**body, "stream": True}, headers=headers) as answer:
                lines = 0
                for line in answer.iter_lines():
                    lines += bool(line)
                    if kind == "hang up" and lines > draw.randint(0, 6):
                        break
            return f"{kind} {answer.status_code}"
        answer = client.post(url, json=body, headers=headers)
        if answer.status_code == httpx.codes.OK:
            self.seen.costs[answer.headers["x-request-id"]] = usd_nanos_from_decimal(
                answer.headers["x-tollgate-cost-usd"], what="the cost"
            )
        return f"{kind} {answer.status_code}"

    # -------------------------------------------------------------------------------------------- faults
    def break_something(self, site: Site, runner: asyncio.Runner) -> None:
        """One fault, drawn from the seed."""
        fault = self.draw.choice(["kill", "cut", "pause", "engine", "engine"])
        self.faults[fault] += 1
        if fault == "kill":
            number = self.draw.randrange(len(self.gateways))
            self.gateways[number].kill9()
            self.gateways[number] = self.start(number)
        elif fault == "cut":
            with contextlib.suppress(DBAPIError):
                runner.run(
                    site._execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                )
        elif fault == "pause":
            self.redis.client_pause(self.draw.randint(200, 2_000))
        else:
            name, value, times = self.draw.choice(ENGINE_FAULTS)
            self.mocks[self.draw.choice(sorted(self.mocks))].fault(name, value, times)

    def run(self, seconds: float, *, calm_s: tuple[float, float]) -> dict[str, Any]:
        """Traffic and faults for so long, then the reckoning.

        Args:
            seconds: how long.
            calm_s: from when to when nothing is broken after a fault.

        Raises:
            AssertionError: a rule does not hold.
        """
        with asyncio.Runner() as runner:
            site = Site(self.database, self.folder)
            runner.run(self.bound(site))
            clients = [threading.Thread(target=self.client, args=(number,)) for number in range(CLIENTS)]
            for client in clients:
                client.start()
            try:
                end_s = time.monotonic() + seconds
                while (left_s := end_s - time.monotonic()) > 0:
                    time.sleep(min(left_s, self.draw.uniform(*calm_s)))
                    self.break_something(site, runner)
                    runner.run(self.audit(site))
            finally:
                self._is_over.set()
                for client in clients:
                    client.join()
            for mock in self.mocks.values():
                mock.clear()
            for gateway in self.gateways:
                gateway.stop()
            figures = runner.run(self.reckon(site))
            runner.run(site.close())
        return figures

    def close(self) -> None:
        """End all programs."""
        for gateway in self.gateways:
            gateway.stop()
        for mock in self.mocks.values():
            mock.stop()
        self.redis.close()

    # ------------------------------------------------------------------------------------------ the books
    async def bound(self, site: Site) -> None:
        """Give one tenant a budget."""
        ((tenant_id,),) = await site.rows("SELECT id FROM tenants WHERE name = 'bounded'")
        await site.budget(LIMIT_USD_NANOS, scope_id=tenant_id, scope=Scope.TENANT, window=Window.TOTAL)

    async def audit(self, site: Site) -> None:
        """Compare what one statement can compare while it is being written."""
        for rule, query in WRONG.items():
            try:
                found = await site.rows(query)
            except DBAPIError:  # our connection was cut too
                continue
            assert not found, f"{rule}: not so for {found}\n{await journal_text(site)}"
        with contextlib.suppress(DBAPIError):
            await audit(site)
            self.audits += 1

    async def reckon(self, site: Site) -> dict[str, Any]:
        """Everything has ended: all must add up."""
        try:
            return await self._reckon(site)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{await journal_text(site)}") from error

    async def _reckon(self, site: Site) -> dict[str, Any]:
        await check_books(site)
        await audit(site)
        window = await site.window()
        assert window["posted"] <= LIMIT_USD_NANOS, window
        assert (window["leased"], window["unattributed"], window["overage"]) == (0, 0, 0), window
        async with site.engine.connect() as connection:
            rows = (await connection.execute(text(_BY_REQUEST), {"ids": list(self.seen.costs)})).all()
        booked = {row[0]: (int(row[1]), int(row[2])) for row in rows}
        expected = {request_id: (1, cost) for request_id, cost in self.seen.costs.items()}
        wrong = {
            key: (expected[key], booked.get(key)) for key in expected if expected[key] != booked.get(key)
        }
        assert not wrong, f"answers (times answered, nano-USD) and what is booked: {wrong}"
        ((measured, unmeasured, sent),) = await site.rows(_TOKENS)
        stats = [mock.stats() for mock in self.mocks.values()]
        generated = sum(each["completion_tokens"] for each in stats)
        # Without what a gateway asks for itself, such as the tokens of a prompt.
        requests = sum(each["paths"].get("/v1/chat/completions", 0) for each in stats)
        assert requests <= sent, f"engines saw {requests} requests, {sent} attempts are booked"
        # A gateway that starts has each engine generate one token, on the platform's own account.
        probes = sum(each["requests"] for each in stats) - requests
        most = measured + unmeasured * ANSWER_TOKENS + probes
        assert measured + probes <= generated <= most, (
            f"{generated} tokens were generated, {measured} booked as measured, {unmeasured} not measured"
        )
        return {
            "seed": self.seed,
            "requests": sum(self.seen.outcomes.values()),
            "outcomes": dict(sorted(self.seen.outcomes.items())),
            "faults": dict(self.faults),
            "audits": self.audits,
            "answers_compared": len(expected),
            "engine_tokens": generated,
            "booked_tokens": int(measured),
            "attempts_without_measurement": int(unmeasured),
            "budget_usd_nanos": window["posted"],
        }


_BY_REQUEST = """
SELECT request_id, count(*), sum(charge_usd_nanos) FROM attempts
WHERE request_id = ANY(CAST(:ids AS varchar[])) AND state = 'answered' GROUP BY request_id
"""
_TOKENS = """
SELECT coalesce(sum(CASE usage_source WHEN 'measured' THEN output_tokens + reasoning_tokens ELSE 0 END), 0),
  coalesce(sum(CASE WHEN usage_source <> 'measured' AND cache <> 'hit' THEN 1 ELSE 0 END), 0),
  coalesce(sum(CASE WHEN cache <> 'hit' THEN 1 ELSE 0 END), 0)
FROM attempts WHERE tenant_id <> 'platform'
"""


def soak(seconds: float, seed: int, *, calm_s: tuple[float, float] = (2, 5)) -> dict[str, Any]:
    """All of it.

    Raises:
        AssertionError: a rule does not hold; seed and journal are in the message.
    """
    print(f"soak: seed {seed}, {seconds:g} s", flush=True)
    with (
        postgres_server() as database,
        redis_server() as redis_url,
        tempfile.TemporaryDirectory() as folder,
    ):
        upgrade(database)
        run = Soak(Path(folder), seed, database=database, redis_url=redis_url)
        try:
            return run.run(seconds, calm_s=calm_s)
        except AssertionError as error:
            raise AssertionError(f"soak with seed {seed}: {error}") from error
        finally:
            run.close()


def main() -> None:
    """Soak and write the result."""
    parser = argparse.ArgumentParser(description="Soak two gateways while things break.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=Clock().epoch_ms() % 1_000_000, help="draws the faults")
    options = parser.parse_args()
    write_result("soak", {"seconds": options.seconds, **soak(options.seconds, options.seed)})


if __name__ == "__main__":
    main()
