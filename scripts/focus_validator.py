"""What does FinOps' own validator say of a FOCUS 1.2 file? It runs in an environment of its own.

`python scripts/focus_validator.py install` makes .tollgate/focus-venv (Python 3.12 or newer, focus-validator
2.2.1, pyarrow below 23: with what pip would choose it cannot read a file). `... check FILE` runs it, prints
its totals and the rules that failed, and ends with 1 if one of them is not known to be a mistake of the rule
model: the validator itself always ends with 0. Files with reserved GPUs have a criterion more: `--reserved`.
"""

# ruff: noqa: INP001, S603
from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

ENVIRONMENT: Final = Path(".tollgate") / "focus-venv"
PACKAGES: Final = ("focus-validator==2.2.1", "pyarrow<23")
PYTHONS: Final = ("python3.13", "python3.12")
CRITERIA: Final = (
    "ACCOUNT_NAMING_SUPPORTED",
    "MULTIPLE_BILLING_ACCOUNT_TYPES_SUPPORTED",
    "MULTIPLE_SUB_ACCOUNT_TYPES_SUPPORTED",
    "NEGOTIATED_PRICING_SUPPORTED",
    "PUBLIC_PRICE_LIST_SUPPORTED",
    "USAGE_MEASUREMENT_SUPPORTED",
    "UNIT_PRICING_SUPPORTED",
    "SUB_ACCOUNT_SUPPORTED",
    "BILLING_BASED_ON_PROVISIONED_RESOURCES_SUPPORTED",
    "RESOURCE_TYPE_ASSIGNMENT_SUPPORTED",
    "REGION_SUPPORTED",
    "TAGGING_SUPPORTED",
    "MULTIPLE_PRICING_CATEGORIES_SUPPORTED",
)
RESERVED: Final = "COMMITMENT_DISCOUNT_SUPPORTED"
WRONG_RULES: Final = {
    "InvoiceId-C-004": "says that InvoiceId is null; its condition in model-1.2.0.1.json is empty",
    "InvoiceId-C-005": "says that it is not null; its condition is empty too, so one of the two always fails",
    "CommitmentDiscountStatus-C-004": "its condition is `CommitmentDiscountId IS NULL`, its text: not null",
    "CommitmentDiscountStatus-C-002": "the parent of -C-004",
    "CommitmentDiscountStatus-C-000": "the parent of -C-002",
}
"""Mistakes of the rule model that the package brings, none of the file."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the validator said."""

    total: int
    failures: int
    skipped: int
    failed: tuple[str, ...]
    """Ids of the rules that failed."""

    @property
    def surprises(self) -> tuple[str, ...]:
        """Rules that failed and are not known to be wrong."""
        return tuple(rule for rule in self.failed if rule not in WRONG_RULES)


def install(python: str | None = None) -> int:
    """Make the environment; returns the exit status."""
    found = python or next((path for name in PYTHONS if (path := shutil.which(name))), None)
    if found is None:
        sys.stderr.write(f"No {' or '.join(PYTHONS)} on PATH: name one with --python.\n")
        return 2
    subprocess.run([found, "-m", "venv", ENVIRONMENT], check=True)
    subprocess.run([ENVIRONMENT / "bin/pip", "install", "--quiet", *PACKAGES], check=True)
    return 0


def check(file: Path, *, is_reserved: bool = False, environment: Path = ENVIRONMENT) -> Verdict:
    """Run it over a file.

    Raises:
        RuntimeError: it did not come to an end; says what it printed.
    """
    home = environment.resolve()
    folder = next(home.glob("lib/python3*/site-packages"))
    criteria = (*CRITERIA, RESERVED) if is_reserved else CRITERIA
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        done = subprocess.run(
            [
                home / "bin/focus-validator",
                *("--data-file", file.resolve(), "--validate-version", "1.2"),
                *("--focus-dataset", "CostAndUsage", "--block-download"),
                *("--applicability-criteria", ",".join(criteria), "--show-violations"),
                *("--output-type", "unittest", "--output-destination", report),
            ],
            cwd=folder,  # it reads a list of currencies by a relative path
            capture_output=True,
            text=True,
            check=False,
        )
        if not report.exists():
            said = (done.stdout + done.stderr)[-4000:]
            raise RuntimeError(f"focus-validator ended with {done.returncode} and no report:\n{said}")
        return _read(report)


def _read(report: Path) -> Verdict:
    root = ET.parse(report).getroot()  # noqa: S314 - written by the program that was started just now
    failed = [
        suite.get("name", "")
        for suite in root.iter("testsuite")
        if suite.find("testcase/failure") is not None or suite.find("testcase/error") is not None
    ]
    total, failures, skipped = (int(root.get(name, 0)) for name in ("tests", "failures", "skipped"))
    ids = tuple(sorted("-".join(name.split("-")[:3]) for name in failed))
    return Verdict(total, failures, skipped, ids)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 1 if a rule failed that is not known to be wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("install", help="make .tollgate/focus-venv")
    making.add_argument("--python", help="Python 3.12 or newer; left out: what is on PATH")
    checking = commands.add_parser("check", help="validate a file of FOCUS 1.2, CSV or Parquet")
    checking.add_argument("file", type=Path)
    checking.add_argument("--reserved", action="store_true", help="it has reserved GPUs")
    asked = parser.parse_args(arguments)
    if asked.command == "install":
        return install(asked.python)
    if not ENVIRONMENT.is_dir():
        sys.stderr.write("There is no validator here: python scripts/focus_validator.py install\n")
        return 2
    verdict = check(asked.file, is_reserved=asked.reserved)
    passed = verdict.total - verdict.failures - verdict.skipped
    sys.stdout.write(
        f"Total {verdict.total}  Pass {passed}  Fail {verdict.failures}  Skipped {verdict.skipped}\n"
    )
    for rule in verdict.failed:
        sys.stdout.write(f"{rule}: {WRONG_RULES.get(rule, 'NOT KNOWN TO BE WRONG: the file is')}\n")
    return 1 if verdict.surprises or verdict.failures != len(verdict.failed) else 0


if __name__ == "__main__":
    sys.exit(main())
