"""How does a pool file read after its corrections, with its comments where they were?

Edits are made in the text: a key's lines go, its value changes in place, a new key is put at the end of its
section. Afterwards the text is read again and must say exactly what the edits say; where it does not (a
layout that is not understood), the file is written anew and loses its comments, and the caller is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from backends.check.findings import Edit, with_edits
from backends.yaml_source import YamlSourceError, load_yaml_with_lines

_INDENT = 2
_WIDTH = 4096


@dataclass(frozen=True, slots=True)
class Corrected:
    """A file's new text."""

    text: str
    has_comments: bool
    """False: the layout could not be kept, and the comments with it."""


def corrected(text: str, edits: tuple[Edit, ...]) -> Corrected:
    """The text with the edits made; its own text where there are none.

    Raises:
        YamlSourceError: the text is not YAML to begin with.
    """
    document, _ = load_yaml_with_lines(text)
    wanted = with_edits(document, edits)
    changed = text if text.endswith("\n") else f"{text}\n"
    for edit in edits:
        changed = _remove(changed, edit.path) if edit.is_removal else _set(changed, edit.path, edit.value)
    try:
        found, _ = load_yaml_with_lines(changed)
    except YamlSourceError:
        found = None
    if found == wanted:
        return Corrected(changed, has_comments=True)
    return Corrected(yaml.safe_dump(wanted, sort_keys=False, width=_WIDTH), has_comments=False)


Pair = tuple[yaml.ScalarNode, yaml.Node]


def _pair(text: str, path: tuple[str | int, ...]) -> tuple[yaml.MappingNode, Pair | None] | None:
    """The section that holds the key, and the key with its value (None: not there); None: no section."""
    section = yaml.compose(text, Loader=yaml.SafeLoader)
    for position, part in enumerate(path):
        if not isinstance(section, yaml.MappingNode):
            return None
        pair = next((pair for pair in section.value if pair[0].value == part), None)
        if position == len(path) - 1:
            return section, pair
        if pair is None:
            return None
        section = pair[1]
    return None


def _remove(text: str, path: tuple[str | int, ...]) -> str:
    section, pair = _pair(text, path) or (None, None)
    if section is None or pair is None:
        return text
    if len(section.value) == 1 and len(path) > 1:
        return _remove(text, path[:-1])
    if section.flow_style:
        kept = {key: value for key, value in _value_of(text, section).items() if key != path[-1]}
        return text[: section.start_mark.index] + _flow(kept) + text[section.end_mark.index :]
    lines = text.splitlines(keepends=True)
    del lines[pair[0].start_mark.line : _last_line(pair[1], pair[0]) + 1]
    return "".join(lines)


def _set(text: str, path: tuple[str | int, ...], value: Any) -> str:
    place = _pair(text, path)
    if place is None:
        if len(path) == 1:
            return text
        # A word or nothing where a section belongs gives way to it.
        return _set(_remove(text, path[:-1]), path[:-1], {path[-1]: value})
    section, pair = place
    if section.flow_style:
        changed = _value_of(text, section) | {path[-1]: value}
        return text[: section.start_mark.index] + _flow(changed) + text[section.end_mark.index :]
    if pair is not None and (isinstance(pair[1], yaml.ScalarNode) or getattr(pair[1], "flow_style", False)):
        start, end = pair[1].start_mark.index, pair[1].end_mark.index
        gap = "" if text[start - 1 : start].isspace() else " "
        return text[:start] + gap + _flow(value) + text[end:]
    if pair is not None:
        text = _remove(text, path)
        return _set(text, path, value)
    return _append(text, section, key=str(path[-1]), value=value)


def _append(text: str, section: yaml.MappingNode, *, key: str, value: Any) -> str:
    column = section.value[0][0].start_mark.column
    last_key, last_value = section.value[-1]
    lines = text.splitlines(keepends=True)
    if isinstance(value, dict) and column == 0:
        inner = "".join(f"{' ' * _INDENT}{each}: {_flow(one)}\n" for each, one in value.items())
        added = f"\n{key}:\n{inner}"
    else:
        added = f"{' ' * column}{key}: {_flow(value)}\n"
    lines.insert(_last_line(last_value, last_key) + 1, added)
    return "".join(lines)


def _last_line(node: yaml.Node, key: yaml.Node) -> int:
    """Of a value, without the comments below it; a block's own end mark is where the next key begins."""
    if isinstance(node, yaml.ScalarNode):
        is_block = node.style in {"|", ">"}
        return max(key.start_mark.line, node.end_mark.line - is_block)
    if getattr(node, "flow_style", False):
        return node.end_mark.line
    return max((_last_line(leaf, key) for leaf in _children(node)), default=key.start_mark.line)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    else:
        yield from node.value


def _value_of(text: str, section: yaml.MappingNode) -> dict[str, Any]:
    value = yaml.safe_load(text[section.start_mark.index : section.end_mark.index])
    return dict(value)


def _flow(value: Any) -> str:
    """On one line, as YAML."""
    written = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=_WIDTH)
    return written.removesuffix("...\n").strip()
