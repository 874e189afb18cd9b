"""Coverage floors fail where they should."""

from typing import Any

import pytest

from scripts.coverage_floors import percentage, shortfalls


def report(**files: tuple[int, int, int, int]) -> dict[str, Any]:
    """A report of files given as covered and all lines, covered and all branches; `__` stands for `/`."""
    entries = {}
    for name, (lines, all_lines, branches, all_branches) in files.items():
        entries[name.replace("__", "/") + ".py"] = {
            "summary": {
                "covered_lines": lines,
                "num_statements": all_lines,
                "missing_lines": all_lines - lines,
                "covered_branches": branches,
                "num_branches": all_branches,
                "missing_branches": all_branches - branches,
            }
        }
    keys = ("covered_lines", "num_statements", "covered_branches", "num_branches")
    totals = {key: sum(entry["summary"][key] for entry in entries.values()) for key in keys}
    return {"files": entries, "totals": totals}


def test_good_coverage_passes() -> None:
    assert (
        shortfalls(
            report(gateway__app=(95, 100, 9, 10), gateway__protocols__sse=(5, 5, 2, 2)), total_floor=90
        )
        == []
    )


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"gateway__app": (900, 900, 0, 0), "gateway__weak": (6, 10, 0, 0)},
            ["file gateway/weak.py: 60.0 %, floor 70 %"],
        ),
        (
            {"gateway__app": (900, 900, 0, 0), "backends__launch__ray": (8, 10, 0, 0)},
            ["package backends/launch: 80.0 %, floor 85 %"],
        ),
        ({"gateway__app": (88, 100, 0, 0)}, ["all: 88.0 %, floor 90 %"]),
        (
            {"gateway__protocols__sse": (100, 100, 9, 10)},
            ["file gateway/protocols/sse.py: 1 lines or branches not covered, and here all have to be"],
        ),
        (
            {"gateway__pricing__rates": (99, 100, 10, 10)},
            ["file gateway/pricing/rates.py: 1 lines or branches not covered, and here all have to be"],
        ),
    ],
)
def test_what_is_too_low_is_named(files: dict[str, tuple[int, int, int, int]], expected: list[str]) -> None:
    assert shortfalls(report(**files), total_floor=90) == expected


def test_nothing_to_cover_is_covered() -> None:
    assert percentage(0, 0) == 100.0
