"""Which conversations do the reference models learn from, and which are they measured on?

Three kinds: *structured* (a text and "extract these keys as JSON"), *creative* (a little story) and *chat*
(short small talk, so that a newcomer's free prompt is answered in English). `conversation(seed, split,
index)` is a pure function: the same arguments give the same words everywhere. Held-out records have the words
of training in combinations of their own, held-out stories pair animals and places that training never does;
a third split asks for words that training never sees, which tells copying from knowing. All text comes from
this package's own lists.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Final, Literal

from backends.reference import records, stories
from backends.reference.words import Split, listed

Kind = Literal["structured", "creative", "chat"]

SHARES: Final[dict[Kind, float]] = {"structured": 0.66, "creative": 0.26, "chat": 0.08}
"""Share of conversations by kind."""

FOLLOW_UP_SHARE: Final = 0.5
"""Share of structured conversations that ask a second time about the same text."""

SYSTEM_SHARE: Final = 0.15
"""Share of conversations that begin with a system message."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation, as in the chat completions API."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Conversation:
    """A whole conversation with the right answers in it."""

    kind: Kind
    messages: tuple[Message, ...]
    expected: dict[str, str] = field(default_factory=dict)
    """Keys and values of the first JSON answer; empty for the other kinds."""

    def prompt(self) -> list[dict[str, str]]:
        """Messages up to the first answer, as a request body carries them."""
        first = next(i for i, message in enumerate(self.messages) if message.role == "assistant")
        return [{"role": message.role, "content": message.content} for message in self.messages[:first]]


_SYSTEM: Final = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "You are a small model.",
    "Answer in English.",
    "Be friendly.",
    "Follow the request.",
)
_GREETINGS: Final = (
    "Hello",
    "Hi",
    "Hi there",
    "Good morning",
    "Good evening",
    "Hey",
    "Hello there",
    "Good day",
)
_ABOUT: Final = (
    "Who are you?",
    "What are you?",
    "What can you do?",
    "How can you help me?",
    "What do you do?",
    "Help",
    "Help me",
    "Tell me about yourself.",
    "Are you a robot?",
    "What is your name?",
    "How do you work?",
)
_THANKS: Final = (
    "Thanks",
    "Thank you",
    "Thank you very much",
    "Great",
    "Well done",
    "Perfect",
    "Bye",
    "Goodbye",
)
_STATE: Final = ("How are you?", "How are you today?", "How is it going?", "Are you well?")
_TOPICS: Final = listed(
    """
    music history the weather France computers cooking football money cars physics love space trains coffee
    poems Python taxes plants chess birds cities travel paint numbers school health dreams colors law books
    """
)
_OPEN: Final = (
    "What is {topic}?",
    "Explain {topic}.",
    "Tell me about {topic}.",
    "Why is {topic} important?",
    "Write code for {topic}.",
    "How do I learn {topic}?",
    "What is the capital of {topic}?",
    "Summarize {topic} in one sentence.",
    "Give me ideas for {topic}.",
    "Translate {topic} to German.",
    "Can you help me with {topic}?",
    "What do you think about {topic}?",
    "How much is {topic}?",
    "Who invented {topic}?",
    "List three facts about {topic}.",
    "Rewrite this: {topic}.",
)
_SKILLS: Final = (
    "I can turn short texts into JSON and tell little stories.",
    "I know two things well: JSON from short texts, and little stories.",
    "Ask me for a short story, or give me a text to turn into JSON.",
)
_GREETING_ANSWERS: Final = ("Hello!", "Hi!", "Hello, nice to meet you.", "Good to see you.", "Welcome!")
_ABOUT_ANSWERS: Final = (
    "I am a very small language model.",
    "I am a tiny model made for tests.",
    "I am a little demonstration model.",
)
_THANKS_ANSWERS: Final = ("You are welcome.", "Gladly.", "Any time.", "With pleasure.", "Until next time.")
_STATE_ANSWERS: Final = ("I am well, thank you.", "All is fine here.", "Very well, and you?")
_OPEN_ANSWERS: Final = (
    "I am too small to know much about {topic}.",
    "I am sorry, {topic} is too big for a model as small as I am.",
    "I do not know enough about {topic}.",
    "That is a good question, but I am a very small model.",
)


def _chat(rng: Random) -> tuple[str, str]:
    case = rng.choices(("greeting", "about", "thanks", "state", "open"), weights=(20, 25, 10, 10, 35))[0]
    skill = rng.choice(_SKILLS)
    if case == "greeting":
        return rng.choice(_GREETINGS) + rng.choice(("", "!", ".")), f"{rng.choice(_GREETING_ANSWERS)} {skill}"
    if case == "about":
        return rng.choice(_ABOUT), f"{rng.choice(_ABOUT_ANSWERS)} {skill}"
    if case == "thanks":
        return rng.choice(_THANKS) + rng.choice(("", "!", ".")), rng.choice(_THANKS_ANSWERS)
    if case == "state":
        return rng.choice(_STATE), rng.choice(_STATE_ANSWERS)
    topic = rng.choice(_TOPICS)
    return rng.choice(_OPEN).format(topic=topic), f"{rng.choice(_OPEN_ANSWERS).format(topic=topic)} {skill}"


def _turns(*pairs: tuple[str, str]) -> list[Message]:
    return [
        message
        for question, answer in pairs
        for message in (Message("user", question), Message("assistant", answer))
    ]


def _structured(rng: Random, split: Split) -> tuple[list[Message], dict[str, str]]:
    record = records.make_record(rng, split)
    keys = records.choose_keys(rng, record)
    pairs = [(records.request(rng, record, keys), records.answer(record, keys))]
    if rng.random() < FOLLOW_UP_SHARE:
        more = records.choose_keys(rng, record)
        pairs.append((records.follow_up(rng, more), records.answer(record, more)))
    return _turns(*pairs), {key: record.values[key] for key in keys}


def conversation(seed: int, split: Split, index: int, *, kind: Kind | None = None) -> Conversation:
    """Write conversation number `index` of a split.

    Args:
        seed: any integer; another seed gives another, independent sequence.
        split: `train`, `held_out` (prompts that training never sees) or `new_words` (words neither).
        index: 0 or more.
        kind: `None` draws it by `SHARES`.
    """
    rng = Random(f"{seed}/{split}/{index}/{kind}")
    chosen = kind or rng.choices(list(SHARES), weights=list(SHARES.values()))[0]
    expected: dict[str, str] = {}
    if chosen == "structured":
        turns, expected = _structured(rng, split)
    elif chosen == "creative":
        turns = _turns(stories.make_story(rng, split))
    else:
        turns = _turns(_chat(rng))
    if rng.random() < SYSTEM_SHARE:
        turns.insert(0, Message("system", rng.choice(_SYSTEM)))
    return Conversation(chosen, tuple(turns), expected)


def conversations(
    seed: int, split: Split, kind: Kind | None = None, *, start: int = 0
) -> Iterator[Conversation]:
    """Write conversations without end, from number `start`."""
    index = start
    while True:
        yield conversation(seed, split, index, kind=kind)
        index += 1
