"""Do the measuring programs tell the truth, and does Tollgate keep its books under their load?

Nothing here looks at how fast anything was: `make proof` does.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.load import programs
from tests.load.peer_chart import draw
from tests.load.peer_report import gates, problems, report, rounds_of
from tests.load.phases import Plan, Round, check_books
from tests.load.processor import CpuGroup, tree_cpu_s
from tests.load.programs import BuildFailed, ProgramMissing, build, find_program
from tests.load.running import Running, TargetFailed, choose_cores
from tests.load.targets import FLOOR, OURS, Place, Target, peers
from tests.load.tollgate_site import tollgate_site
from tests.load.traffic import (
    SIZES,
    TICKET,
    Asked,
    Load,
    Traffic,
    Upstream,
    body_of,
    failures_of,
    write_bodies,
)

CHUNKS = 8
SHORT_STREAM = Load("stream", 0.1, connections=4, chunks=CHUNKS)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    with Upstream(tmp_path_factory.mktemp("upstream")) as running:
        yield running


@pytest.fixture
def traffic(upstream: Upstream, tmp_path: Path) -> Iterator[Traffic]:
    yield Traffic(tmp_path)
    upstream.configure()


def drive(traffic: Traffic, upstream: Upstream, load: Load) -> dict[str, Any]:
    bodies = write_bodies(traffic.folder, "bench-model", is_stream=load.mode == "stream")
    return traffic.drive(Asked(port=upstream.ports[0]), load, bodies)


# ------------------------------------------------------------------------------------ the measuring programs
@pytest.mark.parametrize("is_stream", [False, True])
def test_bodies_are_of_two_sizes_and_all_different(is_stream: bool) -> None:  # noqa: FBT001 - a parameter
    bodies = [body_of(number, "bench-model", is_stream=is_stream, temperature=0) for number in range(64)]
    assert {len(body) for body in bodies} == set(SIZES)
    assert len(set(bodies)) > 32
    assert all(body.count(TICKET) == 1 and json.loads(body)["max_tokens"] for body in bodies)


@pytest.mark.parametrize(
    "load",
    [Load("closed", 0.3), Load("open", 0.5, rate=200), Load("stream", 0.1, connections=8, chunks=CHUNKS)],
    ids=lambda load: load.mode,
)
def test_what_load_sends_is_what_the_upstream_counts(
    traffic: Traffic, upstream: Upstream, load: Load
) -> None:
    upstream.configure(chunks=CHUNKS, gap_us=1000)
    before = upstream.counts()
    result = drive(traffic, upstream, load)
    after = upstream.counts()
    counted = {name: after[name] - before[name] for name in ("chats", "streams", "streams_done", "hung_up")}
    streams = result["sent"] if load.mode == "stream" else 0
    assert counted == {"chats": result["sent"], "streams": streams, "streams_done": streams, "hung_up": 0}
    assert (result["ok"], failures_of(result)) == (result["sent"], {})
    assert result["chunks_ok"] == streams * CHUNKS
    if load.mode == "open":
        assert result["sent"] == load.rate * load.seconds


@pytest.mark.parametrize(
    ("fault", "load", "failure"),
    [
        (1, SHORT_STREAM, "incomplete"),  # hangs up in the middle
        (2, SHORT_STREAM, "incomplete"),  # leaves a chunk out
        (3, SHORT_STREAM, "incomplete"),  # somebody else's answer
        (3, Load("closed", 0.1, connections=4), "incomplete"),
        (4, SHORT_STREAM, "bad_status"),
        (4, Load("closed", 0.1, connections=4), "bad_status"),
        (5, SHORT_STREAM, "incomplete"),  # no usage
    ],
)
def test_load_takes_no_wrong_answer_for_a_right_one(
    traffic: Traffic, upstream: Upstream, fault: int, load: Load, failure: str
) -> None:
    upstream.configure(chunks=CHUNKS, gap_us=1000, fault=fault)
    result = drive(traffic, upstream, load)
    assert result["sent"] > 0
    assert (result["ok"], failures_of(result)) == (0, {failure: result["sent"]})
    assert traffic.failures == {failure: result["sent"]}


def test_an_upstream_that_is_killed_is_not_overlooked(tmp_path: Path) -> None:
    with Upstream(tmp_path) as mine:
        mine.configure(gap_us=20_000)
        killer = threading.Timer(0.5, mine.server.process.kill)
        killer.start()
        result = drive(Traffic(tmp_path), mine, Load("stream", 1.0, connections=4))
        killer.join()
    failed = failures_of(result)
    assert failed["incomplete"] == 4
    assert failed["broken"] == result["sent"] - 4 > 0


def test_latency_counts_from_the_scheduled_instant(traffic: Traffic, upstream: Upstream) -> None:
    upstream.configure(delay_us=20_000)
    result = drive(traffic, upstream, Load("open", 0.25, rate=200, connections=1))
    assert result["ok"] == 50
    # One connection needs a second for them: the last ones, due after a quarter of it, waited for the others.
    assert result["latency_us"]["max"] > 700_000


def test_cpu_is_counted_as_the_process_itself_counts_it() -> None:
    burn = (
        "import subprocess, sys, time\n"
        "if sys.argv[1:]: subprocess.run([sys.executable, '-c', sys.argv[1]])\n"
        "while time.process_time() < 0.4: pass\n"
    )
    group, before_s = CpuGroup("test"), tree_cpu_s(os.getpid())
    command = [sys.executable, "-c", burn, burn]
    with subprocess.Popen(command, preexec_fn=group.enter) as process:  # noqa: PLW1509 - takes no lock
        process.wait()
    by_ticks = tree_cpu_s(os.getpid()) - before_s
    # The child of the child counts, though it has ended; the start of both interpreters is some of it.
    assert 0.8 <= by_ticks < 1.2
    if group.is_exact:
        assert group.cpu_s(process.pid) == pytest.approx(by_ticks, abs=0.1)
    group.close()


def test_a_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(programs.PACKAGES, "no-such-program", "some-package")
    with pytest.raises(ProgramMissing, match="apt-get install some-package"):
        find_program("no-such-program")


def test_a_program_that_does_not_compile_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken.c").write_text("int main(void) { return nothing; }")
    monkeypatch.setattr(programs, "SOURCES", tmp_path)
    monkeypatch.setattr(programs, "BUILD", tmp_path)
    with pytest.raises(BuildFailed, match="nothing"):
        build("broken")


def test_a_gateway_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    target = Target("broken", "Broken", ("sh", "-c", "echo no configuration; exit 3"), 1)
    with pytest.raises(TargetFailed, match="status 3: no configuration"):
        Running(target, choose_cores().gateway, tmp_path / "log", b"{}")


def test_peers_that_are_not_installed_are_listed_with_their_command(tmp_path: Path) -> None:
    found, missing = peers(Place(tmp_path / "peers", tmp_path, ("http://127.0.0.1:1",) * 4))
    assert found == []
    assert missing["vllm-router"] == "tests/load/peers.sh vllm-router"


# -------------------------------------------------------------------------------------------------- Tollgate
def test_tollgate_answers_and_books_every_request(upstream: Upstream, tmp_path: Path) -> None:
    traffic = Traffic(tmp_path)
    said: list[str] = []
    upstream.configure(gap_us=2_000)
    plan = Plan(idle=0, warm_up=0.2, plain=1, most=0.2, single=0.2, paced=0.2, streams=0.2, many_streams=0.1)
    with tollgate_site(Place(tmp_path, tmp_path, tuple(upstream.urls))) as site:
        body = write_bodies(tmp_path, site.target.model).read_bytes().splitlines()[0]
        before = upstream.counts()
        with Running(site.target, choose_cores().gateway, tmp_path / "log", body) as running:
            work = Round(running, upstream=upstream, traffic=traffic, site=site, say=said.append)
            found = work.measure(plan)
            books = check_books(site, work, traffic)
        after = upstream.counts()
    assert traffic.failures == {}
    assert books["problems"] == []
    assert books["attempts"] == books["answered"] == books["sent"] == traffic.sent + 1
    assert books["charge_usd_nanos"] > 0
    # The request that showed that it is up, and those that went straight to the upstream to compare with.
    direct = after["chats"] - before["chats"] - books["sent"]
    assert direct == found["single"]["direct_sent"]
    assert (found["plain"]["cache"], found["uncached"]["cache"]) == (
        {"miss": found["plain"]["ok"]},
        {"bypass": found["uncached"]["ok"]},
    )
    assert min(after["chats_by_port"]) > 0
    assert {"PostgreSQL", "Redis", "upstream", "load"} == set(found["plain"]["apart_us"])
    assert said[0] == "idle"


# -------------------------------------------------------------------------------------------------- the table
def phase(cpu_us: float) -> dict[str, Any]:
    return {
        "cpu_us": cpu_us,
        "cpu_us_until_drained": 0.5,
        "utilisation": 0.99,
        "per_second": 1e6 / cpu_us,
        "cache": {"miss": 1},
        "drain_s": 0.1,
        "latency_us": {"p50": 200},
        "first_chunk_us": {"p50": 500},
        "direct_p50_us": 10,
        "apart_us": {"load": 4.0},
        "foreign_cores": 0.0,
        "stolen_cores": 0.0,
    }


def measured_round(target: str, number: int, request_us: float, chunk_us: float) -> dict[str, Any]:
    phases = {name: phase(request_us) for name in ("plain", "signals", "uncached", "most", "single", "paced")}
    phases |= {name: phase(chunk_us) for name in ("streams32", "streams200")}
    return {
        "kind": "round",
        "target": target,
        "title": target,
        "note": "",
        "round": number,
        "calibration_ms": 60.0,
        "cpu_is_exact": True,
        "idle_cores": 0.01,
        "memory_mb": 100.0,
        "start_s": 1.0,
        "answered": 1000,
        "failures": {},
        "example": "",
        **phases,
    }


def records(request_us: float, chunk_us: float) -> list[dict[str, Any]]:
    machine = {"cpu": "some", "cores": 2, "memory_gib": 8.0, "load_average": [0.1, 0.1, 0.1]}
    run = {
        "kind": "run",
        "command": "python",
        "commit": "abc",
        "date": "2026-11-28",
        "python": "3.11.7",
        "hardware": machine,
        "setting": "here",
        "missing": {"litellm": "tests/load/peers.sh litellm"},
    }
    rounds = [
        one
        for number in (1, 2, 3)
        for one in (
            measured_round(FLOOR, number, 10.0, 20.0),
            measured_round(OURS, number, request_us, chunk_us),
        )
    ]
    return [run, *rounds]


def test_the_gate_is_a_ratio_to_nginx() -> None:
    met = gates(records(70.0, 40.0))
    assert [(gate.ratio, gate.is_met) for gate in met] == [(7.0, True), (2.0, True)]
    assert [gate.is_met for gate in gates(records(71.0, 41.0))] == [False, False]
    assert gates([one for one in records(1, 1) if one.get("target") != FLOOR]) == []


def test_the_dearer_way_to_know_the_task_is_judged() -> None:
    dear = records(50.0, 20.0)
    for one in dear[1:]:
        one["signals"] = phase(80.0)
    assert [gate.is_met for gate in gates(dear)] == [False, True]


def test_a_round_on_another_machine_as_it_were_does_not_count() -> None:
    found = records(70.0, 40.0)
    found[2] |= {"calibration_ms": 90.0, "plain": phase(900.0), "signals": phase(900.0)}
    assert [one["round"] for one in rounds_of(OURS, found[1:])] == [2, 3]
    assert gates(found)[0].ratio == 7.0
    assert "*off*" in report(found)


def test_the_report_has_ratios_gate_and_what_is_missing() -> None:
    text = report(records(70.0, 40.0))
    assert "| *Tollgate ÷ nginx* | 7.00 | 2.00 |" in text
    assert "| *gate* | ≤ 7 | ≤ 2 |" in text
    assert "Gate, CPU per request: 7.00 times nginx, at most 7: **met**" in text
    assert "litellm: not installed; `tests/load/peers.sh litellm`" in text
    assert "Wrong" not in text


def test_a_busy_machine_and_a_peer_that_cannot_keep_up_are_told() -> None:
    found = records(70.0, 40.0)
    assert "Others used" not in report(found)
    slow = measured_round("litellm", 1, 6000.0, 700.0)
    slow["plain"]["foreign_cores"] = 1.25
    slow["streams200"] = None
    text = report([*found, slow])
    assert "Others used up to 1.25 cores meanwhile" in text
    assert "| litellm | 6,000.0 | - | 700.0 |" in text


def test_what_failed_is_told() -> None:
    found = copy.deepcopy(records(70.0, 40.0))
    found[1] |= {"failures": {"incomplete": 3}, "example": "chunks: 4"}
    found[2]["books"] = {
        "problems": ["1 request is not booked"],
        "attempts": 999,
        "audit_is_green": True,
    }
    found.append(
        {"kind": "round", "target": "litellm", "title": "litellm 1", "round": 1, "error": "no answer"}
    )
    assert problems(found) == [
        "nginx, round 1: 3 incomplete; for example: chunks: 4",
        "tollgate, round 1: 1 request is not booked",
        "litellm 1, round 1: no answer",
    ]
    assert "## Wrong" in report(found)


def test_the_chart_has_a_bar_for_each() -> None:
    chart = draw(records(70.0, 40.0))
    assert chart is not None
    assert chart.count("<rect") == 1 + 2 * 2
    assert chart == draw(records(70.0, 40.0))
    assert draw([]) is None
