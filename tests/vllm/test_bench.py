"""Does a bench of real vLLM agree with the engine, and does the simulator that it calibrates come near it?"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from backends.bench.counters import Counters, read_counters
from backends.bench.load import Client, LoadResult, closed_loop
from backends.bench.run import TRIES
from backends.bench.workload import Prompts
from backends.profile import load_profile
from backends.simulator.calibration import SimulatedPool
from backends.simulator.fleet import simulate_closed_loop
from backends.simulator.requests import SimulatedRequest
from tests.support.gateway_process import environment
from tests.support.own_process import run_here
from tests.vllm.conftest import REPOSITORY, RunningFleet

pytestmark = pytest.mark.vllm

FACTOR = 4.0
"""Machines that run tests do other things meanwhile; how near it is when they do not is measured by
tests/load/simulator_error.py."""


def test_a_pool_is_benched_and_its_simulator_comes_near(fleet: RunningFleet, tmp_path: Path) -> None:
    url = fleet.urls["speculative"]
    before = asyncio.run(read_counters(url))
    settings = environment(
        tmp_path,
        {
            "TOLLGATE_POOLS": str(REPOSITORY / "backends" / "pools"),
            "TOLLGATE_STATE_DIR": str(fleet.state_dir),
        },
    )
    arguments = ("bench", "speculative", "--quick", "--out", "found", "--json")
    done = run_here(settings, tmp_path, "pools", *arguments)
    assert done.returncode == 0, done.stderr
    after, held_out = asyncio.run(held_out_load(url))

    profile = load_profile(tmp_path / json.loads(done.stdout)["profile"])
    assert profile.provenance.vllm_version == httpx.get(f"{url}/version", trust_env=False).json()["version"]
    assert profile.provenance.conditions["server"] == "replica speculative-0 of the running fleet"
    assert "foreign_cpu_ratio_mean" in profile.provenance.conditions
    assert profile.engine.kv_cache_tokens == after.kv_cache_tokens

    # The command compares answers and counters of each cell, and fails where they differ. Together they
    # are the warm-up (16 answers of 24 tokens), what the grid says, and what was disturbed and done again.
    generated = sum(point.output_tokens * point.requests for point in profile.grid) + 16 * 24
    counted = (after - before).values["generation_tokens"]
    assert generated * 0.999 <= counted <= generated * TRIES

    accepted = {one.task: one for one in profile.acceptance}
    assert accepted["extraction"].tokens_per_step > accepted["creative"].tokens_per_step > 1.5
    assert 0 < profile.step_time.fixed_s < 1

    requests = [
        SimulatedRequest(0.0, one.input_tokens, one.output_tokens, one.prompt.task)
        for one in held_out.samples
    ]
    model = simulate_closed_loop(requests, SimulatedPool.of(profile), concurrency=5)
    real_per_s = sum(one.output_tokens for one in held_out.samples) / held_out.duration_s
    assert 1 / FACTOR < model.output_tokens_per_s / real_per_s < FACTOR


async def held_out_load(url: str) -> tuple[Counters, LoadResult]:
    """The counters right after the bench, and a load whose concurrency and length it did not try."""
    counted = await read_counters(url)
    prompts, client = Prompts(99), Client(url, "tollgate-reference")
    items = [
        prompts.take(task, input_tokens=60, output_tokens_max=48, is_output_fixed=False)
        for _ in range(10)
        for task in ("creative", "extraction")
    ]
    try:
        return counted, await closed_loop(client, items, concurrency=5)
    finally:
        await client.aclose()
