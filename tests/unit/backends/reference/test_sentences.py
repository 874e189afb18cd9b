"""The rule passes all that the generator writes, and notices what a bad model does."""

from random import Random

import pytest

from backends.reference.sentences import english_ratio, reads_as_english, sentences_of, vocabulary
from backends.reference.stories import make_story


def test_the_generators_own_stories_pass() -> None:
    stories = [make_story(Random(f"other/{number}"), "held_out")[1] for number in range(300)]
    assert english_ratio(stories) == 1.0


def test_a_sentence_ends_outside_quotes_only() -> None:
    text = '"Where is my key?" asked the fox. It ran! Then nobody sang.'
    assert sentences_of(text) == ['"Where is my key?" asked the fox.', "It ran!", "Then nobody sang."]


@pytest.mark.parametrize(
    ("sentence", "passes"),
    [
        ("The fox ran slowly.", True),
        ('"I will help you," said the crow, and they sang.', True),
        ("the fox ran slowly.", False),
        ("The fox ran", False),
        ("The fox paid 1200.", False),
        ("The fxo ran.", False),
        ("...", False),
    ],
)
def test_the_rule(sentence: str, passes: bool) -> None:  # noqa: FBT001 - a table's column
    assert reads_as_english(sentence) is passes


def test_the_share_counts_sentences_of_all_texts() -> None:
    assert english_ratio(["The fox ran. the fox ran.", "The fox ran. The fox"]) == 0.5
    assert english_ratio([""]) == 0.0


def test_the_vocabulary_is_that_of_stories() -> None:
    assert {"fox", "lantern", "courage", "an"} <= vocabulary()
    assert not {"json", "invoice", "2024"} & vocabulary()
