"""What does FinOps' own validator say of a FOCUS 1.2 file? It runs in an environment of its own.

`python scripts/focus_validator.py install` makes .tollgate/focus-venv (Python 3.12 or newer, focus-validator
2.2.1, pyarrow below 23: with what pip would choose it cannot read a file). `... check FILE` runs it, prints its
totals and the rules that failed, and ends with 1 if one of them is not known to be a mistake of the rule model:
the validator itself always ends with 0. One criterion more for files with reserved GPUs: `--reserved`.
"""

from __future__ import annotations

import argparse
import re
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
    "InvoiceId-C-005": "says that InvoiceId is not null; its condition is empty too, so one of the two fails",
    "CommitmentDiscountStatus-C-004": "its condition is `CommitmentDiscountId IS NULL`, its text says not null",
    "CommitmentDiscountStatus-C-002": "the parent of -C-004",
    "CommitmentDiscountStatus-C-000": "the parent of -C-002",
}
"""Mistakes of the rule model that the package brings, none of the file."""
_TOTALS: Final = re.compile(r"Total:?\s*(\d+).*?Pass(?:ed)?:?\s*(\d+).*?Fail(?:ed)?:?\s*(\d+)", re.S)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the validator said."""

    totals: str
    failed: tuple[str, ...]
    output: str

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
        text = done.stdout + done.stderr
        if not report.exists():
            raise RuntimeError(f"focus-validator ended with {done.returncode} and no report:\n{text[-4000:]}")
        return _read(report, text)
