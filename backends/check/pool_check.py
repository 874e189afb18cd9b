"""Is each of these pool files right, on whose word, and what should be changed?

Order: the file as YAML, obsolete arguments (the rest is then judged with their corrections made), the pool
file's own types, memory and traps, and at last vLLM's word on the command line: the real one where it can
judge, else the snapshot. Only reads; corrections are proposed as edits.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from backends.check.engine import (
    EngineAnswer,
    EngineUnavailable,
    EngineVerdict,
    Line,
    ask_engine,
    has_plugin,
    installed_version,
)
from backends.check.findings import Edit, Finding, Severity, with_edits
from backends.check.fit import Fit, NoFit, fit_of
from backends.check.obsolete import find_obsolete
from backends.check.snapshot import Snapshot, read_snapshot
from backends.check.stand_in import line_of_pool
from backends.check.traps import look_at, shared_gpus
from backends.files import PoolFileError, read_document, with_absolute_paths
from backends.launch.command import vllm_argv
from backends.pool import PoolSpec
from backends.yaml_source import KeyPath, known_keys, mistakes


class Verdict(StrEnum):
    """What is known of a pool."""

    VALID = "valid"
    INVALID = "invalid"
    UNCHECKED = "unchecked"
    """The file is right; of the server that it describes nobody was asked."""


@dataclass(frozen=True, slots=True)
class PoolCheck:
    """What is said of one pool file."""

    source: Path
    name: str
    """The pool's, or else the file's."""
    verdict: Verdict
    on_whose_word: str
    """`real vLLM 0.32.0`, `snapshot 0.32.0`, or why nobody was asked."""
    level: str
    """Of real vLLM's judgement, the last that held (A flags, B combination, C model); '' by the snapshot."""
    findings: tuple[Finding, ...]
    fit: Fit | NoFit | None
    """None: the pool cannot be read."""
    spec: PoolSpec | None
    """With the corrections made, where there are any; None: not even then readable."""
    is_corrected: bool
    """What is said beyond the errors is said of the corrected pool."""

    @property
    def edits(self) -> tuple[Edit, ...]:
        """What would settle its errors and warnings."""
        return tuple(
            edit for each in self.findings if each.severity is not Severity.NOTE for edit in each.edits
        )


@dataclass(frozen=True, slots=True)
class Checked:
    """What is said of all of them."""

    pools: tuple[PoolCheck, ...]
    machine: tuple[str, ...]
    """What concerns several pools of this machine together."""
    why_snapshot: str | None
    """Why vLLM itself was not asked; None: it was, or there was nothing to ask."""


@dataclass(slots=True)
class _Draft:
    """One pool under examination."""

    source: Path
    name: str
    findings: list[Finding] = field(default_factory=list)
    spec: PoolSpec | None = None
    fit: Fit | NoFit | None = None
    is_corrected: bool = False
    lines: Mapping[KeyPath, int] = field(default_factory=dict)


Rule = Callable[[PoolSpec], str | None]
WhileAsking = Callable[[int], AbstractContextManager[Any]]


def check_files(
    files: list[Path],
    *,
    engine: Path | None,
    also: Rule = lambda _: None,
    while_asking: WhileAsking = lambda _: nullcontext(),
) -> Checked:
    """Judge pool files.

    Args:
        files: one pool each.
        engine: the interpreter of vLLM's environment; None: by the snapshot alone.
        also: a rule of the caller's: what is wrong with a pool, or None.
        while_asking: entered while vLLM is asked about so many pools, which takes some ten seconds.
    """
    snapshot = read_snapshot()
    drafts = [_read(file, snapshot) for file in files]
    _name_each_once(drafts)
    for draft in drafts:
        _look_at(draft, snapshot, engine=engine, also=also)
    asked = {str(number): draft for number, draft in enumerate(drafts) if _has_command(draft)}
    answer, why = _ask(asked, engine, while_asking)
    pools = tuple(
        _judged(draft, snapshot, answer if str(number) in asked else None, key=str(number))
        for number, draft in enumerate(drafts)
    )
    local = {draft.name: draft.spec for draft in drafts if draft.spec is not None}
    return Checked(pools, tuple(shared_gpus(local)), why)


def _read(file: Path, snapshot: Snapshot) -> _Draft:
    draft = _Draft(file, file.stem)
    try:
        document, draft.lines = read_document(file)
    except PoolFileError as error:
        draft.findings += [_as_finding(line, file) for line in str(error).splitlines()]
        return draft
    draft.name = str(document.get("name") or file.stem)
    draft.findings += find_obsolete(
        document,
        draft.lines,
        own_keys=lambda path: known_keys(PoolSpec, path),
        engine_flags=snapshot.flags,
        speculation_keys=snapshot.speculation_keys,
    )
    edits = tuple(edit for each in draft.findings if each.severity is Severity.ERROR for edit in each.edits)
    draft.is_corrected = any(each.severity is Severity.ERROR for each in draft.findings)
    handled = {each.path for each in draft.findings if each.severity is Severity.ERROR}
    draft.lines = _with_lines_of_edits(draft.lines, draft.findings)
    try:
        spec = PoolSpec.model_validate(with_edits(document, edits))
    except ValidationError as error:
        draft.findings += [
            Finding(Severity.ERROR, path, sentence, line=line)
            for path, line, sentence in mistakes(error, draft.lines, PoolSpec)
            if path not in handled
        ]
        return draft
    draft.spec = with_absolute_paths(spec, file.parent)
    return draft


def _with_lines_of_edits(lines: Mapping[KeyPath, int], findings: list[Finding]) -> dict[KeyPath, int]:
    """Lines also for keys that corrections bring: those of what is corrected."""
    known = dict(lines)
    for finding in findings:
        for edit in finding.edits:
            for length in range(1, len(edit.path) + 1):
                known.setdefault(edit.path[:length], finding.line or 1)
    return known


def _as_finding(line: str, file: Path) -> Finding:
    """A mistake that `read_document` tells as `file:line: sentence`, or without a line."""
    rest = line.removeprefix(str(file)).removeprefix(":")
    number, _, sentence = rest.partition(": ")
    if number.strip().isdigit():
        return Finding(Severity.ERROR, (), sentence, line=int(number))
    return Finding(Severity.ERROR, (), rest.strip())


def _name_each_once(drafts: list[_Draft]) -> None:
    origin: dict[str, _Draft] = {}
    for draft in drafts:
        first = origin.setdefault(draft.name, draft)
        if first is not draft and draft.spec is not None:
            place = f"{first.source}:{first.lines.get(('name',), 1)}"
            message = f"pool '{draft.name}' is already defined at {place}"
            draft.findings.append(
                Finding(Severity.ERROR, ("name",), message, line=draft.lines.get(("name",)))
            )


def _look_at(draft: _Draft, snapshot: Snapshot, *, engine: Path | None, also: Rule) -> None:
    if draft.spec is None:
        return
    refused = also(draft.spec)
    if refused is not None:
        draft.findings.append(Finding(Severity.ERROR, (), refused))
    repaired = engine is None or not engine.exists() or has_plugin(engine)
    try:
        draft.fit = fit_of(draft.spec)
        draft.findings += look_at(
            draft.spec, draft.lines, fit=draft.fit, snapshot=snapshot, has_cpu_repair=repaired
        )
    except ValueError as error:
        draft.findings.append(Finding(Severity.ERROR, ("model", "path"), str(error)))


def _has_command(draft: _Draft) -> bool:
    return draft.spec is not None and draft.spec.driver == "process" and draft.fit is not None


def _ask(
    asked: Mapping[str, _Draft], engine: Path | None, while_asking: WhileAsking
) -> tuple[EngineAnswer | None, str | None]:
    if not asked:
        return None, None
    if engine is None:
        return None, "vLLM itself was not to be asked"
    with tempfile.TemporaryDirectory(prefix="tollgate-check-") as folder, while_asking(len(asked)):
        lines = {
            key: line_of_pool(draft.spec, engine, Path(folder) / key)
            for key, draft in asked.items()
            if draft.spec is not None
        }
        try:
            return ask_engine(engine, lines), None
        except EngineUnavailable as error:
            return None, _and_which_release(str(error), engine)


def _and_which_release(reason: str, engine: Path) -> str:
    installed, known = installed_version(engine), read_snapshot().version
    if installed is not None and installed != known:
        return (
            f"{reason}. What is installed is vLLM {installed}, the snapshot is of {known}: flags may differ"
        )
    return reason


def _judged(draft: _Draft, snapshot: Snapshot, answer: EngineAnswer | None, *, key: str) -> PoolCheck:
    word = level = ""
    if draft.spec is not None and draft.spec.driver == "external":
        word = "someone else runs it: the file is right, the servers were not asked"
    elif draft.spec is not None and answer is not None:
        verdict = answer.verdicts[key]
        word, level = f"real vLLM {answer.version}", verdict.level
        if verdict.error is not None:
            draft.findings.append(_refusal(draft.spec, answer, verdict, line=answer.lines[key]))
    elif _has_command(draft) and draft.spec is not None:
        word = f"snapshot {snapshot.version}"
        argv = vllm_argv(draft.spec, python=Path("python"), port=1)[3:]
        draft.findings += list(_by_snapshot(draft, snapshot.mistakes(argv)))
    is_wrong = any(each.severity is Severity.ERROR for each in draft.findings)
    if is_wrong and answer is None and draft.spec is not None and draft.spec.driver == "external":
        word = ""
    return PoolCheck(
        source=draft.source,
        name=draft.name,
        verdict=_verdict(draft, is_wrong=is_wrong),
        on_whose_word=word,
        level=level,
        findings=tuple(sorted(draft.findings, key=lambda each: (each.severity.rank, each.line or 0))),
        fit=draft.fit,
        spec=draft.spec,
        is_corrected=draft.is_corrected,
    )


_OF_A_STAND_IN = (
    r"tokenizer|config file for|__init__\(\) missing|Number of experts|Unsupported speculative method|"
    r"does not support|not supported for"
)
"""What vLLM says because a stand-in has no tokenizer, no experts and no quantization but its name's."""
_OF_THE_MACHINE = r"\bcpu\b|No module named|Failed to import|pip install"
_OF_THE_HUB = r"LocalEntryNotFound|OfflineModeIsEnabled|couldn't connect to"


def _refusal(spec: PoolSpec, answer: EngineAnswer, verdict: EngineVerdict, *, line: Line) -> Finding:
    """What vLLM says against a pool; only a note where it is about how, and on what, it was judged."""
    said = " ".join((verdict.error or "").split())
    is_elsewhere = answer.is_cpu and spec.hardware.gpu != "cpu"
    reasons = [
        (_OF_THE_HUB, True, "without the Hub"),
        (_OF_THE_MACHINE, is_elsewhere, "on this machine, where no GPU is"),
        (_OF_A_STAND_IN, line.is_stand_in, "without the model itself"),
    ]
    for pattern, can_be, where in reasons:
        if can_be and verdict.level and re.search(pattern, said, re.IGNORECASE):
            message = f"vLLM {answer.version} cannot tell {where}: {said}"
            return Finding(Severity.NOTE, (), message)
    return Finding(Severity.ERROR, (), f"vLLM {answer.version} refuses its command line: {said}")


def _verdict(draft: _Draft, *, is_wrong: bool) -> Verdict:
    if is_wrong:
        return Verdict.INVALID
    return Verdict.UNCHECKED if draft.spec is None or draft.spec.driver == "external" else Verdict.VALID


def _by_snapshot(draft: _Draft, sentences: list[str]) -> Iterator[Finding]:
    for sentence in sentences:
        option = sentence.partition(" ")[0].rstrip(":")
        path = _path_of(option, draft)
        yield Finding(Severity.ERROR, path, sentence, line=draft.lines.get(path))


def _path_of(option: str, draft: _Draft) -> KeyPath:
    wanted = option.removeprefix("--").removeprefix("no-")
    for key in draft.spec.engine_args if draft.spec else ():
        if key.replace("_", "-") == wanted:
            return ("engine_args", key)
    return ()
