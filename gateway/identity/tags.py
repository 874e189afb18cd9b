"""Which cost tags may an operator fix on a project or a key?

As many and as long as a caller may send in `metadata`. A fixed tag stands on every row of its calls, whatever
the caller sends under the same name.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.errors import InvalidRequest
from gateway.inference import TAG_NAME_CHARS, TAG_VALUE_CHARS, TAGS_MAX

Tags = tuple[tuple[str, str], ...]
"""Names and values, sorted by name."""


def checked_tags(tags: Mapping[str, str]) -> dict[str, str] | None:
    """The tags as they are kept; None for no tags.

    Raises:
        InvalidRequest: too many, or a name or value that cannot be kept.
    """
    if len(tags) > TAGS_MAX:
        raise InvalidRequest(
            f"`tags` has {len(tags)} pairs; at most {TAGS_MAX} can be fixed on one project or key.",
            param="tags",
        )
    for name, value in tags.items():
        if not name.strip() or len(name) > TAG_NAME_CHARS or len(value) > TAG_VALUE_CHARS:
            raise InvalidRequest(
                f"`tags.{name[:TAG_NAME_CHARS]}`: names have 1 to {TAG_NAME_CHARS} characters, values at"
                f" most {TAG_VALUE_CHARS}.",
                param="tags",
            )
        if not (name + value).isprintable():
            raise InvalidRequest(
                f"`tags.{name[:TAG_NAME_CHARS]!r}` holds a line break or a control character.", param="tags"
            )
    return dict(sorted(tags.items())) or None


def sorted_tags(tags: Mapping[str, str] | None) -> Tags:
    """Kept tags as a value."""
    return tuple(sorted(tags.items())) if tags else ()


def fixed_tags(of_project: Tags, of_key: Tags) -> Tags:
    """What stands on a call: the project's, overridden by the key's."""
    return tuple(sorted({**dict(of_project), **dict(of_key)}.items()))
