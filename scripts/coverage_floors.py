"""Is every file, package and the whole covered as far as we promise?

Floors: file 70 %, package 85 %, all 90 %; all lines and branches of EVERY_BRANCH, where a mistake costs money
or misroutes. Reads the JSON report of coverage.py 7 (`coverage json`). Percentages count lines and branches
together, as coverage's own figures do. A package is a folder of modules, not of their subfolders.

Usage: python scripts/coverage_floors.py REPORT.json [--total 90]
"""
# ruff: noqa: INP001, T201
# INP001: scripts are not a package. T201: reporting is their job.

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

FILE_FLOOR = 70.0
PACKAGE_FLOOR = 85.0
TOTAL_FLOOR = 90.0
EVERY_BRANCH = (
    "gateway/protocols/",
    "gateway/pricing/rates.py",
    "gateway/routing/decide.py",
    "gateway/routing/rules.py",
    "gateway/routing/rule_compile.py",
)


def percentage(covered: int, possible: int) -> float:
    """Covered lines and branches of the possible ones; nothing to cover is fully covered."""
    return 100.0 * covered / possible if possible else 100.0


def measures(summary: dict[str, Any]) -> tuple[int, int]:
    """Covered and possible lines and branches of one file."""
    covered = summary["covered_lines"] + summary.get("covered_branches", 0)
    return covered, summary["num_statements"] + summary.get("num_branches", 0)


def shortfalls(report: dict[str, Any], *, total_floor: float) -> list[str]:
    """What lies below its floor, one line each; empty when all is well."""
    packages: dict[str, list[tuple[int, int]]] = defaultdict(list)
    found = []
    for name, entry in sorted(report["files"].items()):
        summary = entry["summary"]
        covered, possible = measures(summary)
        packages[str(PurePosixPath(name).parent)].append((covered, possible))
        if percentage(covered, possible) < FILE_FLOOR:
            found.append(f"file {name}: {percentage(covered, possible):.1f} %, floor {FILE_FLOOR:.0f} %")
        missing = summary.get("missing_branches", 0) + summary["missing_lines"]
        if name.startswith(EVERY_BRANCH) and missing:
            found.append(f"file {name}: {missing} lines or branches not covered, and here all have to be")
    for name, pairs in sorted(packages.items()):
        reached = percentage(sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs))
        if reached < PACKAGE_FLOOR:
            found.append(f"package {name}: {reached:.1f} %, floor {PACKAGE_FLOOR:.0f} %")
    covered, possible = measures(report["totals"])
    if percentage(covered, possible) < total_floor:
        found.append(f"all: {percentage(covered, possible):.1f} %, floor {total_floor:.0f} %")
    return found


def main() -> int:
    """Compare a report with the floors; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compare a coverage report with the floors.")
    parser.add_argument("report", type=Path)
    parser.add_argument(
        "--total", type=float, default=TOTAL_FLOOR, help="floor for everything together, percent"
    )
    options = parser.parse_args()
    if not options.report.is_file():
        print(f"{options.report} is missing: no coverage was measured")
        return 1
    report = json.loads(options.report.read_text(encoding="utf-8"))
    found = shortfalls(report, total_floor=options.total)
    for line in found:
        print(line)
    if not found:
        print(f"coverage: {percentage(*measures(report['totals'])):.1f} %, every floor is kept")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
