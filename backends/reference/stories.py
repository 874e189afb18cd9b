"""What does a little story look like, and how do people ask for one?

A small grammar with about a dozen choices in each slot. An animal, a place and a thing are carried through,
the rest is free, so that the next word of a story is hard to guess where the next word of a JSON answer is
not.
"""

import zlib
from random import Random
from typing import Final

from backends.reference.words import HELD_OUT_ONE_IN, Split, listed

ANIMALS: Final = listed(
    """
    fox bear rabbit owl mouse cat dog wolf hedgehog squirrel duck goose frog horse goat sheep robot dragon
    badger otter beaver crow sparrow turtle pig cow donkey lion tiger elephant monkey penguin whale fish
    snail bee
    """
)
PLACES: Final = (
    "by the river",
    "in the forest",
    "on the hill",
    "near the sea",
    "in a small village",
    "in the city",
    "at the farm",
    "in the garden",
    "under the old bridge",
    "on a ship",
    "in the mountains",
    "by the lake",
    "in the desert",
    "on an island",
    "in the snow",
    "at the market",
    "in a castle",
    "on the moon",
    "behind the mill",
    "at school",
    "in the library",
    "near the lighthouse",
)
THINGS: Final = listed(
    """
    lantern map key stone book bell boat apple letter hat drum mirror rope basket coin kite ring feather
    song cake seed clock flute blanket
    """
)
_SLOTS: Final[dict[str, tuple[str, ...]]] = {
    "trait": listed(
        "brave small old clever shy lonely happy hungry curious quiet proud kind sleepy young clumsy patient"
    ),
    "look": listed(
        "golden tiny broken shiny blue wooden strange heavy silver forgotten red soft dusty green"
    ),
    "friend": listed(
        "crow hedgehog mole deer toad heron moth swan lizard weasel spider raven stork kitten calf"
    ),
    "name": listed("Pip Mira Tobo Luna Otto Nell Bibi Rufus Tilly Momo Fenn Suri Hops Juno Wim Ada"),
    "when": (
        "One morning",
        "One evening",
        "In the spring",
        "On a cold night",
        "After the rain",
        "Before dawn",
        "One summer day",
        "At noon",
        "On the first day of winter",
        "Late in the autumn",
        "When the moon was full",
        "On a windy day",
    ),
    "feeling": listed("happy afraid tired proud surprised sad calm glad angry hopeful worried warm"),
    "weather": (
        "the wind was loud",
        "the rain fell softly",
        "the sun was warm",
        "snow covered everything",
        "the stars were bright",
        "the fog was thick",
        "thunder rolled far away",
        "the sky was pink",
        "the air smelled of grass",
        "the leaves were falling",
    ),
    "spot": (
        "under a tree",
        "behind a rock",
        "in the tall grass",
        "beside the path",
        "inside a hollow log",
        "below the window",
        "between two stones",
        "on top of a wall",
        "in the mud",
        "near a well",
        "under the stairs",
        "at the edge of the water",
    ),
    "act": (
        "walked for a long time",
        "looked in every corner",
        "asked everyone for help",
        "climbed to the highest place",
        "waited until dark",
        "ran as fast as the wind",
        "made a clever plan",
        "sang an old song",
        "dug a deep hole",
        "followed the footprints",
        "counted to one hundred",
        "built a small bridge",
        "swam to the other side",
    ),
    "trouble": (
        "a storm began",
        "the path was gone",
        "a big wave came",
        "night fell too early",
        "a stranger blocked the way",
        "the bridge broke",
        "nobody wanted to listen",
        "everything became silent",
        "the water rose",
        "a loud noise shook the ground",
        "the light went out",
        "the door would not open",
    ),
    "lesson": (
        "even the smallest step counts",
        "friends make every road shorter",
        "a gift is best when it is shared",
        "it is good to ask",
        "home is where someone waits",
        "patience opens every door",
        "a little light is enough",
        "it is never too late to be kind",
        "the best treasure is a friend",
        "courage can be quiet",
    ),
    "meal": listed("soup bread honey berries cheese pancakes nuts tea porridge pears plums"),
}
_OPENINGS: Final = (
    "Once upon a time a {trait} {animal} lived {place}.",
    "There was once a {trait} {animal} who lived {place}.",
    "{when} a {trait} {animal} woke up {place}.",
    "A {trait} {animal} named {name} had a home {place}.",
    "Long ago, {place}, there lived a {trait} {animal}.",
    "{when}, {place}, a {animal} found a {look} {thing}.",
    "Nobody {place} knew the {animal} better than the {friend}.",
)
_MIDDLES: Final = (
    "{when} the {animal} found a {look} {thing} {spot}.",
    "The {animal} wanted to find the {look} {thing}, and so it {act}.",
    "It {act}, but {trouble}.",
    "Then {trouble}, and the {animal} felt {feeling}.",
    "A {friend} sat {spot} and asked what was wrong.",
    "The {friend} said that the {thing} was hidden {spot}.",
    "Outside {weather}, and the {animal} was {feeling}.",
    "Together they {act}.",
    "The {animal} and the {friend} shared some {meal} and talked about the {thing}.",
    '"I will help you," said the {friend}, and they {act}.',
    '"Where is my {thing}?" asked the {animal}.',
    "Far away {weather}, and {trouble}.",
    "The {thing} was {look}, and it made the {animal} {feeling}.",
    "Every day the {animal} {act}, and every night it dreamed of the {thing}.",
    "The {friend} was {trait} and did not say a word.",
)
_ENDINGS: Final = (
    "In the end the {animal} gave the {thing} to the {friend}, and both were {feeling}.",
    "At last they came home, ate {meal} and slept well.",
    "From that day on the {animal} knew that {lesson}.",
    "And so the {animal} learned that {lesson}.",
    "They put the {thing} {spot} and were {feeling} ever after.",
    "The {animal} smiled, because {lesson}.",
    "When {weather}, they still tell this story {place}.",
)
_REQUESTS: Final = (
    "Tell me a short story about a {animal} {place}.",
    "Tell me a story about a {animal} {place}.",
    "Write a short story about a {animal} {place}.",
    "Write a little story: a {animal} {place}.",
    "Please tell a story about a {animal} and a {thing}.",
    "I would like to hear a story about a {animal} {place}.",
    "Make up a story about a {trait} {animal} {place}.",
    "Can you tell me a tale about a {animal} who finds a {thing}?",
    "Tell me a bedtime story about a {animal}.",
    "Write a tale about a {thing} {place}.",
    "Write something creative about a {animal}.",
    "Tell me a story.",
    "Invent a short story about a {trait} {animal} and a {friend}.",
)


def is_held_out_pair(animal: str, place: str) -> bool:
    """Say whether stories of this animal at this place are kept out of training."""
    return zlib.crc32(f"{animal} {place}".encode()) % HELD_OUT_ONE_IN == 0


def _article(sentence: str) -> str:
    # The grammar writes "a" everywhere; English wants "an" before a vowel.
    out = sentence
    for vowel in "aeiou":
        out = out.replace(f" a {vowel}", f" an {vowel}").replace(f"A {vowel}", f"An {vowel}")
    return out


def make_story(rng: Random, split: Split) -> tuple[str, str]:
    """Draw a request and a story of five to eight sentences that fits it."""
    while True:
        animal, place = rng.choice(ANIMALS), rng.choice(PLACES)
        if is_held_out_pair(animal, place) == (split == "held_out"):
            break
    fixed = {"animal": animal, "place": place, "thing": rng.choice(THINGS)}
    # One friend, one name and one trait per story; the other slots are drawn anew in every sentence.
    fixed |= {slot: rng.choice(_SLOTS[slot]) for slot in ("friend", "name", "trait")}

    def fill(template: str) -> str:
        free = {slot: rng.choice(choices) for slot, choices in _SLOTS.items()}
        return _article(template.format_map(free | fixed))

    sentences = [fill(rng.choice(_OPENINGS))]
    sentences += [fill(middle) for middle in rng.sample(_MIDDLES, rng.randint(3, 6))]
    sentences.append(fill(rng.choice(_ENDINGS)))
    return fill(rng.choice(_REQUESTS)), " ".join(sentences)
