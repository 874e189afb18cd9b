"""Do the golden cases of a policy still come out as they are written?

A file names a policy and cases: facts in, and of what comes out whatever the case cares for. Each is asked of
the live `decide` with a fleet as its case imagines it. What a case does not expect it does not look at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from pydantic import Field, ValidationError, model_validator

from backends.pool import PoolSpec
from backends.yaml_source import KeyPath, YamlSourceError, explain, load_yaml_with_lines
from gateway.errors import ConfigurationError
from gateway.explain import Explanation
from gateway.explain import explain as explained
from gateway.imagined import Given, asked_of, call_of, fleet_of, prices_by_files, task_of
from gateway.routing.policy import Policy, load_policy
from gateway.routing.rule_file import Strict

AT: Final = datetime(2026, 6, 3, 12, tzinfo=UTC)
"""A Wednesday at noon: when cases happen that say nothing else. A test must not depend on when it runs."""


class Expected(Strict):
    """What has to come out; only what is named is looked at."""

    targets: tuple[str, ...] | None = Field(default=None, description="all of them, in their order")
    first: str | None = Field(default=None, description="the first target")
    rule: str | None = Field(default=None, description="the rule that decides; null: none")
    branch: str | None = Field(default=None, description="canary or budget_low; null: the rule's main part")
    drops: dict[str, str] | None = Field(
        default=None, description="by target, words of the reason; all targets that are dropped"
    )
    task: str | None = None
    nature: str | None = None
    cache: bool | None = Field(default=None, description="whether the cache is looked at")
    attempts_max: int | None = None
    hedging: bool | None = None
    error: str | None = Field(
        default=None, description="the code that the caller gets, such as budget_exceeded"
    )
    message: str | None = Field(default=None, description="words of what the caller is told")

    @model_validator(mode="after")
    def _expects_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("it expects nothing, and so can never fail: name targets, rule, drops or error")
        return self


class CaseEntry(Strict):
    """One golden decision."""

    name: str = Field(min_length=1, max_length=200)
    given: Given = Field(default_factory=Given)
    expect: Expected


class CasesFile(Strict):
    """Cases of one policy."""

    policy: str = Field(description="the policy's file, relative to this one")
    pools: str | None = Field(
        default=None, description="a folder of pool files, relative to this one; left out: those in use"
    )
    cases: tuple[CaseEntry, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Difference:
    """Something came out otherwise."""

    what: str
    expected: Any
    found: Any


@dataclass(frozen=True, slots=True)
class CaseResult:
    """How one case came out."""

    name: str
    line: int
    differences: tuple[Difference, ...]
    explanation: Explanation

    @property
    def is_right(self) -> bool:
        """It came out as it is written."""
        return not self.differences


@dataclass(frozen=True, slots=True)
class Cases:
    """A file of cases."""

    path: Path
    file: CasesFile
    lines: Mapping[KeyPath, int]

    @property
    def policy_path(self) -> Path:
        """The policy that they are of."""
        return self.path.parent / self.file.policy

    @property
    def pools_folder(self) -> Path | None:
        """The pools that they are asked with; None: those in use."""
        return None if self.file.pools is None else self.path.parent / self.file.pools


def load_cases(path: Path) -> Cases:
    """The cases in a file.

    Raises:
        ConfigurationError: unreadable, or wrong; with file, line and key.
    """
    try:
        value, lines = load_yaml_with_lines(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: the cases cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: the cases cannot be read: not UTF-8 text") from None
    except YamlSourceError as error:
        raise ConfigurationError(f"{path}:{error.line}: {error}") from None
    try:
        file = CasesFile.model_validate(value)
    except ValidationError as error:
        raise ConfigurationError("\n".join(explain(error, lines, CasesFile, source=str(path)))) from None
    return Cases(path, file, lines)


def run_cases(cases: Cases, *, specs: Mapping[str, PoolSpec]) -> list[CaseResult]:
    """How each came out.

    Raises:
        ConfigurationError: the policy is wrong, or a case names a pool that there is not.
    """
    policy = load_policy(cases.policy_path, pools=specs)
    results = []
    for number, case in enumerate(cases.file.cases):
        line = cases.lines.get(("cases", number), 1)
        unknown = [name for name in case.given.down if name not in specs]
        if unknown:
            raise ConfigurationError(
                f"{cases.path}:{line}: cases[{number}].given.down: there is no pool {unknown[0]!r};"
                f" known: {', '.join(sorted(specs))}"
            )
        found = _run(case, policy, specs)
        results.append(CaseResult(case.name, line, tuple(_differences(case.expect, found)), found))
    return results


def _run(case: CaseEntry, policy: Policy, specs: Mapping[str, PoolSpec]) -> Explanation:
    given, call = case.given, call_of(case.given)
    prices = prices_by_files(specs, policy, 0)
    fleet = fleet_of(specs, given.down)
    return explained(
        call,
        task_of(call, policy),
        policy,
        asked=asked_of(given, call, prices=prices, now_ms=int(AT.timestamp() * 1000)),
        pools={each.spec.name: each for each in fleet.snapshots()},
        prices=prices,
    )


def _differences(expected: Expected, found: Explanation) -> list[Difference]:
    error = found.error or {}
    targets = [each.target for each in found.candidates]
    values: dict[str, Any] = {
        "targets": targets,
        "first": targets[0] if targets else None,
        "rule": found.rule,
        "branch": found.branch,
        "task": found.facts["task"],
        "nature": found.facts["nature"],
        "cache": found.cache["is_used"],
        "attempts_max": found.attempts_max,
        "hedging": found.hedging,
        "error": error.get("code"),
    }
    differences = []
    for name in sorted(expected.model_fields_set & values.keys()):
        wanted = getattr(expected, name)
        if isinstance(wanted, tuple):
            wanted = list(wanted)
        if wanted != values[name]:
            differences.append(Difference(name, wanted, values[name]))
    if expected.drops is not None:
        differences += _dropped(expected.drops, {each.target: each.reason for each in found.drops})
    told = error.get("message", "")
    if expected.message is not None and expected.message not in told:
        differences.append(Difference("message", expected.message, told))
    if error and not {"error", "message"} & expected.model_fields_set:
        differences.append(Difference("error", None, f"{error['code']}: {told}"))
    return differences


def _dropped(expected: Mapping[str, str], found: Mapping[str, str]) -> list[Difference]:
    return [
        Difference(f"drops.{name}", expected.get(name), found.get(name))
        for name in sorted({*expected, *found})
        if name not in found or name not in expected or expected[name] not in found[name]
    ]
