"""What does the bench do with a server that is wrong, busy or no vLLM, and with one that is right?

Against the mock vLLM, a program: what real vLLM says is asked in tests/vllm.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.bench.counters import Counters, parse_counters, read_counters
from backends.bench.load import BenchError, Client, closed_loop, open_loop
from backends.bench.run import Progress, measure, profile_of, write
from backends.bench.sweep import cells
from backends.bench.target import Target
from backends.bench.workload import Prompt, Prompts
from backends.files import load_pools
from backends.pool import PoolSpec
from backends.profile import load_profile
from tests.support.gateway_process import environment
from tests.support.mock_process import MockVllm
from tests.support.own_process import run_here

ROOT = Path(__file__).resolve().parents[3]
MODEL = "tollgate-reference"


@pytest.fixture
def mock() -> Iterator[MockVllm]:
    with MockVllm(
        "--speculative", "4", "--ttft-ms", "2", "--tpot-ms", "0.2", "--max-model-len", "4096"
    ) as one:
        yield one


@pytest.fixture
def spec() -> PoolSpec:
    return load_pools(ROOT / "backends" / "pools")["speculative"]


def prompts(count: int, *, output: int = 5) -> list[Prompt]:
    supply = Prompts(3)
    return [
        supply.take("creative", input_tokens=80, output_tokens_max=output, is_output_fixed=True)
        for _ in range(count)
    ]


async def test_a_closed_loop_never_has_more_under_way(mock: MockVllm) -> None:
    client = Client(mock.url, MODEL)
    answered = []
    load = await closed_loop(client, prompts(7), concurrency=3, on_answer=lambda: answered.append(1))
    await client.aclose()
    spans = [(one.start_s, one.end_s) for one in load.samples]
    for start_s, _ in spans:
        assert sum(1 for begin_s, end_s in spans if begin_s <= start_s < end_s) <= 3
    assert len(answered) == 7
    assert {one.output_tokens for one in load.samples} == {5}
    for one in load.samples:
        assert one.tpot_s is not None
        assert 0 < one.ttft_s < load.duration_s
        assert one.draft_steps


async def test_an_open_loop_keeps_to_its_moments(mock: MockVllm) -> None:
    client = Client(mock.url, MODEL)
    moments = [0.0, 0.05, 0.1, 0.3]
    began_s = time.perf_counter()
    load = await open_loop(client, prompts(4, output=1), moments)
    await client.aclose()
    # From the beginning, not from the first: that one may be late on a busy machine, and the others not.
    starts = [one.start_s - began_s for one in load.samples]
    assert all(start >= moment - 0.01 for start, moment in zip(starts, moments, strict=True))
    assert [one.tpot_s for one in load.samples] == [None] * 4


@pytest.mark.parametrize(
    ("fault", "value", "complaint"),
    [
        ("status", 503, "status 503"),
        ("error_mid_stream", 2, "the stream failed"),
        ("die_mid_stream", 2, "peer closed|incomplete|[Rr]ead"),
        ("no_usage", None, "without usage"),
    ],
)
async def test_a_failed_request_fails_the_load(
    mock: MockVllm, fault: str, value: int | None, complaint: str
) -> None:
    mock.fault(fault, value)
    client = Client(mock.url, MODEL)
    for loading in (
        closed_loop(client, prompts(2), concurrency=2),
        open_loop(client, prompts(1), [0.0]),
    ):
        with pytest.raises(BenchError, match=complaint):
            await loading
    await client.aclose()


async def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(BenchError, match=r"127\.0\.0\.1:9/metrics"):
        await read_counters("http://127.0.0.1:9")


async def test_other_peoples_traffic_is_no_bench(mock: MockVllm) -> None:
    mock.control(gauges={"num_requests_running": 2})
    with pytest.raises(BenchError, match="needs the server for itself"):
        await read_counters(mock.url)


@pytest.mark.parametrize("text", ["vllm:num_requests_running 1\n", "<html>", ""])
def test_what_counts_nothing_is_no_vllm(text: str) -> None:
    with pytest.raises(BenchError, match="needs a vLLM server with statistics on"):
        parse_counters(text)


def test_metrics_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(BenchError, match="not Prometheus text"):
        parse_counters('vllm:generation_tokens_total{engine="0" x\n')


def test_counts_add_up_and_subtract_by_position() -> None:
    before = Counters({"drafts": 10, "accepted_tokens": 12}, (8, 4))
    after = Counters({"drafts": 30, "accepted_tokens": 42}, (24, 18))
    assert (after - before).acceptance == (0.8, 0.7)
    assert (after - before).tokens_per_step == 2.5
    total = (after - before) + Counters({"drafts": 20, "accepted_tokens": 0}, ())
    assert total.acceptance == (0.4, 0.35)
    assert Counters({}, ()).tokens_per_step is None


async def profile_from(mock: MockVllm, spec: PoolSpec, folder: Path) -> tuple[Path, Path, list[Progress]]:
    told: list[Progress] = []
    target = Target(mock.url, mock.process.pid, "the mock")
    measured = await measure(spec, target, is_quick=True, seed=5, on_progress=told.append)
    return (*write(profile_of(spec, target, measured, command="a test"), folder), told)


async def test_a_profile_comes_out_with_its_plot(mock: MockVllm, spec: PoolSpec, tmp_path: Path) -> None:
    where, plot, told = await profile_from(mock, spec, tmp_path / "new")
    profile = load_profile(where)
    assert told[-1].done == told[-1].total >= told[0].total  # a cell that was disturbed is measured again
    assert len(profile.grid) == len(cells(spec, is_quick=True))
    assert profile.method == "draft_model"
    assert {one.task for one in profile.acceptance} == {"extraction", "creative"}
    assert profile.provenance.weights.keys() == {"target", "draft"}
    picture = ET.fromstring(plot.read_text())  # noqa: S314 - our own file
    names = [node.text or "" for node in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert any("extraction, short input, whole answers" in name for name in names)


async def test_traffic_during_a_cell_is_found_out(mock: MockVllm, spec: PoolSpec, tmp_path: Path) -> None:
    """Somebody else's tokens in the engine's counters are a complaint, not a figure."""
    client = Client(mock.url, MODEL)

    async def disturb() -> None:
        while True:
            await client.send(prompts(1, output=1)[0])

    async with asyncio.TaskGroup() as group:
        other = group.create_task(disturb())
        with pytest.raises(BenchError, match=r"somebody else uses|needs the server for itself"):
            await profile_from(mock, spec, tmp_path)
        other.cancel()
    await client.aclose()
    assert files_in(tmp_path) == []


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_command_measures_a_server_by_its_address(mock: MockVllm, tmp_path: Path) -> None:
    settings = environment(tmp_path, {"TOLLGATE_POOLS": str(ROOT / "backends" / "pools"), "COLUMNS": "120"})
    arguments = (
        "pools",
        "bench",
        "speculative",
        "--quick",
        "--url",
        mock.url,
        "--out",
        "found",
        "--seed",
        "4",
    )
    shown = run_here(settings, tmp_path, *arguments)
    assert shown.returncode == 0, shown.stderr
    assert "tokens/s" in shown.stdout
    assert "found/speculative.json" in shown.stdout
    assert "found/speculative.svg" in shown.stdout
    profile = load_profile(tmp_path / "found" / "speculative.json")
    assert profile.provenance.command == "tollgate pools bench speculative --quick --seed 4"


def test_an_interrupted_bench_leaves_what_was_there(mock: MockVllm, tmp_path: Path) -> None:
    mock.control(ttft_ms=200)
    settings = environment(tmp_path, {"TOLLGATE_POOLS": str(ROOT / "backends" / "pools")})
    old = tmp_path / "found" / "plain.json"
    old.parent.mkdir()
    old.write_text("the profile of another day")
    program = [sys.executable, "-c", "from gateway.cli import main; main()"]
    bench = subprocess.Popen(
        [*program, "pools", "bench", "plain", "--url", mock.url, "--out", str(old.parent)],
        env=settings,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        mock.wait_for(in_flight=8, timeout_s=60)
        bench.send_signal(signal.SIGINT)
        _, told = bench.communicate(timeout=60)
    finally:
        bench.kill()
    assert bench.returncode == 1
    assert "stopped: nothing was written" in told
    assert files_in(old.parent) == ["plain.json"]
    assert old.read_text() == "the profile of another day"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("nothing",), "there is no pool 'nothing'; the pool files describe plain, speculative"),
        (("plain", "--url", "http://127.0.0.1:9"), "127.0.0.1:9"),
    ],
)
def test_a_wrong_call_is_told(tmp_path: Path, arguments: tuple[str, ...], complaint: str) -> None:
    settings = environment(tmp_path, {"TOLLGATE_POOLS": str(ROOT / "backends" / "pools")})
    failed = run_here(settings, tmp_path, "pools", "bench", *arguments)
    assert failed.returncode == 2
    assert complaint in failed.stderr
    assert not (tmp_path / "state" / "profiles").exists()
