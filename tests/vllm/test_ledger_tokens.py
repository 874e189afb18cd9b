"""Are the tokens in the books those that the real engines counted? Prints the table (`-s`).

Whole answers and streams, both endpoints, both pools, repeated prompts (prefix cache) and repeated requests
(answer cache): difference 0. A client that hangs up is another matter: its attempt is estimated, never above
what certainly was generated.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.bench.workload import Prompts
from backends.fleet_file import FLEET_FILE_NAME
from gateway.clock import Clock
from tests.load.engine_counters import as_table, comparison, engine_tokens, ledger_tokens
from tests.load.task_fleet import BUNDLED, wait_booked
from tests.support.gateway_process import GatewayProcess
from tests.support.pool_files import DEFAULT_POLICY
from tests.vllm.conftest import RunningFleet

pytestmark = pytest.mark.vllm

REQUESTS = 60
HUNG_UP = 6
TRIES_MAX = 36
HELD_BACK_S = 1.0
"""Ten tokens take a tenth of it."""


@pytest.fixture
def gateway(fleet: RunningFleet, tmp_path: Path) -> Iterator[GatewayProcess]:
    """As shipped, with its answer cache, in front of the bundled fleet."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / FLEET_FILE_NAME).symlink_to(fleet.state_dir / FLEET_FILE_NAME)
    settings = {"TOLLGATE_POOLS": str(BUNDLED), "TOLLGATE_POLICY": str(DEFAULT_POLICY)}
    with GatewayProcess(tmp_path, {}, settings=settings) as running:
        yield running


def bodies() -> list[tuple[str, dict[str, Any]]]:
    """Both tasks, every third one no stream, every sixth one a completion, every tenth one asked twice."""
    prompts, found = Prompts(77), list[tuple[str, dict[str, Any]]]()
    for number in range(REQUESTS):
        task = ("extraction", "creative")[number % 2]
        prompt = prompts.take(task, input_tokens=80, output_tokens_max=24, is_output_fixed=False)  # type: ignore[arg-type]
        body = prompt.body("auto") | {"stream": bool(number % 3)}
        path = "/v1/chat/completions"
        if not number % 3:
            del body["stream_options"]
        if not number % 6:
            path = "/v1/completions"
            body |= {"prompt": prompt.messages[-1][1]}
            del body["messages"]
        found += [(path, body)] * (2 if not number % 10 else 1)
    return found


def ask(gateway: GatewayProcess, path: str, body: dict[str, Any]) -> str:
    """One request to its end; says whether the answer cache had it."""
    answer = httpx.post(
        f"{gateway.url}{path}", json=body, headers=gateway.headers, timeout=120, trust_env=False
    )
    assert answer.status_code == 200, answer.text
    return answer.headers["x-tollgate-cache"]


def hang_up(gateway: GatewayProcess, number: int) -> float:
    """Read the first contents of a long story and leave, unless all came at once; after how many seconds.

    It does where the engine's loop keeps its own sending thread from running, which the kernel's grouping of
    sessions brings about (vLLM 0.32 on CPUs, Linux 6.18): seen without a gateway too.
    """
    body = {
        "model": "auto",
        "messages": [{"role": "user", "content": f"Tell a story about {number} foxes."}],
        "max_tokens": 600,
        "ignore_eos": True,
        "stream": True,
    }
    began_s = time.monotonic()
    with httpx.stream(
        "POST",
        f"{gateway.url}/v1/chat/completions",
        content=json.dumps(body),
        headers=gateway.headers | {"content-type": "application/json"},
        timeout=120,
        trust_env=False,
    ) as answer:
        for seen, line in enumerate(answer.iter_lines()):
            if seen > 8 and '"content"' in line:
                break
    return time.monotonic() - began_s


def test_the_ledgers_tokens_are_those_that_the_engines_counted(
    fleet: RunningFleet, gateway: GatewayProcess
) -> None:
    before, since_ms = engine_tokens(fleet.urls), Clock().epoch_ms()
    books = [gateway.state_dir / "tollgate.db"]
    with ThreadPoolExecutor(12) as clients:
        caches = list(clients.map(lambda one: ask(gateway, *one), bodies()))
    wait_booked(gateway, len(caches))
    middle = engine_tokens(fleet.urls)
    compared = comparison(before, middle, ledger_tokens(books, since_ms))
    print(f"\n{as_table(compared)}")  # noqa: T201 - what this is for
    assert len(compared) == 2
    assert sum(row["attempts"] for row in compared.values()) >= len(caches) - caches.count("hit") > 50
    for row in compared.values():
        assert row["engine_written"] > 100
        assert (row["difference_read"], row["difference_written"], row["estimated_attempts"]) == (0, 0, 0)

    # Who leaves early pays for what it certainly got, which is no more than the engine made. Clients that got
    # their first words late tell nothing: the engine may have made all of the story by then.
    after: dict[str, dict[str, int]] = {}
    waited_s: list[float] = []
    while sum(each < HELD_BACK_S for each in waited_s) < HUNG_UP and len(waited_s) < TRIES_MAX:
        numbers = range(len(waited_s), len(waited_s) + HUNG_UP)
        with ThreadPoolExecutor(3) as clients:
            waited_s += clients.map(lambda number: hang_up(gateway, number), numbers)
        wait_booked(gateway, len(caches) + len(waited_s))
        after = comparison(before, engine_tokens(fleet.urls), ledger_tokens(books, since_ms))
        print(f"With {len(waited_s)} clients that hung up:\n{as_table(after)}")  # noqa: T201 - what this is for
    left, held_back = (
        sum((each < HELD_BACK_S) == is_prompt for each in waited_s) for is_prompt in (True, False)
    )
    assert left >= HUNG_UP
    assert left <= sum(row["estimated_attempts"] for row in after.values()) <= left + held_back
    for row in after.values():
        assert row["difference_written"] >= row["estimated_written"]
    # Of a story of 600 tokens little more was made than read: the engine was stopped.
    more = sum(row["difference_written"] for row in after.values())
    assert more < left * 300 + held_back * 600
