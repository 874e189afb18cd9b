"""Which tests of a run failed, and with what? A plugin: `-p tests.support.failed_tests --failures FILE`.

What scripts/run_tests.py asks to decide about a second try. pytest's own output is for people, its JUnit file
has no node ids and its cache is shared by runs beside each other. Under pytest-xdist the controller writes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the place of the list."""
    parser.addoption("--failures", metavar="FILE", help="where to write what failed, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    """Listen, where all reports arrive."""
    path = config.getoption("--failures")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Recorder(Path(path).absolute()))  # tests change the folder


class _Recorder:
    """Keeps the first failure of each test, and whether anything could not be collected."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tests: dict[str, dict[str, str]] = {}
        self._uncollected: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            reason = {"when": str(report.when), "reason": _reason(report)}
            self._tests.setdefault(report.nodeid, reason)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._uncollected.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        tests = [{"test": test, **reason} for test, reason in self._tests.items()]
        self._path.write_text(json.dumps({"tests": tests, "uncollected": self._uncollected}))


def _reason(report: pytest.TestReport) -> str:
    """What failed, in a line: the message's first line, and where."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is None:  # a worker of pytest-xdist that died, or a test that should have failed
        return str(report.longrepr).strip().splitlines()[-1] if report.longrepr else "no reason given"
    path, line, message = crash.path, crash.lineno, crash.message
    return f"{message.splitlines()[0] if message else 'no message'} ({Path(path).name}:{line})"
