r"""Which requests do we write ourselves, to train on?

Instructions from `phrases/*.txt` (all worded for this project) put before or after material: texts of our
own, and passages of rows whose licence allows it. A small grammar: `(a|b)` is one of them, `{slot}` a line of
that slot in `slots.txt`, `\n` a new line. The same seed gives the same requests.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from gateway.inference import CallFacts, TaskType

PHRASES: Final = Path(__file__).with_name("phrases")
SLOTS_MAX: Final = 80
"""Slots filled in one text; more means that a slot fills itself for ever."""
BORROWED_RATIO: Final = 0.3
SYSTEM_RATIO: Final = 0.06
GENERIC_SYSTEM_RATIO: Final = 0.15
"""System prompts that say nothing about the task, so that their usual words are no sign of any."""
INSTRUCTION_AS_SYSTEM_RATIO: Final = 0.15
FOLLOW_UP_RATIO: Final = 0.06
NOISE_RATIO: Final = 0.05
"""Requests that say nothing, as many under each task: the classifier shall not be sure of them."""
TOOLS_BY_CHANCE_RATIO: Final = 0.02
SCHEMA_RATIO: Final = 0.4
TOOLS_RATIO: Final = 0.15

_SECTION = re.compile(r"\[(\w+)\]")
_SLOT = re.compile(r"\{([a-z_]+)\}")
_SEPARATORS: Final = (":\n", ":\n\n", "\n\n", "\n", ": ", ". ", ':\n"""\n')
_OPENINGS: Final = (
    "please ",
    "Please ",
    "Hi, ",
    "Hello! ",
    "can you ",
    "I need you to ",
    "I want you to ",
    "Could you please ",
    "hey, ",
    "Task: ",
    "Instruction: ",
)
_FOLLOW_UPS: Final = (
    "another one",
    "and this one: {sentence}",
    "continue",
    "Thanks! Now the next one.",
    "go on",
    "Can you do that again, but shorter?",
    "I would like it to be {number} characters long.",
    "yes, please",
    "No, I meant the {thing}.",
    "It should be about {story_topic}.",
    "use the {thing} instead",
    "ok. And for {factual}?",
    "My name is {name} and my number is {number}{number}.",
    "Make it {few} of them.",
)
_MATERIALS: Final[Mapping[TaskType, tuple[str, ...]]] = {
    TaskType.TRANSLATION: ("foreign", "foreign", "sentences", "prose", "email", "dialogue"),
    TaskType.REWRITING: ("sentences", "sentences", "email", "prose", "review", "notes"),
    TaskType.CLASSIFICATION: ("review", "review", "sentences", "email", "prose", "notes"),
    TaskType.STRUCTURED: ("notes", "notes", "email", "prose", "dialogue"),
    TaskType.EXTRACTION: ("prose", "prose", "prose", "notes", "email", "dialogue"),
    TaskType.SUMMARIZATION: ("prose", "prose", "dialogue", "email", "notes", "review"),
    TaskType.CODE: ("code",),
}
_MOSTLY_ALONE: Final = frozenset(
    {TaskType.CODE, TaskType.CREATIVE, TaskType.BRAINSTORMING, TaskType.STRUCTURED}
)
"""Tasks whose phrases without material are as many ways to say it as those with."""
_ANY_MATERIAL: Final = ("prose", "prose", "prose", "email", "dialogue", "review", "notes", "sentences")
_REPEATED: Final = frozenset({"prose", "sentences", "foreign", "code"})
"""Kinds of which several may stand after one another."""


class OwnRequest(NamedTuple):
    """A request that we wrote, and its task."""

    facts: CallFacts
    task: TaskType


def sections(path: Path) -> dict[str, list[str]]:
    """The lines of a file of phrases by the section they stand in; sections of one name are one."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        title = _SECTION.fullmatch(line)
        if title:
            lines = found.setdefault(title[1], [])
        elif line:
            lines.append(line)
    return found


def choose(text: str, rng: random.Random) -> str:
    """The text with one of the alternatives of each `(a|b)`, which may nest; `(a)` stays as it is."""
    stack: list[list[str]] = [[""]]
    for char in text:
        if char == "(":
            stack.append([""])
        elif char == ")" and len(stack) > 1:
            options = stack.pop()
            stack[-1][-1] += rng.choice(options) if len(options) > 1 else f"({options[0]})"
        elif char == "|" and len(stack) > 1:
            stack[-1].append("")
        else:
            stack[-1][-1] += char
    return "(".join("|".join(options) for options in stack)


class Writer:
    """Writes requests; one seed, one sequence."""

    def __init__(self, seed: int, *, borrowed: Sequence[str] = ()) -> None:
        """Read the phrases.

        Args:
            seed: of everything that is random.
            borrowed: passages of other sources that may stand as material.
        """
        self._rng = random.Random(seed)
        self._slots = sections(PHRASES / "slots.txt")
        self._own = sections(PHRASES / "materials.txt")
        self._phrases = {task: sections(PHRASES / f"{task}.txt") for task in TaskType}
        self._borrowed = borrowed

    def requests(self, per_task: int) -> list[OwnRequest]:
        """So many requests for each task."""
        return [
            OwnRequest(self._finished(self._request(task), task), task)
            for task in TaskType
            for _ in range(per_task)
        ]

    def varied(self, text: str) -> str:
        """The text as someone else might have typed it."""
        chance, rng = self._rng.random(), self._rng
        if chance < 0.12:  # noqa: PLR2004 - shares of the ways to vary
            return text.lower()
        if chance < 0.2:  # noqa: PLR2004
            return rng.choice(_OPENINGS) + text[:1].lower() + text[1:]
        if chance < 0.25:  # noqa: PLR2004
            return text.rstrip("?.")
        if chance < 0.28:  # noqa: PLR2004
            return f"### Instruction:\n{text}\n\n### Response:"
        return f'"{text}"' if chance < 0.31 else text  # noqa: PLR2004

    def fill(self, text: str) -> str:
        """A phrase with its alternatives chosen and its slots filled."""
        text = choose(text, self._rng)
        for _ in range(SLOTS_MAX):
            slot = next((found for found in _SLOT.finditer(text) if found[1] in self._slots), None)
            if slot is None:
                break
            filled = choose(self._rng.choice(self._slots[slot[1]]), self._rng)
            text = text[: slot.start()] + filled + text[slot.end() :]
        return text.replace("\\n", "\n").strip()

    def _request(self, task: TaskType) -> CallFacts:
        rng, phrases = self._rng, self._phrases[task]
        if rng.random() < NOISE_RATIO:
            return CallFacts(instruction=self._noise())
        places = [place for place in phrases if place != "system"]
        mostly_alone = task in _MOSTLY_ALONE
        weights = [
            # What stands alone has many lines for few ways to say it.
            len(phrases[place]) ** (0.5 if place == "alone" and len(places) > 1 and not mostly_alone else 1)
            for place in places
        ]
        place = rng.choices(places, weights)[0]
        instruction = self.fill(rng.choice(phrases[place]))
        if place == "with_tools":
            return CallFacts(instruction=self.varied(instruction), has_tools=True)
        if place == "alone":
            return CallFacts(instruction=self.varied(instruction))
        material = self._material(_MATERIALS.get(task, _ANY_MATERIAL))
        if place.startswith("after"):
            gap = rng.choice(("\n\n", "\n", "\n\n", " "))
            return CallFacts(instruction=material + gap + self.varied(instruction))
        if place == "before" and rng.random() < INSTRUCTION_AS_SYSTEM_RATIO:
            return CallFacts(instruction=material, system=instruction)
        return CallFacts(instruction=self.varied(instruction) + rng.choice(_SEPARATORS) + material)

    def _noise(self) -> str:
        """Words out of any order, and words that are none."""
        rng = self._rng
        words = self.fill(rng.choice(self._own[rng.choice(_ANY_MATERIAL)])).split()
        mixed = rng.sample(words, min(len(words), rng.randint(1, 9)))
        if rng.random() < 0.5:  # noqa: PLR2004
            letters = "abcdefghijklmnopqrstuvwxyz0123456789?."
            mixed = ["".join(rng.choices(letters, k=rng.randint(1, 7))) for _ in mixed]
        return " ".join(mixed)

    def _material(self, kinds: Sequence[str]) -> str:
        rng = self._rng
        if self._borrowed and not {"code", "foreign"} & set(kinds) and rng.random() < BORROWED_RATIO:
            return rng.choice(self._borrowed)
        kind = rng.choice(kinds)
        count = rng.choice((1, 1, 1, 2, 3, 5)) if kind in _REPEATED else 1
        gap = " " if kind == "sentences" else "\n"
        return gap.join(self.fill(rng.choice(self._own[kind])) for _ in range(count))

    def _finished(self, facts: CallFacts, task: TaskType) -> CallFacts:
        """With a system prompt, tools, an output format or an earlier turn, now and then."""
        rng, system = self._rng, facts.system
        phrases = self._phrases[task].get("system", [])
        if phrases and rng.random() < SYSTEM_RATIO:
            system = self.fill(rng.choice(phrases))
        if not system and rng.random() < GENERIC_SYSTEM_RATIO:
            system = self.fill("{generic_system}")
        is_structured = task is TaskType.STRUCTURED
        has_schema = is_structured and not facts.has_tools and rng.random() < SCHEMA_RATIO
        chance = TOOLS_RATIO if is_structured else TOOLS_BY_CHANCE_RATIO
        has_tools = facts.has_tools or (not has_schema and rng.random() < chance)
        instruction, previous = facts.instruction, ""
        if rng.random() < FOLLOW_UP_RATIO:
            instruction, previous = self.fill(rng.choice(_FOLLOW_UPS)), instruction
        return CallFacts(
            instruction=instruction,
            system=system,
            has_schema=has_schema,
            has_tools=has_tools,
            previous=previous,
        )
