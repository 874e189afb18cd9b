"""The closing lines of several pytest runs become one."""

from pathlib import Path

from scripts.run_tests import Outcome, beside, closing_line, combined, take

PARALLEL = "======= 812 passed, 3 skipped, 1 warning in 210.50s (0:03:30) ======="
SERIAL = "====== 1 failed, 40 passed, 266 deselected in 300.00s (0:05:00) ======"


def test_the_closing_line_is_the_last_that_pytest_wrote() -> None:
    assert closing_line(f"tests/unit ....\n{PARALLEL}\n") == PARALLEL
    assert "cut short" in closing_line("tests/unit ....\nKilled\n")


def test_counts_add_up_and_each_test_counts_where_it_ran() -> None:
    told = combined([PARALLEL, SERIAL], 410.5)
    assert told.strip("= ") == "852 passed, 3 skipped, 1 warnings, 1 failed in 410.50s"


def test_a_run_without_a_closing_line_is_an_error() -> None:
    assert "1 errors" in combined([PARALLEL, "no closing line: pytest was cut short"], 1.0)


def test_what_runs_beside_others_leaves_its_status_and_its_output(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "engine.log"
    say = f"import os, sys; print({SERIAL!r}, os.nice(0)); sys.exit(3)"
    process = beside(["python", "-c", say], log)
    assert process.wait() == 3
    assert log.read_text() == f"{SERIAL} 19\n"


def test_a_group_that_failed_is_a_failure_with_its_closing_line() -> None:
    outcome = Outcome()
    take(outcome, "parallel", (0, PARALLEL))
    take(outcome, "fleet", (1, SERIAL))
    assert outcome.failures == ["fleet tests: pytest ended with status 1"]
    assert outcome.closings == [("parallel", PARALLEL), ("fleet", SERIAL)]
