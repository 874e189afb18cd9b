"""How many real requests does a bad candidate get? A gateway, two mock engines, the command line.

Two pools: the control sends everything to one, the candidate to the other, which answers one request in ten
with status 500, or takes twice as long. In nothing else do they differ: both have the same price (the pool
files' own would make the candidate half as dear again, and the guard is faster to see that) and measurements
overturn nobody's order. So only the measure that is meant can give the candidate away.
"""

import itertools
import json
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import httpx

from gateway.migrate import upgrade
from tests.support.gateway_process import GatewayProcess, json_of
from tests.support.mock_process import MockVllm
from tests.support.pool_files import RATES, policy_in_order

PACE: Final = {"ttft_ms": 20, "tpot_ms": 2, "answer_tokens": 16}
SLOW: Final = {"ttft_ms": 40, "tpot_ms": 4, "answer_tokens": 16}
PERCENT: Final = 20
FAULT_EVERY: Final = 50
"""Requests of both versions: one in ten of the candidate's."""
WARM: Final = 150
"""Requests before the canary begins."""
PATIENCE_S: Final = 300.0
CLIENTS: Final = 4
# Without a cache: every request is answered by an engine.
CANDIDATE: Final = policy_in_order().replace("cache:\n", "cache:\n  enabled: false\n")
CONTROL: Final = CANDIDATE.replace("creative: [plain, speculative]", "creative: [speculative, plain]")


class Site:
    """A gateway whose active policy and whose candidate use different engines."""

    def __init__(self, folder: Path) -> None:
        self.engines = {"speculative": MockVllm(), "plain": MockVllm()}
        for engine in self.engines.values():
            engine.control(**PACE)
        policy, self.candidate = folder / "policy.yaml", folder / "next.yaml"
        policy.write_text(CONTROL)
        self.candidate.write_text(CANDIDATE)
        state = folder / "state"
        state.mkdir()
        upgrade(f"sqlite+aiosqlite:///{state / 'tollgate.db'}")
        urls = {name: [engine.url] for name, engine in self.engines.items()}
        self.gateway = GatewayProcess(folder, urls, settings={"TOLLGATE_POLICY": str(policy)})
        same = (f"--{meter.replace('_', '-')}={usd}" for meter, usd in RATES["speculative"].items())
        json_of(self.gateway.cli("prices", "set", "plain", *same, "--json"))
        self.sent: Counter[str] = Counter()
        """By the version that the answer named."""
        self._numbers = itertools.count()

    def ask(self, client: httpx.Client, *, faults: bool) -> None:
        """One conversation."""
        number = next(self._numbers)
        if faults and number % FAULT_EVERY == 0:
            self.engines["plain"].fault("status", 500, times=1)
        body = {"model": "auto", "messages": [{"role": "user", "content": f"Tell me story {number}"}]}
        answer = client.post("/v1/chat/completions", json={**body, "stream": bool(number % 2)})
        self.sent[answer.headers.get("x-tollgate-policy", "none")] += 1

    def client(self) -> httpx.Client:
        """With a tenant's key."""
        return httpx.Client(
            base_url=self.gateway.url, headers=self.gateway.headers, trust_env=False, timeout=60
        )

    def status(self) -> dict[str, Any]:
        """As the command line tells it."""
        found: dict[str, Any] = json.loads(self.gateway.cli("policy", "canary", "status", "--json").stdout)
        return found

    def close(self) -> None:
        """End all programs."""
        self.gateway.stop()
        for engine in self.engines.values():
            engine.stop()


def rolled_back(kind: str) -> dict[str, Any]:
    """Start a bad canary under load and wait for its guard.

    Args:
        kind: `fails` or `slow`.

    Raises:
        AssertionError: the guard did not roll it back.
    """
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder))
        try:
            return _watched(site, kind)
        finally:
            site.close()


def _watched(site: Site, kind: str) -> dict[str, Any]:
    over = threading.Event()
    with site.client() as client:
        for _ in range(WARM):
            site.ask(client, faults=False)
    site.sent.clear()
    started = json_of(
        site.gateway.cli(
            "policy", "canary", str(site.candidate), "--percent", str(PERCENT), "-m", kind, "--json"
        )
    )
    if kind == "slow":
        site.engines["plain"].control(**SLOW)

    def run() -> None:
        with site.client() as client:
            while not over.is_set():
                site.ask(client, faults=kind == "fails")

    threads = [threading.Thread(target=run) for _ in range(CLIENTS)]
    began_s = time.monotonic()
    for thread in threads:
        thread.start()
    try:
        while (status := site.status())["end"] is None:
            assert time.monotonic() - began_s < PATIENCE_S, status
            time.sleep(0.5)
        took_s = time.monotonic() - began_s
    finally:
        over.set()
        for thread in threads:
            thread.join()
    end = status["end"]
    assert (end["how"], end["actor"]) == ("rolled_back", "guard"), end
    audited = site.gateway.cli("audit", "log", "--limit", "5").stdout
    return {
        "percent": PERCENT,
        "clients": CLIENTS,
        "candidate_requests_until_seen": site.sent[started["version"]],
        "candidate_units_judged": end["evidence"]["units"],
        "seconds": round(took_s, 1),
        "harmed": end["evidence"]["harmed"],
        "reason": end["reason"],
        "history": site.gateway.cli("policy", "canary", "history").stdout.splitlines(),
        "status": site.gateway.cli("policy", "canary", "status").stdout.splitlines(),
        "audit": audited.splitlines(),
    }
