"""Does any request fail that had not begun to answer, while replicas are killed one after the other?

    python -m tests.load.killed_replicas --seconds 60 --every 10

One `tollgate serve`, one pool of two mock replicas, clients that ask without a pause, for a stream every
other time. Every few seconds one replica is killed with SIGKILL, the one that was not killed last, and
started again at the same port; the next is not killed before both take requests. What must hold then:

- no client whose answer had not begun got an error: not a status of 500 or more, not a broken connection,
  not an error as the first thing in a stream;
- a stream that had begun ends with an error event and [DONE], never by breaking off;
- the books are right.

Exit status 0: it held; 1: it did not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx

from gateway.migrate import upgrade
from tests.load.measured import write_result
from tests.support.books import assert_books_are_right
from tests.support.gateway_process import GatewayProcess, json_of
from tests.support.mock_process import MockVllm
from tests.support.pool_files import DEFAULT_POLICY
from tests.support.servers import postgres_server

PATIENCE_S: Final = 60.0
PACE: Final = {"ttft_ms": 30, "tpot_ms": 5, "answer_tokens": 16}
"""Of an engine: an answer takes about a tenth of a second, a third of it before its first content."""
CHAT: Final = "/v1/chat/completions"


class Replica:
    """A mock engine that is killed and comes back at the same address."""

    def __init__(self) -> None:
        self.engine = MockVllm()
        self.port = self.engine.port
        self.engine.control(**PACE)

    def kill9(self) -> None:
        """End it as the out-of-memory killer would, and start another one."""
        self.engine.stop()  # SIGKILL
        time.sleep(0.5)  # for a while nobody listens there
        self.engine = MockVllm("--port", str(self.port))
        self.engine.control(**PACE)


class Disruption:
    """The traffic and the killing."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.replicas = [Replica(), Replica()]
        policy = folder / "one-pool.yaml"
        policy.write_text(_one_pool(DEFAULT_POLICY.read_text()))
        quick = {"TOLLGATE_HEALTH__POLL_INTERVAL_S": "0.2", "TOLLGATE_HEALTH__BACKOFF_S_MAX": "1"}
        self.settings = {**settings, **quick, "TOLLGATE_POLICY": str(policy)}
        urls = {"plain": [each.engine.url for each in self.replicas]}
        self.gateway = GatewayProcess(folder, urls, settings=self.settings)
        json_of(self.gateway.cli("tenants", "create", "disrupted", "--json"))
        issued = json_of(self.gateway.cli("keys", "create", "--tenant", "disrupted", "--json"))
        self.key: str = issued["key"]
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._lock = threading.Lock()
        self._is_over = threading.Event()

    def run(self, *, seconds: float, every_s: float, kills: int, clients: int) -> dict[str, Any]:
        """Traffic until so many seconds have passed and so many replicas were killed.

        Raises:
            AssertionError: a rule does not hold.
        """
        self._until_up()
        threads = [threading.Thread(target=self._client, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        began_s, killed = time.monotonic(), 0
        try:
            while killed < kills or time.monotonic() - began_s < seconds:
                time.sleep(every_s)
                self._until_up()
                self.replicas[killed % 2].kill9()
                killed += 1
            self._until_up()
        finally:
            self._is_over.set()
            for thread in threads:
                thread.join(PATIENCE_S)
        took_s = time.monotonic() - began_s
        retries = self._metric("tollgate_retries_total")
        self.gateway.stop()
        assert not self.wrong, self.wrong[:5]
        assert_books_are_right(self.settings)
        return {
            "seconds": round(took_s, 1),
            "killed": killed,
            "requests": sum(self.outcomes.values()),
            "outcomes": dict(self.outcomes),
            "retries": int(retries),
        }

    def close(self) -> None:
        """End all programs."""
        self.gateway.stop()
        for replica in self.replicas:
            replica.engine.stop()

    def _client(self, number: int) -> None:
        headers = {"authorization": f"Bearer {self.key}"}
        with httpx.Client(base_url=self.gateway.url, headers=headers, trust_env=False, timeout=60) as client:
            count = number
            while not self._is_over.is_set():
                count += 1
                try:
                    outcome, wrong = self._ask(client, is_stream=bool(count % 2))
                except httpx.TransportError as error:
                    outcome, wrong = "connection broke", repr(error)
                with self._lock:
                    self.outcomes[outcome] += 1
                    if wrong:
                        self.wrong.append(wrong)

    @staticmethod
    def _ask(client: httpx.Client, *, is_stream: bool) -> tuple[str, str]:
        """What became of one request, and what is wrong with that."""
        body = {"model": "auto", "messages": [{"role": "user", "content": "Tell me a story"}]}
        answer = client.post(CHAT, json={**body, "max_tokens": 16, "stream": is_stream})
        if answer.status_code != httpx.codes.OK:
            return f"status {answer.status_code}", answer.text
        if not is_stream:
            return "answered", ""
        *events, last = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
        if last != "[DONE]":
            return "stream broke off", answer.text[-300:]
        has_content = any(
            choice["delta"].get("content")
            for event in events
            for choice in json.loads(event).get("choices") or ()
        )
        if '"error"' not in events[-1]:
            return "streamed", ""
        if has_content:
            return "stream ended with an error behind its content", ""
        return "stream began with an error", answer.text

    def _until_up(self) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while self._metric('tollgate_replicas_ready{pool="plain"}') < len(self.replicas):
            assert time.monotonic() < deadline_s, "a replica does not come back"
            time.sleep(0.05)

    def _metric(self, sample: str) -> float:
        page = httpx.get(f"{self.gateway.url}/metrics", trust_env=False, timeout=10).text
        found = [line for line in page.splitlines() if line.startswith(f"{sample} ")]
        return float(found[0].split()[1]) if found else 0.0


def _one_pool(policy: str) -> str:
    """The default policy with the plain pool alone."""
    kept = policy.replace("[speculative, plain]", "[plain]").replace("[plain, speculative]", "[plain]")
    return kept.replace("[speculative]", "[plain]")


def disrupt(
    folder: Path, settings: Mapping[str, str], *, seconds: float, every_s: float, kills: int = 1, clients: int
) -> dict[str, Any]:
    """All of it, on a migrated PostgreSQL database.

    Raises:
        AssertionError: a rule does not hold.
    """
    run = Disruption(folder, settings)
    try:
        return run.run(seconds=seconds, every_s=every_s, kills=kills, clients=clients)
    finally:
        run.close()


def main() -> int:
    """Disrupt and write the result."""
    parser = argparse.ArgumentParser(description="Kill replicas under load.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--every", type=float, default=10, help="seconds between two kills")
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    with postgres_server() as database, tempfile.TemporaryDirectory() as folder:
        upgrade(database)
        settings = {
            "TOLLGATE_DATABASE_URL": database,
            "TOLLGATE_ADMIN_KEY": "tga-" + "a" * 40,
            "TOLLGATE_SECRET_KEY": "s" * 40,
        }
        figures = disrupt(
            Path(folder), settings, seconds=options.seconds, every_s=options.every, clients=options.clients
        )
    write_result("killed_replicas", {"every_s": options.every, "clients": options.clients, **figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
