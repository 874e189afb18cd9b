"""Does `tollgate pools status` say how the pools are doing, and what to do when it cannot?"""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.e2e.site import Site, eventually
from tests.support.gateway_process import environment, json_of
from tests.support.own_process import run_here


def run(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    folder = site.gateway.folder
    return run_here(environment(folder), folder, "pools", "status", "--url", site.url, *arguments)


def test_people_see_load_and_last_errors(site: Site) -> None:
    site.plain.control(
        gauges={"num_requests_running": 3, "num_requests_waiting": 2, "kv_cache_usage_perc": 0.4}
    )
    eventually(lambda: "40 %" in run(site, "plain").stdout)
    shown = run(site)
    assert shown.returncode == 0, shown.stderr
    lines = [line.split() for line in shown.stdout.splitlines()]
    (plain,) = (line for line in lines if line[:1] == ["plain-0"])
    assert plain[1] == "ready"
    assert {"3", "2", "40"} <= set(plain)
    assert "speculative  tollgate-reference, driver external: 1 of 1 ready" in shown.stdout
    assert "speculative" not in run(site, "plain").stdout


def test_machines_see_the_last_minute(site: Site) -> None:
    body = {"model": "tollgate-reference-speculative", "messages": [{"role": "user", "content": "Hm"}]}

    def acceptance() -> object:
        assert site.post(body, headers={"cache-control": "no-cache"}).status_code == 200
        (found,) = json_of(run(site, "speculative", "--json"))["data"]
        recent = found["replicas"][0]["recent"]
        return recent and recent["acceptance_length"]

    eventually(lambda: acceptance() is not None)


def test_a_pool_that_cannot_serve_is_status_1_and_tells_why(site: Site) -> None:
    site.plain.fault("unhealthy")
    eventually(lambda: run(site, "plain").returncode == 1)
    shown = run(site, "plain").stdout
    assert "plain-0: /health: status 503" in shown
    site.plain.clear()
    site.until_up()
    # It is well again, and what happened is still told.
    found = json.loads(run(site, "plain", "--json").stdout)
    assert "/health: status 503" in found["data"][0]["replicas"][0]["errors"][-1]["text"]


def test_what_is_wrong_is_said_with_what_to_do(site: Site, tmp_path: Path) -> None:
    assert run(site, "nope").stderr == "tollgate: no pool 'nope'; there are: plain, speculative\n"
    folder = site.gateway.folder
    nobody = run_here(environment(folder), folder, "pools", "status", "--url", "http://127.0.0.1:9")
    assert nobody.returncode == 2
    assert "no gateway answers at http://127.0.0.1:9" in nobody.stderr
    assert "start one with `tollgate up` or `tollgate serve`" in nobody.stderr
    keyless = run_here(environment(tmp_path), tmp_path, "pools", "status", "--url", site.url)
    assert (keyless.returncode, "no administrator's key" in keyless.stderr) == (2, True)
    other = environment(folder, {"TOLLGATE_ADMIN_KEY": "tga-" + "x" * 40})
    refused = run_here(other, folder, "pools", "status", "--url", site.url)
    assert (refused.returncode, "set TOLLGATE_ADMIN_KEY" in refused.stderr) == (2, True)
    engine = run_here(environment(folder), folder, "pools", "status", "--url", site.plain.url)
    assert (engine.returncode, "is no Tollgate gateway" in engine.stderr) == (2, True)


def test_watching_goes_on_until_ctrl_c(site: Site) -> None:
    folder = site.gateway.folder
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from gateway.cli import main; main()"]
    program = subprocess.Popen(
        [*command, "pools", "status", "--watch", "--url", site.url],
        cwd=folder,
        env={**environment(folder), "TERM": "xterm", "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        seen = b""
        deadline_s = time.monotonic() + 60
        while seen.count(b"plain-0") < 2:
            assert time.monotonic() < deadline_s
            seen += os.read(ours, 65536)
        program.send_signal(signal.SIGINT)
        assert program.wait(timeout=30) == 0
    finally:
        program.kill()
        os.close(ours)
