"""The closing lines of several pytest runs become one, and what failed by accident is tried once more."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.run_tests import (
    ENGINE,
    FLEET,
    LEDGER,
    MOCKS,
    PARALLEL,
    ROOT,
    SECOND_STORE,
    UNIT,
    UNMEASURED,
    WAITING,
    Beside,
    Doubt,
    Failed,
    Group,
    Outcome,
    accidents,
    closing_line,
    combined,
    last_lines,
    pytest_on,
    settle,
    take,
)

FIRST = "======= 812 passed, 3 skipped, 1 warning in 210.50s (0:03:30) ======="
SERIAL = "====== 1 failed, 40 passed, 266 deselected in 300.00s (0:05:00) ======"
SLOW = Failed("tests/test_a.py::test_slow[a - b]", "call", "assert 0 == 1 (test_a.py:9)")
LEFT = Failed("tests/test_a.py::test_left", "teardown", "OSError: busy (test_a.py:3)")


def test_the_closing_line_is_the_last_that_pytest_wrote() -> None:
    assert closing_line(f"tests/unit ....\n{FIRST}\n") == FIRST
    assert "cut short" in closing_line("tests/unit ....\nKilled\n")


def test_counts_add_up_and_each_test_counts_where_it_ran() -> None:
    told = combined([FIRST, SERIAL], 410.5)
    assert told.strip("= ") == "852 passed, 3 skipped, 1 warnings, 1 failed in 410.50s"


def test_a_run_without_a_closing_line_is_an_error() -> None:
    assert "1 errors" in combined([FIRST, "no closing line: pytest was cut short"], 1.0)


@pytest.fixture
def logs() -> Iterator[str]:
    """What the names of the logs of this test begin with."""
    name = f"of-a-test-{os.getpid()}"
    yield name
    for path in (ROOT / ".tollgate").glob(f"tests-{name}*"):
        path.unlink()


def test_what_runs_beside_others_takes_turns_and_leaves_its_status_and_its_output(logs: str) -> None:
    say = f"import os, sys; print({SERIAL!r}, os.nice(0)); sys.exit(3)"
    first = "import time; time.sleep(0.3)"
    one, two = f"{logs} one", f"{logs} two"
    ended = Beside({one: ["python", "-c", first], two: ["python", "-c", say]}).ended()
    assert list(ended) == [one, two]
    assert ended[one][0] == 0
    assert ended[two] == (3, f"{SERIAL} 19\n")


def test_what_runs_beside_others_ends_with_them_and_what_waits_is_not_started(logs: str) -> None:
    one, two = f"{logs} one", f"{logs} two"
    lane = Beside({one: ["python", "-c", "import time; time.sleep(600)"], two: ["python", "-c", "print(1)"]})
    lane.stop()
    ended = lane.ended()
    assert two not in ended
    assert ended.get(one, (-15, ""))[0] == -15


def _takes(group: Group, path: Path) -> bool:
    """Whether a group's paths lead to this file."""
    ignored = [ROOT / each.removeprefix("--ignore=") for each in group.paths if each.startswith("--ignore=")]
    chosen = [ROOT / each for each in group.paths if not each.startswith("-")]
    return any(path.is_relative_to(each) for each in chosen) and not any(
        path.is_relative_to(each) for each in ignored
    )


def test_every_file_of_tests_is_in_one_group_or_shared_out_by_marks() -> None:
    shared = {
        ("parallel", "second store"): (PARALLEL, SECOND_STORE, "second_store", "second_store"),
        ("ledger", "second store"): (LEDGER, SECOND_STORE, "second_store", "second_store"),
        ("engine", "fleet"): (ENGINE, FLEET, "fleet", "fleet or gpu"),
    }
    groups = (PARALLEL, WAITING, ENGINE, UNIT, LEDGER, SECOND_STORE, MOCKS, FLEET)
    for path in (ROOT / "tests").rglob("test_*.py"):
        taken = tuple(group.name for group in groups if _takes(group, path))
        assert len(taken) == 1 or taken in shared, path
        if len(taken) == 1:
            assert taken[0] in {"parallel", "waiting", "unit", "mock engine", "fleet"}, path
    for one, other, mark, its in shared.values():
        assert one.options[:2] == ("-m", f"not {mark}")
        assert other.options[:2] == ("-m", its)


def test_a_group_that_failed_is_a_failure_with_its_closing_line(tmp_path: Path) -> None:
    outcome = Outcome()
    take(outcome, PARALLEL, (0, FIRST), failed=tmp_path / "none")
    take(outcome, FLEET, (1, SERIAL), failed=tmp_path / "none")
    assert outcome.failures == ["fleet tests: pytest ended with status 1"]
    assert outcome.closings == [("parallel", FIRST), ("fleet", SERIAL)]


def _written(path: Path, *tests: Failed, uncollected: list[str] | None = None) -> Path:
    told = {"tests": [vars(each) for each in tests], "uncollected": uncollected or []}
    path.write_text(json.dumps(told))
    return path


def test_few_failures_deserve_a_second_try_and_many_or_other_ends_do_not(tmp_path: Path) -> None:
    few = _written(tmp_path / "few", SLOW, LEFT, SLOW)
    assert accidents(1, few) == (SLOW, LEFT, SLOW)
    assert accidents(2, few) == (), "interrupted"
    assert accidents(1, tmp_path / "none") == (), "cut short"
    assert accidents(1, _written(tmp_path / "many", *[SLOW] * 4)) == ()
    assert accidents(1, _written(tmp_path / "uncollected", SLOW, uncollected=["tests/test_b.py"])) == ()


def _doubtful(folder: Path, *tests: Failed, closing: str) -> tuple[Outcome, Doubt]:
    outcome = Outcome()
    take(outcome, PARALLEL, (1, closing), failed=_written(folder / "failed", *tests))
    assert outcome.failures == []
    return outcome, outcome.doubts.pop()


def test_what_passes_at_the_second_try_passes_aloud(tmp_path: Path) -> None:
    first = "====== 1 failed, 40 passed, 1 error in 300.00s (0:05:00) ======"  # LEFT passed, then it failed
    outcome, doubt = _doubtful(tmp_path, SLOW, LEFT, closing=first)
    settle(outcome, doubt, (0, "====== 2 passed in 3.00s ======"))
    assert outcome.failures == []
    lines = last_lines(outcome)
    assert lines[0] == "PASSED ONLY AT THE SECOND TRY, each a bug to mend:"
    told = "\n".join(lines)
    for each in (SLOW, LEFT):
        assert f"  {each.test} ({each.when})\n    at first: {each.reason}" in told
    assert first in told, "as it was"
    assert lines[-1].strip("= ") == "41 passed, 2 rerun in 0.00s"


@pytest.mark.parametrize(
    "second",
    [
        (1, "====== 1 failed, 1 passed in 3.00s ======"),
        (0, "====== 1 passed, 1 skipped in 3.00s ======"),
        (2, "Interrupted"),
    ],
)
def test_what_does_not_pass_at_the_second_try_is_a_failure(tmp_path: Path, second: tuple[int, str]) -> None:
    closing = "====== 2 failed, 40 passed in 300.00s (0:05:00) ======"
    outcome, doubt = _doubtful(tmp_path, SLOW, LEFT, closing=closing)
    settle(outcome, doubt, second)
    told = last_lines(outcome)
    assert told[0] == (
        "FAILED: parallel tests: pytest ended with status 1, and not all passed at the second try"
    )
    assert not any("SECOND TRY" in line for line in told)


SUITE = """
import pytest

@pytest.fixture
def left():
    yield
    raise OSError("busy")

@pytest.mark.parametrize("text", ["a - b"])
def test_slow(text):
    assert text == "", "too late"

def test_left(left):
    pass

def test_sound():
    pass
"""


def test_a_group_writes_down_what_failed_for_the_second_try(tmp_path: Path) -> None:
    (tmp_path / "test_made.py").write_text(SUITE)
    (tmp_path / "test_broken.py").write_text("import nothing_of_this_name")
    failed = tmp_path / "failed.json"
    plugin = ["-p", "tests.support.failed_tests", "--failures", str(failed), "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *plugin, "--rootdir", str(tmp_path)]
    here = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    several = [*command, "-p", "xdist", "-n", "1", str(tmp_path / "test_made.py")]
    made = subprocess.run(several, cwd=tmp_path, env=here, check=False)
    left, slow = sorted(accidents(made.returncode, failed), key=lambda each: each.test)
    assert slow == Failed(
        "test_made.py::test_slow[a - b]", "call", "AssertionError: too late (test_made.py:11)"
    )
    assert (left.test, left.when) == ("test_made.py::test_left", "teardown")
    broken = subprocess.run([*command, str(tmp_path)], cwd=tmp_path, env=here, check=False)
    assert accidents(broken.returncode, failed) == ()
    assert json.loads(failed.read_text())["uncollected"] == ["test_broken.py"]


def test_the_command_of_a_group_forgets_what_failed_before() -> None:
    failed = ROOT / ".tollgate" / "tests-failed-a-test-again.json"
    failed.parent.mkdir(exist_ok=True)
    failed.write_text("{}")
    made = Group("a test", ("tests/unit/scripts",), ("-n", "2"), measured=UNMEASURED)
    command = pytest_on(made, tests=[SLOW.test], again=True)
    assert not failed.exists()
    assert command[:3] == ["python", "-m", "pytest"]
    assert command[-1] == SLOW.test
    assert "-n" not in command, "alone"
    assert pytest_on(made)[-3:] == ["-n", "2", "tests/unit/scripts"]
