"""What `make test` runs once everything is installed: linters, types, contracts, every test, coverage floors.

A failing check does not keep the tests from running: one run tells all that is wrong. Three turns:

1. Tests that only need processors run three at a time, those that mostly wait first.
2. Those of faults and loads mostly wait, and want the machine at once when they do not: they run one after
   another. What is in no hurry has what they leave, one command after another at a lower priority: checks,
   what loads vLLM's code without its servers, the gateway's unit tests, the ledger's, and what repeats on
   PostgreSQL and Redis that which ran on SQLite (`second_store`), the mock engine's own. Neither those that
   wait nor these last two are measured: a tracer takes as long as the tests, and the floors are kept without.
3. The bundled fleet has the machine for itself.

The last lines are pytest's own closing lines and their sum.

A second chance: when at most SECOND_TRIES_MAX tests of a group fail, exactly those run once more, alone and
with nothing beside them. If all pass, the group has passed, and the closing lines name them aloud, with what
failed at first: each is a bug to mend, of the test or of what it tests. More failures, a test that fails
twice or is skipped at its second try, anything that could not be collected and a pytest that was cut short
are failures.

Usage: python scripts/run_tests.py [--only checks|parallel|serial] [--workers 2] [--total 90]
"""
# ruff: noqa: INP001, T201, S603
# INP001: scripts are not a package. T201: reporting is their job. S603: the commands are the ones below.

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CHECKS = {
    "ruff": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "."],
    "types": ["mypy"],
    "import contracts": ["lint-imports"],
}
MEASURED = ("python", "-m", "coverage", "run")
MEASURED_WITHOUT_GREENLETS = (*MEASURED, "--concurrency=thread")
"""For what never asks a database: to look up the greenlet at every call takes a third of the time."""
UNMEASURED = ("python",)


@dataclass(frozen=True)
class Group:
    """Tests that run together."""

    name: str
    paths: tuple[str, ...]
    """Folders, files and pytest's --ignore."""
    options: tuple[str, ...] = ()
    measured: tuple[str, ...] = MEASURED
    """The program before `-m pytest`."""


TOP_LEVEL = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("test_*.py"))
FAULTS = "tests/e2e/faults"
"""Its tests share one PostgreSQL, Redis and fleet, and what they break heals against the clock."""
UPSTREAM = "tests/unit/gateway/upstream"
"""The unit tests in which seconds pass."""
OTHER_UNITS = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "tests/unit").iterdir()
    if path.is_dir() and path.name not in {"gateway", "__pycache__"}
)
LEDGERS = "tests/integration/ledger"
MOCK = "tests/integration/support"
"""The tests of what tests are made with, none of which is measured."""
TWO_AT_A_TIME = ("-n", "2", "--dist", "worksteal", "-p", "no:cacheprovider")
PARALLEL = Group(
    "parallel",
    # Those that mostly wait come first, so that they wait beside others and not at the end.
    (
        "tests/e2e",
        "tests/integration",
        *OTHER_UNITS,
        UPSTREAM,
        *TOP_LEVEL,
        f"--ignore={FAULTS}",
        f"--ignore={LEDGERS}",
        f"--ignore={MOCK}",
    ),
    ("-m", "not second_store", "--dist", "worksteal"),
)
WAITING = Group("waiting", (FAULTS, "tests/load"), measured=UNMEASURED)
"""What they show runs in programs of their own, and the rest of what they load has tests of its own."""
ENGINE = Group(
    "engine",
    ("tests/vllm",),
    ("-m", "not fleet", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider"),
)
UNIT = Group(
    "unit",
    ("tests/unit/gateway", f"--ignore={UPSTREAM}"),
    TWO_AT_A_TIME,
    measured=MEASURED_WITHOUT_GREENLETS,
)
LEDGER = Group("ledger", (LEDGERS,), ("-m", "not second_store", *TWO_AT_A_TIME))
SECOND_STORE = Group(
    "second store",
    ("tests/integration/gateway", LEDGERS),
    ("-m", "second_store", *TWO_AT_A_TIME),
    measured=UNMEASURED,
)
MOCKS = Group("mock engine", (MOCK,), TWO_AT_A_TIME, measured=UNMEASURED)
FLEET = Group("fleet", ("tests/gpu", "tests/vllm"), ("-m", "fleet or gpu"))
BESIDE_NICENESS = "19"
"""Of what runs beside others: it has what they leave."""
CLOSING = re.compile(r"^=+ (?P<counts>.*?) in [\d.]+s(?: \([\d:]+\))? =+$")
COUNT = re.compile(r"(\d+) ([a-z]+)")
NO_TESTS = 5
"""pytest's exit status when it found none."""
TESTS_FAILED = 1
"""pytest's exit status when all ran and some failed."""
SECOND_TRIES_MAX = 3
"""Of a group: more failures than these are no accident."""


@dataclass(frozen=True)
class Failed:
    """A test that failed; see tests/support/failed_tests.py, which writes it down."""

    test: str
    """pytest's node id."""
    when: str
    """setup, call or teardown; ??? of a worker that died."""
    reason: str


@dataclass(frozen=True)
class Doubt:
    """A group whose failures may be accidents."""

    group: Group
    closing: str
    failure: str
    """What to say if they are not."""
    tests: tuple[Failed, ...]


@dataclass
class Outcome:
    """How the run went."""

    failures: list[str] = field(default_factory=list)
    closings: list[tuple[str, str]] = field(default_factory=list)
    doubts: list[Doubt] = field(default_factory=list)
    second: list[Failed] = field(default_factory=list)
    """What passed only at the second try."""
    corrections: Counter[str] = field(default_factory=Counter)
    """Of the sum, for tests that ran twice."""
    tests_s: float = 0.0
    """What all groups took, beside each other or not."""


def run(command: list[str]) -> int:
    """Run a program of the environment, its output going where ours goes."""
    print(f"\n$ {' '.join(command)}", flush=True)
    return subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, check=False).returncode


def tee(command: list[str]) -> tuple[int, str]:
    """Run a program, pass its output on byte by byte as it comes (progress dots too) and return it."""
    print(f"\n$ {' '.join(command)}", flush=True)
    seen = bytearray()
    with subprocess.Popen([BIN / command[0], *command[1:]], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None  # noqa: S101 - Popen's type cannot say that PIPE gives one
        while chunk := os.read(process.stdout.fileno(), 65536):
            seen += chunk
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
    return process.returncode, seen.decode(errors="replace")


class Beside:
    """Commands that run one after another, leave the machine to others and say later what they said."""

    def __init__(self, commands: Mapping[str, list[str]]) -> None:
        """Start the first; a command's log is `.tollgate/tests-NAME.log`."""
        self._commands = commands
        self._is_stopped = False
        self._running: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()
        self._statuses: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, name="beside")
        self._thread.start()

    def stop(self) -> None:
        """End the one that runs and start none any more."""
        with self._turn:
            self._is_stopped = True
            if self._running is not None:
                self._running.terminate()

    def ended(self) -> dict[str, tuple[int, str]]:
        """Wait for all; exit status and output of each that was started."""
        self._thread.join()
        return {
            name: (status, self._log(name).read_text(errors="replace"))
            for name, status in self._statuses.items()
        }

    def _run(self) -> None:
        for name, command in self._commands.items():
            with self._turn:
                if self._is_stopped:
                    return
                self._running = self._start(name, command)
            self._statuses[name] = self._running.wait()

    def _start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        log = self._log(name)
        log.parent.mkdir(exist_ok=True)
        with log.open("wb") as file:
            return subprocess.Popen(
                ["nice", "-n", BESIDE_NICENESS, BIN / command[0], *command[1:]],  # noqa: S607 - of every system
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    @staticmethod
    def _log(name: str) -> Path:
        return ROOT / ".tollgate" / f"tests-{name.replace(' ', '-')}.log"


def closing_line(output: str) -> str:
    """Pytest's last line, or what stands for it when pytest did not get that far."""
    lines = [line for line in output.splitlines() if CLOSING.match(line)]
    return lines[-1] if lines else "no closing line: pytest was cut short"


def counts_of(closing: str) -> Counter[str]:
    """How many tests passed, failed and so on; an error when pytest did not get that far."""
    match = CLOSING.match(closing)
    if match is None:
        return Counter(errors=1)
    counts: Counter[str] = Counter()
    for number, word in COUNT.findall(match["counts"]):
        if word != "deselected":  # another run's
            counts[{"error": "errors", "warning": "warnings"}.get(word, word)] += int(number)
    return counts


def combined(closings: list[str], seconds: float, corrections: Counter[str] | None = None) -> str:
    """One closing line in pytest's form for several runs, which together took so long."""
    counts: Counter[str] = Counter()
    for line in closings:
        counts.update(counts_of(line))
    counts.update(corrections or {})
    text = ", ".join(f"{number} {word}" for word, number in counts.items() if number) or "no tests ran"
    return f" {text} in {seconds:.2f}s ".center(100, "=")


def existing(paths: Sequence[str]) -> list[str]:
    """The paths that have tests: pytest treats a missing one as a wrong call."""
    return [
        path
        for path in paths
        if path.startswith("-") or (ROOT / path).is_file() or any((ROOT / path).rglob("test_*.py"))
    ]


def failures_file(group: str) -> Path:
    """Where a group's failures are written down."""
    return ROOT / ".tollgate" / f"tests-failed-{group.replace(' ', '-')}.json"


def pytest_on(group: Group, *, tests: Sequence[str] = (), again: bool = False) -> list[str]:
    """The command that runs a group of tests, or these of it once more; what failed before is forgotten."""
    failures = failures_file(f"{group.name} again" if again else group.name)
    failures.parent.mkdir(exist_ok=True)
    failures.unlink(missing_ok=True)
    recorded = ("-p", "tests.support.failed_tests", "--failures", str(failures.relative_to(ROOT)))
    chosen = tests if again else (*group.options, *existing(group.paths))
    return [*group.measured, "-m", "pytest", *recorded, *chosen]


def phase(outcome: Outcome, group: Group, *options: str) -> None:
    """Run one group of tests."""
    take(outcome, group, tee([*pytest_on(group), *options]), failed=failures_file(group.name))


def waiting_and_beside(outcome: Outcome, *, checks: Mapping[str, list[str]]) -> None:
    """What mostly waits, and beside it what is in no hurry; their outputs one after the other."""
    groups = {group.name: group for group in (ENGINE, UNIT, LEDGER, SECOND_STORE, MOCKS)}
    commands = {**checks, **{name: pytest_on(group) for name, group in groups.items()}}
    lane = Beside(commands)
    try:
        phase(outcome, WAITING)
    except BaseException:
        lane.stop()
        raise
    finally:
        ended = lane.ended()
        for name, (_, output) in ended.items():
            print(f"\n$ {' '.join(commands[name])}\n{output}", flush=True)
    for name in commands:
        if name not in ended:
            outcome.failures.append(f"{name}: could not be started")
        elif name in groups:
            take(outcome, groups[name], ended[name], failed=failures_file(name))
        elif ended[name][0] != 0:
            outcome.failures.append(name)


def take(outcome: Outcome, group: Group, ended: tuple[int, str], *, failed: Path) -> None:
    """Remember how a group of tests ended: pytest's exit status and output, and where its failures are."""
    status, output = ended
    closing = closing_line(output)
    outcome.closings.append((group.name, closing))
    if status == 0:
        return
    reason = "found no tests" if status == NO_TESTS else f"ended with status {status}"
    failure = f"{group.name} tests: pytest {reason}"
    tests = accidents(status, failed)
    if tests:
        outcome.doubts.append(Doubt(group, closing, failure, tests))
    else:
        outcome.failures.append(failure)


def accidents(status: int, failed: Path) -> tuple[Failed, ...]:
    """The tests that deserve a second try; empty: none does."""
    if status != TESTS_FAILED or not failed.is_file():
        return ()
    told = json.loads(failed.read_text())
    tests = tuple(Failed(**each) for each in told["tests"])
    return () if told["uncollected"] or len(tests) > SECOND_TRIES_MAX else tests


def second_tries(outcome: Outcome) -> None:
    """Run what failed once more; nothing else runs now."""
    doubts, outcome.doubts = outcome.doubts, []
    for doubt in doubts:
        print(f"\nsecond try of {len(doubt.tests)} of the {doubt.group.name} tests", flush=True)
        command = pytest_on(doubt.group, tests=[each.test for each in doubt.tests], again=True)
        settle(outcome, doubt, tee(command))


def settle(outcome: Outcome, doubt: Doubt, ended: tuple[int, str]) -> None:
    """Remember how a second try ended."""
    status, output = ended
    closing = closing_line(output)
    outcome.closings.append((f"{doubt.group.name} again", closing))
    if status != 0 or counts_of(closing)["passed"] != len(doubt.tests):
        outcome.failures.append(f"{doubt.failure}, and not all passed at the second try")
        return
    outcome.second += doubt.tests
    first = counts_of(doubt.closing)
    # Whose teardown failed had been counted as passed as well.
    passed_twice = sum(each.when == "teardown" for each in doubt.tests)
    outcome.corrections["rerun"] += len(doubt.tests)
    outcome.corrections["failed"] -= first["failed"]
    outcome.corrections["errors"] -= first["errors"]
    outcome.corrections["passed"] -= passed_twice


def coverage(total: float, outcome: Outcome) -> None:
    """Join what all processes measured and compare it with the floors."""
    # No data is a failure of its own, which the next command reports.
    run(["python", "-m", "coverage", "combine", "--quiet"])
    run(["python", "-m", "coverage", "report"])
    report = ROOT / ".tollgate" / "coverage.json"
    report.parent.mkdir(exist_ok=True)
    run(["python", "-m", "coverage", "json", "--quiet", "-o", str(report)])
    if run(["python", "scripts/coverage_floors.py", str(report), "--total", str(total)]) != 0:
        outcome.failures.append("coverage is below its floors")


def last_lines(outcome: Outcome) -> list[str]:
    """What is read first: what failed, what is in doubt, and the counts."""
    lines = [f"FAILED: {failure}" for failure in outcome.failures]
    if outcome.second:
        lines.append("PASSED ONLY AT THE SECOND TRY, each a bug to mend:")
        lines += [f"  {each.test} ({each.when})\n    at first: {each.reason}" for each in outcome.second]
    width = max((len(name) for name, _ in outcome.closings), default=0)
    lines += [f"{name:>{width}}: {line}" for name, line in outcome.closings]
    if outcome.closings:
        lines.append(combined([line for _, line in outcome.closings], outcome.tests_s, outcome.corrections))
    return lines


def main() -> int:
    """Run what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(description="Run Tollgate's checks and tests.")
    parser.add_argument(
        "--only", choices=["checks", "parallel", "serial"], help="one part, without coverage floors"
    )
    parser.add_argument("--workers", default="3", help="processes for the parallel part")
    parser.add_argument(
        "--total", type=float, default=90.0, help="floor for the coverage of everything, percent"
    )
    options = parser.parse_args()
    outcome = Outcome()
    began = time.monotonic()
    if options.only == "checks":
        outcome.failures += [name for name, command in CHECKS.items() if run(command) != 0]
    else:
        run(["python", "-m", "coverage", "erase"])
    tests_began = time.monotonic()
    if options.only in {None, "parallel"}:
        phase(outcome, PARALLEL, "-n", options.workers)
        second_tries(outcome)
    if options.only in {None, "serial"}:
        waiting_and_beside(outcome, checks=CHECKS if options.only is None else {})
        second_tries(outcome)
        phase(outcome, FLEET)
        second_tries(outcome)
    outcome.tests_s = time.monotonic() - tests_began
    if options.only is None:
        coverage(options.total, outcome)
    print(f"\n{time.monotonic() - began:.0f} s in all")
    print("\n".join(last_lines(outcome)))
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        # Ctrl-C reached pytest as well, which has said what it was doing.
        sys.exit(130)
