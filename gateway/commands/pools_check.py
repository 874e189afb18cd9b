"""`tollgate pools check`: are the pool files right, will they fit, and what in them is a trap?

Prints what `backends.check` finds. Exit status 1 if a pool is invalid; 2 if there is nothing to check.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from backends.check.corrected import corrected
from backends.check.findings import Finding, Severity
from backends.check.fit import GIB, Fit, NoFit, as_json
from backends.check.pool_check import Checked, PoolCheck, Verdict, check_files
from backends.pool import PoolSpec
from backends.yaml_source import YamlSourceError, dotted
from gateway.commands.terminal import Json, out, print_json
from gateway.errors import ConfigurationError, InvalidRequest
from gateway.fleet import VLLM_PYTHON
from gateway.pricing.catalog import cards_of
from gateway.settings import load_settings

EXAMPLE = "Example: `tollgate pools check backends/pools/plain.yaml`; what it would change: `--fix`"

_REACHED = {
    "A": "level A only: its flags are known; if they fit together cannot be told here",
    "B": "levels A and B: its flags fit together; if they fit its model cannot be told here",
}
_STYLES = {Verdict.VALID: "green", Verdict.INVALID: "red", Verdict.UNCHECKED: "yellow"}
_FINDING_STYLES = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}


def pools_check(
    place: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER|FILE]", help="default: the pools in use")
    ] = None,
    *,
    engine: Annotated[
        Path, typer.Option(metavar="PATH", help="the interpreter of the vLLM that shall judge")
    ] = VLLM_PYTHON,
    snapshot: Annotated[
        bool, typer.Option("--snapshot", help="do not ask vLLM (10 s): go by the snapshot of its flags")
    ] = False,
    fix: Annotated[bool, typer.Option("--fix", help="print the corrected FILE")] = False,
    write: Annotated[bool, typer.Option("--write", help="with --fix: put it in place of FILE")] = False,
    as_machine: Json = False,
) -> None:
    """Say whether pool files are right, whether they fit in memory, and what in them is a trap."""
    files = _files(place)
    if fix or write:
        _fix(files, place, engine=None if snapshot else engine, write=write, fix=fix)
        return
    checked = _checked(files, None if snapshot else engine)
    if as_machine:
        print_json(_as_json(checked))
    else:
        _print(checked)
    if any(pool.verdict is Verdict.INVALID for pool in checked.pools):
        raise typer.Exit(1)


def _files(place: Path | None) -> list[Path]:
    """The files to check.

    Raises:
        ConfigurationError: there are none.
    """
    folder = place or load_settings().pools
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise ConfigurationError(f"{folder}: no such file or folder; expected pool files")
    files = sorted(path for path in folder.glob("*.yaml") if path.is_file())
    if not files:
        raise ConfigurationError(f"{folder}: holds no *.yaml file; expected one file per pool")
    return files


def _checked(files: list[Path], engine: Path | None) -> Checked:
    return check_files(files, engine=engine, also=_price_mistake, while_asking=_progress)


def _price_mistake(spec: PoolSpec) -> str | None:
    try:
        cards_of({spec.name: spec})
    except ConfigurationError as error:
        return str(error)
    return None


@contextlib.contextmanager
def _progress(count: int) -> Iterator[None]:
    """On a terminal something moves; elsewhere one line says what is waited for."""
    told = Console(stderr=True)
    sentence = f"asking vLLM about {count} pool{'s' if count != 1 else ''}: it takes about 10 s to load …"
    if told.is_terminal:
        with told.status(sentence):
            yield
        return
    told.print(sentence, highlight=False)
    yield


# ------------------------------------------------------------------------------------------------ people
def _print(checked: Checked) -> None:
    if checked.why_snapshot is not None:
        _line(f"By the snapshot: {checked.why_snapshot}.", "dim")
    for pool in checked.pools:
        word = f" ({pool.on_whose_word})" if pool.on_whose_word and not pool.is_corrected else ""
        line = Text.assemble(f"{pool.name}: ", (pool.verdict.value, _STYLES[pool.verdict]), word)
        out.print(line, highlight=False, soft_wrap=True)
        _print_findings(pool, Severity.ERROR)
        if pool.level in _REACHED and pool.verdict is Verdict.VALID:
            _line(f"  {_REACHED[pool.level]}")
        if pool.is_corrected:
            _print_correction(pool)
        _print_fit(pool.fit)
        _print_findings(pool, Severity.WARNING)
        _print_findings(pool, Severity.NOTE)
    for sentence in checked.machine:
        _line(f"this machine: {sentence}", "yellow")


def _print_correction(pool: PoolCheck) -> None:
    if pool.spec is None:
        _line("  with the corrections it still cannot be read: see the other errors")
        return
    word = f" ({pool.on_whose_word})" if pool.on_whose_word else ""
    _line(f"  with its errors corrected, as --fix does{word}:")


def _print_findings(pool: PoolCheck, severity: Severity) -> None:
    for finding in pool.findings:
        if finding.severity is severity:
            told = finding.told(str(pool.source))
            _line(f"  {severity.value}: {told}", _FINDING_STYLES[severity])


def _line(sentence: str, style: str = "") -> None:
    # A line that a terminal wraps is one line of a log: people search for file and line.
    out.print(Text(sentence, style=style), highlight=False, soft_wrap=True)


def _print_fit(fit: Fit | NoFit | None) -> None:
    if fit is None:
        return
    if isinstance(fit, NoFit):
        _line(f"  {fit.reason}")
        return
    _line(f"  {_in_a_sentence(fit)}")
    table = Table("GiB per GPU" if fit.usable_bytes else "GiB", "", box=None, padding=(0, 2, 0, 0))
    table.columns[1].justify = "right"
    for title, value in _rows(fit):
        table.add_row(title, value)
    out.print(Padding(table, (0, 0, 0, 4), expand=False), highlight=False)
    _line(f"    ({'; '.join(fit.notes)})", "dim")


def _in_a_sentence(fit: Fit) -> str:
    verdict = "fits" if fit.is_enough else "does not fit"
    full = f"{fit.requests_at_full_length:,.1f} requests of {fit.max_model_len:,} tokens"
    mean = ""
    if fit.requests_at_mean_length is not None and fit.mean_tokens is not None:
        mean = f", {fit.requests_at_mean_length:,.0f} at once of the mean {fit.mean_tokens:,.0f} tokens"
    else:
        mean = " (state expected_lengths for the mean one)"
    return f"{verdict} on {fit.hardware}: a cache of {fit.cache_tokens:,} tokens, {full}{mean}"


def _rows(fit: Fit) -> list[tuple[str, str]]:
    def gib(size: float) -> str:
        return f"{size / GIB:,.2f}" if abs(size) >= GIB / 100 else f"{size / GIB:.2g}"

    if fit.usable_bytes is None:  # the weights come on top of a cache of a fixed size
        weights = fit.weights_bytes + fit.draft_weights_bytes
        cache = f"cache, at {fit.cache_bytes_per_token:,.0f} bytes a token"
        return [("weights", gib(weights)), (cache, gib(fit.cache_bytes))]
    rows = []
    share = f" x {fit.utilisation:g}" if fit.utilisation is not None else ""
    rows.append((f"{fit.usable_bytes / GIB:g}{share}", gib(fit.budget_bytes)))
    rows.append(("weights", gib(-fit.weights_bytes)))
    if fit.draft_weights_bytes:
        rows.append(("draft's weights", gib(-fit.draft_weights_bytes)))
    rows.append(("activations at their peak", gib(-fit.activation_bytes)))
    rows.append(("context and CUDA graphs", gib(-fit.other_bytes)))
    rows.append((f"cache, at {fit.cache_bytes_per_token:,.0f} bytes a token", gib(fit.cache_bytes)))
    return rows


# ------------------------------------------------------------------------------------------------- fixing
def _replace(place: Path, text: str) -> None:
    """Write a file in one step: a full disk leaves the old one, and whoever reads it sees one or the other.

    Raises:
        InvalidRequest: it cannot be written; says why.
    """
    target = place.resolve()  # a link stays a link
    draft = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        with draft.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(target, draft)
        draft.replace(target)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise InvalidRequest(f"{place} cannot be written: {error.strerror}; it is as it was") from None


def _fix(files: list[Path], place: Path | None, *, engine: Path | None, write: bool, fix: bool) -> None:
    if not fix or place is None or not place.is_file():
        raise InvalidRequest("--fix takes one FILE, and --write goes with --fix: `pools check FILE --fix`")
    (pool,) = _checked(files, engine).pools
    try:
        new = corrected(place.read_text(encoding="utf-8"), pool.edits)
    except (YamlSourceError, OSError, UnicodeDecodeError):
        raise InvalidRequest("\n".join(each.told(str(place)) for each in pool.findings)) from None
    told = Console(stderr=True)
    for each in pool.findings:
        state = "corrected" if each.edits else "left to you"
        if each.severity is not Severity.NOTE:
            told.print(Text(f"{state}: {each.told(str(place))}"), highlight=False, soft_wrap=True)
    if not new.has_comments:
        told.print("its layout could not be kept: the comments are lost", highlight=False)
    if write:
        _replace(place, new.text)
        told.print(f"{place}: written", highlight=False)
    else:
        sys.stdout.write(new.text)
    if any(each.severity is Severity.ERROR and not each.edits for each in pool.findings):
        raise typer.Exit(1)


# ----------------------------------------------------------------------------------------------- machines
def _as_json(checked: Checked) -> dict[str, Any]:
    return {
        "pools": [
            {
                "name": pool.name,
                "file": str(pool.source),
                "verdict": pool.verdict.value,
                "checked_by": pool.on_whose_word,
                "level": pool.level or None,
                "is_corrected": pool.is_corrected,
                "findings": [_finding_as_json(each) for each in pool.findings],
                "fit": None if pool.fit is None else as_json(pool.fit),
            }
            for pool in checked.pools
        ],
        "machine": list(checked.machine),
        "why_snapshot": checked.why_snapshot,
    }


def _finding_as_json(finding: Finding) -> dict[str, Any]:
    return {
        "severity": finding.severity.value,
        "line": finding.line,
        "key": dotted(finding.path),
        "message": finding.message,
        "edits": [{**asdict(edit), "path": dotted(edit.path)} for edit in finding.edits],
    }
