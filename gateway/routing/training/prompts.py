"""Which labelled prompts are there, and which of them may a shipped model be trained on?

Reads a file of JSON lines (plain or gzip): `text`, `task`, `source`, `license_class`, and where there are any
`messages`, `tools`, `response_format`. Rows whose licence is permissive or share-alike train; all others only
evaluate. A family is what a model must not have seen of it when it is judged on it: sets that were rendered
with the templates of one project are one family.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from gateway.inference import CallFacts, TaskType

MAY_TRAIN: Final = frozenset({"permissive", "sharealike"})
PROMPTSOURCE: Final = "promptsource"
"""Family of all that was rendered with promptsource's templates: the P3 sets, and AQuA-RAT."""
PASSAGE_SOURCES: Final = frozenset({"p3-adversarial_qa", "p3-quoref", "p3-duorc"})
PASSAGE_CHARS_MIN: Final = 300
PASSAGE_CHARS_MAX: Final = 1500
_PARTS = re.compile(r"\n|Context:|plot:|Passage:")


class PromptsError(ValueError):
    """The file of prompts cannot be used; the text says why."""


class Prompt(NamedTuple):
    """One labelled request."""

    facts: CallFacts
    task: TaskType
    source: str
    family: str
    may_train: bool
    licence: str


def family_of(source: str) -> str:
    """The family of a source."""
    return PROMPTSOURCE if source.startswith("p3-") or source == "aqua-rat" else source


def load_prompts(path: Path) -> list[Prompt]:
    """All rows of a file.

    Raises:
        PromptsError: it cannot be read, or a line is not such a row; names the line.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    prompts = []
    number = 0
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            for line in file:
                number += 1
                prompts.append(_prompt(json.loads(line)))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise PromptsError(f"{path}: cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PromptsError(f"{path}:{number}: not a labelled prompt: {error!r}") from error
    if not prompts:
        raise PromptsError(f"{path}: there is no prompt in it")
    return prompts


def _prompt(row: dict[str, Any]) -> Prompt:
    messages = row.get("messages") or []
    systems = [each["content"] for each in messages if each["role"] == "system"]
    turns = [
        each["content"] for each in messages if each["role"] == "user" and isinstance(each["content"], str)
    ]
    facts = CallFacts(
        instruction=row["text"],
        system=systems[0] if systems else "",
        has_schema=bool(row.get("response_format")),
        has_tools=bool(row.get("tools")),
        previous=turns[-2] if len(turns) > 1 else "",
    )
    return Prompt(
        facts=facts,
        task=TaskType(row["task"]),
        source=row["source"],
        family=family_of(row["source"]),
        may_train=row["license_class"] in MAY_TRAIN,
        licence=row["license"],
    )


def passages(prompts: Sequence[Prompt], *, held_out: str | None) -> list[str]:
    """Passages that own requests may use as material: never of the family that is left out."""
    found = []
    for prompt in prompts:
        if not prompt.may_train or prompt.family == held_out:
            continue
        text = prompt.facts.instruction
        if prompt.source in PASSAGE_SOURCES:
            parts = [part.strip() for part in _PARTS.split(text) if len(part) > PASSAGE_CHARS_MIN]
            if parts:
                found.append(max(parts, key=len)[:PASSAGE_CHARS_MAX])
        elif prompt.source == "counsel-chat":
            found.append(text[:PASSAGE_CHARS_MAX])
    return found
