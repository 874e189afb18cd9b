"""Does a backtest hold on real vLLM? One policy is recorded, another backtested, then run.

Starts the two bundled pools, each on cores of its own as pools have machines of their own, and the gateway,
sends requests as they come by chance (stories and records to be turned into JSON; one in five names its
pool) for some minutes under policy A, all to the plain pool, and asks what policy B, by the tasks' nature,
would have done. Then the same requests are sent at the same moments under B, to engines that have just
started as well, and what the ledger says of them is the truth.

    python -m tests.load.backtest_vllm [--seconds 150] [--per-s 2.0]

Writes tests/load/results/backtest_vllm.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx

from backends.bench.workload import Prompt, Prompts, TaskName
from backends.files import load_pools
from gateway.analysis.backtest import Side, run_backtest
from gateway.analysis.figures import COST, EVERYTHING, TIMES
from gateway.analysis.history import History, read_history
from gateway.analysis.replay import Scenario
from gateway.db import create_engine, session_factory
from gateway.pricing.book import PriceBook
from gateway.pricing.catalog import cards_of
from gateway.routing.policy import parse_policy
from tests.load.backtest_truth import ALL_PLAIN, BY_NATURE, policy_text
from tests.load.measured import ROOT, write_result
from tests.load.task_fleet import Fleet
from tests.support.gateway_process import PROGRAM, GatewayProcess, environment
from tests.support.servers import die_with_parent

NAME: Final = "backtest_vllm"
POOLS: Final = ROOT / "backends" / "pools"
ALIASES: Final = ("auto", "tollgate-reference-speculative", "tollgate-reference-plain")
START_S: Final = 420.0
SETTLE_S: Final = 3.0
TASKS: Final[tuple[TaskName, ...]] = ("extraction", "creative")


@contextlib.contextmanager
def fleet(folder: Path, settings: dict[str, str]) -> Iterator[None]:
    """The bundled pools, up, each on its own half of the cores: a backtest takes pools for independent.

    Raises:
        RuntimeError: they do not start.
    """
    log = folder / "fleet.log"
    engine = folder / ".venv-vllm"
    if not engine.exists():  # the program looks where it runs
        engine.symlink_to((ROOT / ".venv-vllm").resolve())
    with log.open("ab") as file:
        process = subprocess.Popen(
            [*PROGRAM, "pools", "up"],
            cwd=folder,
            env=environment(folder, settings),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent(os.getpid(), None),  # noqa: PLW1509 - no lock is taken between fork and exec
        )
    try:
        deadline = time.monotonic() + START_S
        while "The fleet is up" not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the fleet does not start:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.5)
        Fleet(load_pools(POOLS), folder / "state").keep_apart()
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)


def plan(*, seconds: float, per_s: float, seed: int) -> list[tuple[float, str, Prompt]]:
    """When which alias is asked what."""
    draw, prompts, at_s = random.Random(seed), Prompts(seed), 0.0
    planned: list[tuple[float, str, Prompt]] = []
    while True:
        at_s += draw.expovariate(per_s)
        if at_s >= seconds:
            return planned
        task = draw.choice(TASKS)
        prompt = prompts.take(
            task, input_tokens=draw.choice((1, 60, 140)), output_tokens_max=140, is_output_fixed=False
        )
        planned.append((at_s, draw.choices(ALIASES, (0.8, 0.1, 0.1))[0], prompt))


async def drive(url: str, key: str, planned: list[tuple[float, str, Prompt]]) -> dict[int, int]:
    """Send them at their moments; how many answers had which status."""
    statuses: dict[int, int] = {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    headers = {"authorization": f"Bearer {key}"}
    async with (
        httpx.AsyncClient(  # noqa: TID251 - a client of the gateway
            base_url=url, headers=headers, trust_env=False, timeout=300, limits=limits
        ) as client,
        asyncio.TaskGroup() as group,
    ):

        async def send(at_s: float, alias: str, prompt: Prompt) -> None:
            await asyncio.sleep(max(0.0, began_s + at_s - time.monotonic()))
            body = {**prompt.body(alias), "stream": False}
            del body["stream_options"], body["ignore_eos"]
            named = {"x-tollgate-task": prompt.task}
            answer = await client.post("/v1/chat/completions", json=body, headers=named)
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1

        began_s = time.monotonic()
        for each in planned:
            group.create_task(send(*each))
    return statuses


def recorded(folder: Path, from_ms: int, to_ms: int) -> History:
    """What the ledger has of a span."""

    async def read() -> History:
        engine = create_engine(f"sqlite+aiosqlite:///{folder / 'state' / 'tollgate.db'}")
        try:
            async with session_factory(engine)() as session:
                return await read_history(session, from_ms=from_ms, to_ms=to_ms)
        finally:
            await engine.dispose()

    return asyncio.run(read())


def under(folder: Path, name: str, *, routes: str, planned: list[tuple[float, str, Prompt]]) -> History:
    """Run the gateway under a policy, send everything, and read what was recorded."""
    policy = folder / f"{name}.yaml"
    policy.write_text(policy_text(routes), encoding="utf-8")
    settings = {"TOLLGATE_POOLS": str(POOLS), "TOLLGATE_POLICY": str(policy)}
    with GatewayProcess(folder, {}, settings=settings) as gateway:
        warm = [(0.0, alias, prompt) for _, alias, prompt in plan(seconds=4, per_s=3, seed=99)]
        asyncio.run(drive(gateway.url, gateway.key, warm))
        time.sleep(SETTLE_S)
        from_ms = int(datetime.now(UTC).timestamp() * 1000)  # noqa: TID251 - the machine's own clock
        statuses = asyncio.run(drive(gateway.url, gateway.key, planned))
        time.sleep(SETTLE_S)
        to_ms = int(datetime.now(UTC).timestamp() * 1000)  # noqa: TID251 - the machine's own clock
    print(f"{name}: {statuses}", flush=True)
    return recorded(folder, from_ms, to_ms)


def same_requests(before: History, after: History) -> dict[str, Any]:
    """By task: how alike two answers to the same request are in length, and what all of them came to.

    The correlation is the prompts' part of the variance; at temperature 0 it would be 1 but for rounding.
    """
    pairs: dict[str, list[tuple[int, int]]] = {}
    for one, other in zip(before.requests, after.requests, strict=False):
        first, second = one.answer, other.answer
        is_same = one.task.type is other.task.type and one.model_alias == other.model_alias
        if first is None or second is None or not is_same or first.input_tokens != second.input_tokens:
            continue  # two that came together changed places
        pairs.setdefault(one.task.type.value, []).append((first.output_tokens, second.output_tokens))
    return {
        task: {
            "pairs": len(found),
            "tokens_mean": [round(statistics.fmean(side), 2) for side in zip(*found, strict=True)],
            "tokens_deviation": [round(statistics.pstdev(side), 2) for side in zip(*found, strict=True)],
            "same_length": round(sum(one == other for one, other in found) / len(found), 3),
            "correlation": _correlation(found),
        }
        for task, found in pairs.items()
    }


def _correlation(pairs: list[tuple[int, int]]) -> float | None:
    one, other = zip(*pairs, strict=True)
    if len(set(one)) < 2 or len(set(other)) < 2:
        return None
    return round(statistics.correlation(one, other), 3)


def compared(said: Side, happened: Any) -> dict[str, Any]:
    """Each figure: what was said, what was true."""
    figures: dict[str, Any] = {}
    truth = {
        "charge": happened.charge_usd_nanos,
        "cost": sum(load.cost_usd_nanos for load in happened.pools),
        **happened.times[EVERYTHING],
    }
    claims = {"charge": said.charges[EVERYTHING], "cost": said.claims[EVERYTHING][COST]}
    claims |= {name: said.claims[EVERYTHING][name] for name in TIMES}
    for name, claim in claims.items():
        if claim.interval is None:
            figures[name] = {"refused": claim.refused, "truth": truth[name]}
            continue
        one = claim.interval
        figures[name] = {
            "estimate": round(one.estimate, 4),
            "low": round(one.low, 4),
            "high": round(one.high, 4),
            "truth": round(truth[name], 4),
            "is_covered": one.low <= truth[name] <= one.high,
            "width": round(one.width_ratio, 3),
            "error": round(one.estimate / truth[name] - 1, 4),
            "rests_on": claim.rests_on,
        }
    return figures


def main() -> int:
    """Record, backtest, run, compare."""
    parser = argparse.ArgumentParser(description="Compare a backtest with real vLLM.")
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--per-s", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    planned = plan(seconds=arguments.seconds, per_s=arguments.per_s, seed=arguments.seed)
    specs = load_pools(POOLS)
    prices = PriceBook(cards_of(specs))
    with tempfile.TemporaryDirectory(prefix="tollgate-") as name:
        folder = Path(name)
        # Each on engines that have just started: a prompt that was there before is in their prefix cache.
        with fleet(folder, {"TOLLGATE_POOLS": str(POOLS)}):
            before = under(folder, "all-plain", routes=ALL_PLAIN, planned=planned)
        (folder / "fleet.log").unlink()
        with fleet(folder, {"TOLLGATE_POOLS": str(POOLS)}):
            after = under(folder, "by-nature", routes=BY_NATURE, planned=planned)
    policies = [
        parse_policy(policy_text(routes), source="policy", pools=specs) for routes in (ALL_PLAIN, BY_NATURE)
    ]
    sides = [Scenario(name, policy, specs, prices) for name, policy in zip("AB", policies, strict=True)]
    found = run_backtest(before, candidate=sides[1], baseline=sides[0], seed=1)
    truth = run_backtest(after, candidate=sides[1], baseline=sides[1], seed=1).recorded
    figures = {
        "requests": len(planned),
        "recorded": len(before.requests),
        "afterwards": len(after.requests),
        "decided_alike": found.decided_alike,
        "simulator": {check.pool: {**check.ratios} for check in found.checks},
        "step_scales": {check.pool: list(check.step_scales) for check in found.checks},
        "same_requests": same_requests(before, after),
        "figures": compared(found.candidate, truth),
        "before": {
            "charge": found.recorded.charge_usd_nanos,
            "cost": sum(load.cost_usd_nanos for load in found.recorded.pools),
            **found.recorded.times[EVERYTHING],
        },
    }
    write_result(NAME, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
