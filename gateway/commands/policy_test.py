"""`tollgate policy test`: do the golden cases still come out as they are written?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from backends.pool import PoolSpec
from gateway.commands.terminal import Json, load_pool_files, out, print_json
from gateway.errors import ConfigurationError
from gateway.policy_cases import CaseResult, load_cases, run_cases
from gateway.settings import Settings, load_settings

FOLDER: Final = Path("policies/cases")


def policy_test(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE…]", help=f"default: {FOLDER}/*.yaml")
    ] = None,
    *,
    as_json: Json = False,
) -> None:
    """Run golden cases: facts in, targets, rule and drops out, by the live decision.

    Exit status 1: a case comes out otherwise; what was expected and what came out is shown.
    """
    settings = load_settings()
    known: dict[Path | None, dict[str, PoolSpec]] = {}
    found: list[tuple[Path, list[CaseResult]]] = []
    for path in _files(files):
        cases = load_cases(path)
        specs = _pools(settings, cases.pools_folder, known)
        found.append((path, run_cases(cases, specs=specs)))
    wrong = [(path, each) for path, results in found for each in results if not each.is_right]
    count = sum(len(results) for _, results in found)
    if as_json:
        print_json(
            {"cases": count, "failed": len(wrong), "results": [_row(p, r) for p, rs in found for r in rs]}
        )
    else:
        for path, each in wrong:
            _print(path, each)
        verdict = (
            f"{count} cases, all as they are written"
            if not wrong
            else f"{len(wrong)} of {count} cases differ"
        )
        out.print(Text(verdict, style="red" if wrong else "green"))
    if wrong:
        raise typer.Exit(1)


def _files(files: list[Path] | None) -> list[Path]:
    """Those to run.

    Raises:
        ConfigurationError: there are none.
    """
    found = files or sorted(FOLDER.glob("*.yaml"))
    if not found:
        raise ConfigurationError(f"{FOLDER}: holds no *.yaml file: name a file with cases")
    return found


def _pools(
    settings: Settings, folder: Path | None, known: dict[Path | None, dict[str, PoolSpec]]
) -> dict[str, PoolSpec]:
    if folder not in known:
        known[folder] = load_pool_files(settings, folder)
    return known[folder]


def _row(path: Path, result: CaseResult) -> dict[str, Any]:
    return {
        "file": str(path),
        "line": result.line,
        "name": result.name,
        "passed": result.is_right,
        "differences": [
            {"what": each.what, "expected": each.expected, "found": each.found} for each in result.differences
        ],
    }


def _print(path: Path, result: CaseResult) -> None:
    out.print(Text(f"{path}:{result.line}: {result.name}", style="bold"), soft_wrap=True)
    for each in result.differences:
        out.print(Text(f"  {each.what}"))
        out.print(Text(f"    - {_shown(each.expected)}", style="green"), soft_wrap=True)
        out.print(Text(f"    + {_shown(each.found)}", style="red"), soft_wrap=True)
    for rule in result.explanation.rules:
        verdict = "matches" if rule.is_matched else f"no: {'; '.join(rule.why_not)}"
        out.print(Text(f"  rule {rule.name}: {verdict}", style="dim"), soft_wrap=True)


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return " then ".join(map(str, value)) or "nothing"
    return str(value)
