import json
import re
from itertools import islice
from random import Random

import pytest

from backends.reference import records, stories, words
from backends.reference.text import SHARES, Conversation, Kind, Message, conversation, conversations
from backends.reference.words import Split, is_held_out

GOLDEN = (
    Message(
        "user",
        "Turn this text into JSON with quantity, product: Please pack 13 of the White Hammer. "
        "City: Vienna. Please keep this note.",
    ),
    Message(
        "assistant",
        '{"quantity": "13", "product": "White Hammer"}',
    ),
    Message(
        "user",
        "And city and product, please.",
    ),
    Message(
        "assistant",
        '{"city": "Vienna", "product": "White Hammer"}',
    ),
)


def take(count: int, split: Split = "train", kind: Kind | None = None) -> list[Conversation]:
    return list(islice(conversations(3, split, kind), count))


def contents(items: list[Conversation]) -> str:
    return "\n".join(message.content for item in items for message in item.messages)


def test_the_same_seed_writes_the_same_words() -> None:
    assert [conversation(3, "train", index) for index in range(200)] == take(200)


def test_another_seed_writes_other_words() -> None:
    assert take(20) != [conversation(4, "train", index) for index in range(20)]


def test_words_do_not_change_between_machines_and_releases() -> None:
    # A golden answer: weights and measurements are only comparable while the text stays what it was.
    assert conversation(1, "train", 0, kind="structured").messages == GOLDEN


@pytest.mark.parametrize("split", ["train", "held_out", "new_words"])
def test_every_json_answer_has_exactly_the_asked_keys_and_copies_its_values(split: Split) -> None:
    for item in take(500, split, "structured"):
        users = [message.content for message in item.messages if message.role == "user"]
        answers = [message.content for message in item.messages if message.role == "assistant"]
        for question, answer in zip(users, answers, strict=True):
            values = json.loads(answer)
            assert 2 <= len(values) <= 4
            for key, value in values.items():
                assert re.search(rf"\b{key}\b", question)
                assert value in users[0]
        assert item.expected == json.loads(answers[0])


def test_the_asked_keys_come_in_many_orders() -> None:
    orders = {tuple(item.expected) for item in take(500, kind="structured")}
    assert len(orders) > 100


def test_held_out_prompts_are_never_seen_in_training() -> None:
    trained = {
        item.prompt()[-1]["content"] for item in islice(conversations(1, "train", "structured"), 8_000)
    }
    for seed in (2, 3, 7):  # those that are measured, timed and tested
        asked = [item.prompt()[-1]["content"] for item in islice(conversations(seed, "held_out"), 200)]
        structured = [text for text in asked if "JSON" in text]
        assert len(structured) > 50
        assert not trained & set(structured)


def test_new_words_are_never_seen_in_training() -> None:
    trained = contents(take(3000, "train", "structured"))
    trained_words = set(re.findall(r"[A-Z][a-z]+", trained))
    held_back = {word for word in words.FIRST_NAMES + words.SURNAMES if is_held_out(word)}
    assert held_back
    assert not held_back & trained_words
    asked = [item.expected for item in take(500, "new_words", "structured")]
    first_names = {values["name"].split(" ")[0] for values in asked if "name" in values}
    assert first_names
    assert not first_names & trained_words


def test_held_out_stories_pair_animals_and_places_that_training_does_not() -> None:
    held_back = [
        (animal, place)
        for animal in stories.ANIMALS
        for place in stories.PLACES
        if stories.is_held_out_pair(animal, place)
    ]
    assert 0.05 < len(held_back) / (len(stories.ANIMALS) * len(stories.PLACES)) < 0.25
    trained = contents(take(3000, "train", "creative"))
    assert not [pair for pair in held_back if f"a {pair[0]} {pair[1]}" in trained]


def test_stories_have_five_to_eight_sentences() -> None:
    for item in take(300, kind="creative"):
        sentences = re.findall(r"[.?](?=\s[A-Z\"]|$)", item.messages[-1].content)
        assert 5 <= len(sentences) <= 8


def test_stories_differ_where_json_answers_do_not() -> None:
    starts = {item.messages[-1].content[:40] for item in take(300, kind="creative")}
    assert len(starts) > 200


def test_a_story_is_about_the_animal_that_was_asked_for() -> None:
    for item in take(300, kind="creative"):
        prompt = item.prompt()[-1]["content"]
        # "… and a crow" asks for a friend, who need not appear.
        hero = prompt.split(" and a ")[0]
        asked = [animal for animal in stories.ANIMALS if re.search(rf"\ban? (\w+ )?{animal}\b", hero)]
        assert all(animal in item.messages[-1].content for animal in asked[:1])


def test_the_kinds_come_in_their_shares() -> None:
    items = take(4000)
    for kind, share in SHARES.items():
        assert sum(item.kind == kind for item in items) / len(items) == pytest.approx(share, abs=0.03)


def test_a_prompt_ends_before_the_first_answer() -> None:
    for item in take(200):
        prompt = item.prompt()
        assert prompt[-1]["role"] == "user"
        assert all(message["role"] != "assistant" for message in prompt)


def test_a_list_of_keys_is_worded_in_three_ways() -> None:
    rng = Random(0)
    forms = {records.list_keys(rng, ["name", "email", "city"]) for _ in range(100)}
    assert forms == {"name, email, city", "name, email and city", '"name", "email", "city"'}
