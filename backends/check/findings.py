"""What is said about one place of a pool file, and which change of the file would settle it?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from backends.yaml_source import KeyPath, dotted


class Severity(StrEnum):
    """How much it matters."""

    ERROR = "error"
    """The pool must not be started like this."""
    WARNING = "warning"
    """It starts, and does something that is easily not meant."""
    NOTE = "note"
    """Worth knowing; nothing has to be done."""

    @property
    def rank(self) -> int:
        """The worst first."""
        return list(Severity).index(self)


@dataclass(frozen=True, slots=True)
class Edit:
    """One key of the file to set, or to take away."""

    path: KeyPath
    value: Any = None
    is_removal: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to say."""

    severity: Severity
    path: KeyPath
    """The key that it is about; `()` the whole file."""
    message: str
    """What is the matter and what to do, a sentence or two."""
    line: int | None = None
    """Of the key, from 1; None where it is about no line."""
    edits: tuple[Edit, ...] = ()

    def told(self, source: str) -> str:
        """`file:line: key: sentence`, as all mistakes in files are told."""
        place = f"{source}:{self.line}: " if self.line is not None else f"{source}: "
        return f"{place}{dotted(self.path)}: {self.message}" if self.path else f"{place}{self.message}"


def line_of(path: KeyPath, lines: Mapping[KeyPath, int]) -> int:
    """Where this key stands, or else the nearest one above it."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def with_edits(document: Mapping[str, Any], edits: tuple[Edit, ...]) -> dict[str, Any]:
    """A copy of the document with the changes made.

    Sections that a key needs are made; one that loses its last key goes with it.
    """
    changed: dict[Any, Any] = {key: _copy(value) for key, value in document.items()}
    for edit in edits:
        *above, key = edit.path
        if edit.is_removal:
            _remove(changed, above, key)
        else:
            _section(changed, above)[key] = edit.value
    return changed


def _section(document: dict[Any, Any], above: list[str | int]) -> dict[Any, Any]:
    for part in above:
        if not isinstance(document.get(part), dict):
            document[part] = {}
        document = document[part]
    return document


def _remove(document: dict[Any, Any], above: list[str | int], key: str | int) -> None:
    if not above:
        document.pop(key, None)
        return
    below = document.get(above[0])
    if isinstance(below, dict):
        _remove(below, above[1:], key)
        if not below:
            del document[above[0]]


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(each) for key, each in value.items()}
    return [_copy(each) for each in value] if isinstance(value, list) else value
