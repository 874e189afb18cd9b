"""Where in a YAML text does each value stand, and how is a mistake in it told to the person who wrote it?

Knows YAML and pydantic, nothing of pools or policies; both are read through it. Anchors and aliases are
refused: a file that an operator edits shows each value where it counts, and an uploaded one cannot grow
from a few bytes into gigabytes. Lines are 1-based. YAML is 1.1 as PyYAML 6 reads it (`no` is false).
"""

from __future__ import annotations

import copy
import difflib
import functools
import re
from collections.abc import Hashable, Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

KeyPath = tuple[str | int, ...]
"""Where a value stands: mapping keys and list positions from the top; `()` is the whole text."""

_DEPTH_MAX = 50
_SHOWN_CHARS_MAX = 60
_KEPT_TEXTS = 32
_KEPT_CHARS_MAX = 65_536
_MAP_TAG = "tag:yaml.org,2002:map"
_SEQ_TAG = "tag:yaml.org,2002:seq"


class YamlSourceError(ValueError):
    """The text is not YAML, or YAML of a kind that is refused; `line` says where, from 1."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


_Loader: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""PyYAML's safe loader by libyaml, which its wheels have: ten times as fast, and people send large files."""


def _refuse_aliases(text: str) -> None:
    """Refuse aliases and unbounded nesting, before anything is built of the text.

    Raises:
        YamlSourceError: there is one, or it is nested too deeply.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = 1 if event.start_mark is None else event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise YamlSourceError("anchors and aliases are not supported: write the value out", line)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth >= _DEPTH_MAX:
            raise YamlSourceError(f"nested more than {_DEPTH_MAX} levels deep", line)


def load_yaml_with_lines(text: str) -> tuple[Any, dict[KeyPath, int]]:
    """Read one YAML document; say for each key path on which line its key (or list item) stands.

    An empty document is `None`.

    Raises:
        YamlSourceError: not YAML, a duplicate key (both lines are named), an alias, or nested too deeply.
    """
    if len(text) > _KEPT_CHARS_MAX:
        return _load(text)
    value, lines = _kept(text)
    return copy.deepcopy(value), dict(lines)


@functools.lru_cache(maxsize=_KEPT_TEXTS)
def _kept(text: str) -> tuple[Any, dict[KeyPath, int]]:
    # A start reads each file more than once, and reading takes ten times as long as copying.
    return _load(text)


def _load(text: str) -> tuple[Any, dict[KeyPath, int]]:
    try:
        _refuse_aliases(text)
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {(): 1}
        lines: dict[KeyPath, int] = {(): node.start_mark.line + 1}
        return _construct(loader, node, (), lines=lines), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(part for part in (error.context, error.problem) if part)
        # libyaml finds what is never closed on the line after the last one.
        last = max(1, len(text.splitlines()))
        raise YamlSourceError(f"not valid YAML: {reason}", min(mark.line + 1, last) if mark else 1) from error
    except yaml.YAMLError as error:
        raise YamlSourceError(f"not valid YAML: {error}", 1) from error


def explain(
    error: ValidationError, lines: Mapping[KeyPath, int], model: type[BaseModel], *, source: str
) -> list[str]:
    """Turn what pydantic found into sentences `source:line: key path: what is wrong and what is expected`.

    Args:
        error: what `model.model_validate(value)` raised.
        lines: the second half of what `load_yaml_with_lines` returned for the same text.
        model: the class that was validated; its fields are what an unknown key is compared with.
        source: the file's name, as the reader knows it.
    """
    return [
        f"{source}:{line}: {dotted(path)}: {sentence}" if path else f"{source}:{line}: {sentence}"
        for path, line, sentence in mistakes(error, lines, model)
    ]


def mistakes(
    error: ValidationError, lines: Mapping[KeyPath, int], model: type[BaseModel]
) -> list[tuple[KeyPath, int, str]]:
    """The same in parts: where, on which line, and what is wrong; in the order of the lines."""
    found: dict[KeyPath, list[tuple[str, str]]] = {}
    for details in error.errors(include_url=False):
        path = _path_in_text(details, lines)
        found.setdefault(path, []).append(_sentence(details, model))
    told = []
    for path, problems in sorted(found.items(), key=lambda item: _line_of(item[0], lines)):
        # A union reports each of its branches; one value deserves one sentence.
        expectations = list(dict.fromkeys(expected for expected, _ in problems))
        told.append((path, _line_of(path, lines), f"{' or '.join(expectations)}{problems[0][1]}"))
    return told


def known_keys(model: type[BaseModel], path: KeyPath) -> set[str]:
    """The keys that a section may have, by the model that it is read into."""
    return _keys_at(model, path)


def nearest(word: str, known: Iterator[str] | list[str]) -> str | None:
    """The known word that was probably meant; None if nothing is close."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def dotted(path: KeyPath) -> str:
    """`('rules', 0, 'when')` as a person writes it: `rules[0].when`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _construct(loader: Any, node: yaml.Node, path: KeyPath, *, lines: dict[KeyPath, int]) -> Any:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode) and node.tag == _MAP_TAG:
        return _construct_mapping(loader, node, path, lines=lines)
    if isinstance(node, yaml.SequenceNode) and node.tag == _SEQ_TAG:
        values = []
        for position, item in enumerate(node.value):
            lines[*path, position] = item.start_mark.line + 1
            values.append(_construct(loader, item, (*path, position), lines=lines))
        return values
    if not isinstance(node, yaml.ScalarNode):
        raise YamlSourceError(f"the tag {node.tag} is not supported", line)
    try:
        return loader.construct_object(node)
    except (ValueError, OverflowError) as error:
        # Such as a date of 2024-13-45: PyYAML decides by the look of it and then fails without a mark.
        raise YamlSourceError(f"{_shown(node.value)} is not a valid value: {error}", line) from error


def _construct_mapping(
    loader: Any, node: yaml.MappingNode, path: KeyPath, *, lines: dict[KeyPath, int]
) -> dict[Hashable, Any]:
    mapping: dict[Hashable, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
            raise YamlSourceError("a key must be a plain word, text or number", line)
        key = _construct(loader, key_node, path, lines=lines)
        below: KeyPath = (*path, key if isinstance(key, int) and not isinstance(key, bool) else str(key))
        if key in mapping:
            first = lines[below]
            raise YamlSourceError(
                f"duplicate key {dotted(below)!r}: on line {first} and on line {line}", line
            )
        lines[below] = line
        mapping[key] = _construct(loader, value_node, below, lines=lines)
    return mapping


def _path_in_text(details: ErrorDetails, lines: Mapping[KeyPath, int]) -> KeyPath:
    """The error's location without the parts that pydantic adds (a union's branch, `[key]`)."""
    path: KeyPath = ()
    for part in details["loc"]:
        if (*path, part) in lines:
            path = (*path, part)
    return path


def _line_of(path: KeyPath, lines: Mapping[KeyPath, int]) -> int:
    return lines.get(path, 1)


def _sentence(details: ErrorDetails, model: type[BaseModel]) -> tuple[str, str]:
    """What is wrong, and what was found instead (empty where that says nothing more)."""
    kind, location = details["type"], details["loc"]
    if kind == "extra_forbidden":
        known = sorted(_keys_at(model, location[:-1]))
        meant = nearest(str(location[-1]), known)
        hint = f"did you mean '{meant}'?" if meant else f"known keys: {', '.join(known)}"
        return f"unknown key; {hint}", ""
    if kind == "missing":
        return f"missing key '{location[-1]}'", ""
    message = details["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = re.sub(r"^Input should be (an instance of )?", "expected ", message)
    if kind in {"value_error", "assertion_error"} and not isinstance(details["input"], str | int | float):
        return message, ""
    if kind in {"literal_error", "enum"}:
        meant = nearest(str(details["input"]), re.findall(r"'([^']*)'", message))
        if meant:
            return message, f", got {_shown(details['input'])}; did you mean '{meant}'?"
    return message, f", got {_shown(details['input'])}"


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= _SHOWN_CHARS_MAX else f"{text[:_SHOWN_CHARS_MAX]}…"


def _keys_at(model: type[BaseModel], location: KeyPath) -> set[str]:
    """The keys that the model knows at this place, over all branches of a union."""
    annotations: list[Any] = [model]
    for part in location:
        annotations = _step(annotations, part)
    return {
        field.alias or name
        for leaf in _leaves(annotations)
        if isinstance(leaf, type) and issubclass(leaf, BaseModel)
        for name, field in leaf.model_fields.items()
    }


def _step(annotations: list[Any], part: str | int) -> list[Any]:
    """The annotations one part further down; a part that names a union's branch selects it instead."""
    below: list[Any] = []
    branch: list[Any] = []
    leaves = list(_leaves(annotations))
    for leaf in leaves:
        if isinstance(leaf, type) and issubclass(leaf, BaseModel):
            below += [
                field.annotation for name, field in leaf.model_fields.items() if part in {name, field.alias}
            ]
            if part == leaf.__name__ or part in _tags(leaf):
                branch.append(leaf)
            continue
        arguments = get_args(leaf)
        origin = get_origin(leaf)
        if isinstance(origin, type) and arguments:
            below.append(arguments[-1 if issubclass(origin, Mapping) or arguments[-1] is not ... else 0])
    return below if below and not branch else branch or leaves


def _tags(leaf: type[BaseModel]) -> set[Any]:
    """What the literal fields of a model may hold: the discriminator values of a tagged union."""
    return {
        value
        for field in leaf.model_fields.values()
        if get_origin(field.annotation) is Literal
        for value in get_args(field.annotation)
    }


def _leaves(annotations: list[Any]) -> Iterator[Any]:
    for annotation in annotations:
        origin = get_origin(annotation)
        if origin is Annotated:
            yield from _leaves([get_args(annotation)[0]])
        elif origin in {Union, UnionType}:
            yield from _leaves(list(get_args(annotation)))
        elif hasattr(annotation, "__value__"):  # a `type X = …` alias
            yield from _leaves([annotation.__value__])
        else:
            yield annotation
