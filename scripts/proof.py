"""What `make proof` runs: the long and measured work, whose results land in tests/load/results.

A part that fails does not keep the others from running. Figures are worth what the machine is: each result
names it, and how busy it was.

A missed gate is a failure too: `peers` compares Tollgate with nginx, and with the gateways that
tests/load/peers.sh has installed.

Usage: python scripts/proof.py [--only PART]
"""
# ruff: noqa: INP001, T201, S603
# INP001: scripts are not a package. T201: reporting is their job. S603: the commands are the ones below.

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATABASE_AWAY = "tests/e2e/faults/test_database_away.py"
PARTS = {
    "peers": ["tests.load.peer_table"],
    "ledger": ["tests.load.bench_ledger"],
    "replicas": ["tests.load.replica_choice"],
    "simulator": ["tests.load.simulator_error"],
    "publishing": ["tests.load.publishing", "--versions", "200"],
    "fleet": ["tests.load.fleet_simulation"],
    "routing": ["tests.load.task_routing"],
    "backtest": ["tests.load.backtest_truth"],
    "backtest-vllm": ["tests.load.backtest_vllm"],
    "canary": ["tests.load.canary_guard"],
    "scale": ["tests.load.bench_scale", "--rows", "10000000"],
    "year": ["tests.load.year", "--rows", "10000000"],
    "year-sqlite": ["tests.load.year", "--rows", "1000000", "--database", "sqlite"],
    "console": ["tests.load.console_pages", "--rows", "10000000"],
    "exports": ["tests.load.bench_exports", "--rows", "1000000"],
    "killed": ["tests.load.killed_replicas", "--seconds", "70", "--every", "10"],
    "streams": ["tests.load.streams_soak", "--streams", "1000", "--seconds", "60"],
    "soak": ["tests.load.soak", "--seconds", "600"],
    "outage": ["pytest", "-q", "-s", f"{DATABASE_AWAY}::test_requests_go_on_while_the_database_is_away"],
}
LONGER = {"OUTAGE_S": "60"}
"""What makes tests of `make test` longer here."""


def main() -> int:
    """Run what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(description="Run Tollgate's long and measured work.")
    parser.add_argument("--only", choices=sorted(PARTS), help="one part")
    only = parser.parse_args().only
    failed = []
    for name, (module, *arguments) in PARTS.items():
        if only in {None, name}:
            print(
                f"\n{name}: {' '.join([module, *arguments])} (load now: {os.getloadavg()[0]:.1f})", flush=True
            )
            command = [sys.executable, "-m", module, *arguments]
            environment = {**os.environ, **LONGER}  # noqa: TID251 - the parts need PATH and HOME
            if subprocess.run(command, cwd=ROOT, check=False, env=environment).returncode != 0:
                failed.append(name)
    for name in failed:
        print(f"FAILED: {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
