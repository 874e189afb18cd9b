"""Which prompts does a bench send, how long are they, and what does each task do with them?

The texts are those of the reference models (`backends.reference.text`): records to be turned into JSON, which
is extraction and predictable, and little stories, which are creative. Any model can be asked them; the
bundled ones were trained on their like. A longer input is a longer conversation: earlier requests and their
right answers come first. No two prompts of a bench are alike, so that a prefix cache finds no more than the
words which all share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from backends.profile import Nature
from backends.reference.text import Conversation, conversations

TaskName = Literal["extraction", "creative"]
_KIND: Final[dict[TaskName, Literal["structured", "creative"]]] = {
    "extraction": "structured",
    "creative": "creative",
}
NATURE: Final[dict[TaskName, Nature]] = {"extraction": "predictable", "creative": "creative"}
TEMPERATURE: Final[dict[TaskName, float]] = {"extraction": 0.0, "creative": 1.0}
"""As the work is usually asked for; greedy stories would repeat themselves."""
_CHARS_PER_TOKEN: Final[dict[TaskName, float]] = {"extraction": 2.2, "creative": 4.2}
"""Of the reference models' tokenizer on these texts, with the template's own tokens. Only to choose a length:
what counts is what the server says it was."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request, before it is sent."""

    task: TaskName
    messages: tuple[tuple[str, str], ...]
    """Role and content of each."""
    output_tokens_max: int
    is_output_fixed: bool
    """Ignore the end token: the answer is as long as `output_tokens_max` says."""

    def body(self, model: str) -> dict[str, object]:
        """The request as the chat completions API takes it, streamed, with usage at the end."""
        return {
            "model": model,
            "messages": [{"role": role, "content": content} for role, content in self.messages],
            "temperature": TEMPERATURE[self.task],
            "max_tokens": self.output_tokens_max,
            "ignore_eos": self.is_output_fixed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


class Prompts:
    """An endless supply of prompts that differ from one another; the same seed gives the same ones."""

    def __init__(self, seed: int) -> None:
        self._streams = {task: conversations(seed, "held_out", kind) for task, kind in _KIND.items()}

    def take(
        self,
        task: TaskName,
        *,
        input_tokens: int,
        output_tokens_max: int,
        is_output_fixed: bool,
    ) -> Prompt:
        """The next prompt of about so many tokens, or of the shortest that the task has."""
        last = next(self._streams[task])
        asked = [
            (message["role"], message["content"]) for message in last.prompt() if message["role"] == "user"
        ]
        chars_left = input_tokens * _CHARS_PER_TOKEN[task] - sum(len(content) for _, content in asked)
        before: list[tuple[str, str]] = []
        while chars_left > 0:
            turn = _first_turn(next(self._streams[task]))
            size = sum(len(content) for _, content in turn)
            if size > 1.5 * chars_left:
                break
            chars_left -= size
            before += turn
        return Prompt(task, (*before, *asked), output_tokens_max, is_output_fixed)


def _first_turn(found: Conversation) -> list[tuple[str, str]]:
    """The question and its right answer, without a system message, which only comes first."""
    turn: list[tuple[str, str]] = [(one.role, one.content) for one in found.messages if one.role != "system"]
    return turn[:2]
