"""What differs between two policies, by meaning and as text?

By meaning: key by key, as the YAML has them, whatever their order and layout; entries of a list that have
names are found by their names. Knows nothing of the grammar, so that any two versions that were ever stored
can be compared. Pure.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from backends.yaml_source import YamlSourceError, load_yaml_with_lines
from gateway.errors import ConfigurationError

_CONTEXT_LINES = 3


class Kind(StrEnum):
    """What happened to a key."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Difference:
    """A key whose value differs."""

    path: str
    """Dotted, such as `routes.creative`."""
    kind: Kind
    before: Any
    """None: it was not there, or it was null."""
    after: Any


@dataclass(frozen=True, slots=True)
class PolicyDiff:
    """What differs between two policies."""

    differences: tuple[Difference, ...]
    """Empty: they say the same, whatever their texts look like."""
    text: str
    """Unified; empty: not a byte differs."""


def diff_policies(before: str, after: str, *, names: tuple[str, str]) -> PolicyDiff:
    """What differs between two YAML texts.

    Args:
        before: the one.
        after: the other.
        names: what to call them.

    Raises:
        ConfigurationError: one of them is not YAML.
    """
    values = [_values(text, name) for text, name in zip((before, after), names, strict=True)]
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), names[0], names[1], lineterm="", n=_CONTEXT_LINES
    )
    return PolicyDiff(tuple(_differences("", *values)), "\n".join(lines))


def shown(value: object) -> str:
    """A value on one line."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _values(text: str, name: str) -> Any:
    try:
        return load_yaml_with_lines(text)[0]
    except YamlSourceError as error:
        raise ConfigurationError(f"{name}:{error.line}: {error}") from None


def _differences(key: str, before: Any, after: Any) -> Iterator[Difference]:
    if repr(before) == repr(after):  # `==` takes 1 for true
        return
    one, other = _by_name(before), _by_name(after)
    if one is None or other is None:
        yield Difference(key or "everything", Kind.CHANGED, before, after)
        return
    for name in [*one, *(name for name in other if name not in one)]:
        path = f"{key}.{name}" if key else str(name)
        if name not in other:
            yield Difference(path, Kind.REMOVED, one[name], None)
        elif name not in one:
            yield Difference(path, Kind.ADDED, None, other[name])
        else:
            yield from _differences(path, one[name], other[name])
    order = [[name for name in each if name in one and name in other] for each in (one, other)]
    if isinstance(before, list) and order[0] != order[1]:
        yield Difference(f"{key} (order)", Kind.CHANGED, *order)


def _by_name(value: Any) -> Mapping[Any, Any] | None:
    """The parts of a value by what they are called; None: it has none, and is compared as a whole."""
    if isinstance(value, Mapping):
        return value
    if (
        isinstance(value, list)
        and value
        and all(isinstance(each, Mapping) and "name" in each for each in value)
    ):
        named = {f"[{each['name']}]": each for each in value}
        return named if len(named) == len(value) else None
    return None
