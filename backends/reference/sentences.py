"""Does a story read as English, by a rule that anyone can check?

A sentence passes when it begins with a capital letter or a quotation mark, ends with a full stop,
exclamation or question mark, and has no word that the generator of the stories never writes. A low bar,
which sees neither grammar nor sense: it notices broken words, leaked digits, run-ons and cut-off ends,
which is how a small or badly quantized model goes wrong first.
"""

import re
from collections.abc import Iterable
from functools import cache
from random import Random
from typing import Final

from backends.reference.stories import make_story
from backends.reference.words import Split

_STORIES: Final = 1000
"""Per half. The generator's lists are exhausted after 500: twice as many, for lists that grow."""
_SPLITS: Final[tuple[Split, ...]] = ("train", "held_out")
_WORD: Final = re.compile(r"\w+")
_GAP: Final = re.compile(r"(?<=[.!?])\s+")
_BEGINNING: Final = re.compile(r'["A-Z]')


@cache
def vocabulary() -> frozenset[str]:
    """Every word that the generator writes in stories, in lower case; held-out words included."""
    return frozenset(
        word
        for split in _SPLITS
        for number in range(_STORIES)
        for word in words_of(make_story(Random(f"vocabulary/{number}"), split)[1])
    )


def words_of(text: str) -> list[str]:
    """The words (and numbers) of a text in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def sentences_of(text: str) -> list[str]:
    """Cut a text behind each full stop, exclamation and question mark; an end inside quotes is no end."""
    return [sentence for sentence in _GAP.split(text.strip()) if sentence]


def reads_as_english(sentence: str) -> bool:
    """Apply the rule above to one sentence."""
    words = words_of(sentence)
    return (
        bool(words)
        and _BEGINNING.match(sentence) is not None
        and sentence.endswith((".", "!", "?"))
        and vocabulary().issuperset(words)
    )


def english_ratio(texts: Iterable[str]) -> float:
    """Share of all sentences of these texts that pass; 0 without any sentence."""
    verdicts = [reads_as_english(sentence) for text in texts for sentence in sentences_of(text)]
    return sum(verdicts) / len(verdicts) if verdicts else 0.0
