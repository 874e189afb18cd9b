"""What does a little story look like, and how do people ask for one?

A small grammar whose slots hold one or two words each, with a dozen or more choices. An animal, a place and
a thing are carried through, the rest is free, so that the next word of a story is hard to guess where the
next word of a JSON answer is not. Long fixed phrases are avoided: behind their first word all is certain.
"""

import re
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
        "brave small old clever shy lonely happy hungry curious quiet proud kind sleepy young clumsy patient "
        "gentle silly noble nervous cheerful stubborn restless polite"
    ),
    "look": listed(
        "golden tiny broken shiny blue wooden strange heavy silver forgotten red soft dusty green round "
        "crooked ancient painted frozen empty secret magic white muddy"
    ),
    "friend": listed(
        "crow hedgehog mole deer toad heron moth swan lizard weasel spider raven stork kitten calf hamster "
        "pony pigeon beetle cricket rooster ferret parrot lobster"
    ),
    "name": listed("Pip Mira Tobo Luna Otto Nell Bibi Rufus Tilly Momo Fenn Suri Hops Juno Wim Ada"),
    "when": (
        "One {hour}",
        "Late in the {season}",
        "Early in the {season}",
        "After the {weather_noun}",
        "Before the {weather_noun}",
        "On a {sky_look} {hour}",
        "Soon",
        "Later",
        "Suddenly",
        "Again",
    ),
    "hour": listed("morning evening night day afternoon dawn noon midnight Sunday Monday Friday"),
    "season": listed("spring summer autumn winter week year month season"),
    "weather_noun": listed("rain storm snow thunder frost fog feast concert race harvest dance"),
    "feeling": listed(
        "happy afraid tired proud surprised sad calm glad angry hopeful worried warm grateful puzzled lost "
        "brave cold hungry dizzy content jealous"
    ),
    "weather": ("the {sky} was {sky_look}", "the {sky} turned {sky_look}", "the {sky} felt {sky_look}"),
    "sky": listed("wind rain fog snow moon sun thunder air sky night river ground light"),
    "sky_look": listed(
        "loud warm thick pink soft cold bright strange pale dark silver wild grey cool gentle"
    ),
    "spot": ("{near} the {site}", "{near} a {look} {site}"),
    "near": listed("under behind beside near above below inside outside opposite"),
    "site": listed(
        "hill bridge barn meadow river orchard tower fence cave tree pond tunnel gate wall road valley field "
        "mill church well roof window ladder stove haystack chimney"
    ),
    "act": ("{verb} {way} the {site}", "{verb} {how}", "{verb} and {verb}", "{verb} until {hour}"),
    "verb": listed(
        "walked ran climbed crept hopped marched rolled wandered hurried jumped raced danced waded stumbled "
        "sailed crawled waited sang dug listened searched worked travelled knocked"
    ),
    "way": listed("across along behind beneath beside beyond around past through over towards under"),
    "how": listed(
        "slowly quickly bravely carefully alone together happily quietly all twice forever upwards"
    ),
    "trouble": ("the {site} {mishap}", "the {sky} {mishap}", "a {look} {site} {mishap}", "nobody {verb}"),
    "mishap": listed("vanished shook trembled collapsed froze glowed disappeared groaned fell burst stopped"),
    "lesson": ("{virtue} {matters}", "{virtue} and {virtue} belong together", "{virtue} beats {virtue}"),
    "virtue": listed(
        "courage patience kindness friendship honesty laughter hope time music silence home love luck rest"
    ),
    "matters": (
        "matters most",
        "can be quiet",
        "opens every door",
        "is a gift",
        "grows slowly",
        "never ends",
        "wins",
        "comes back",
        "must be shared",
        "is enough",
        "costs nothing",
        "shines",
    ),
    "meal": listed(
        "soup bread honey berries cheese pancakes nuts tea porridge pears plums apples cake butter rice"
    ),
}
_SLOT: Final = re.compile(r"\{(\w+)\}")
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
        if is_held_out_pair(animal, place) == (split != "train"):
            break
    fixed = {"animal": animal, "place": place, "thing": rng.choice(THINGS)}
    # One friend, one name and one trait per story; the other slots are drawn anew wherever they stand.
    fixed |= {slot: rng.choice(_SLOTS[slot]) for slot in ("friend", "name", "trait")}

    def draw(slot: re.Match[str]) -> str:
        name = slot[1]
        return fixed[name] if name in fixed else _SLOT.sub(draw, rng.choice(_SLOTS[name]))

    def fill(template: str) -> str:
        return _article(_SLOT.sub(draw, template))

    sentences = [fill(rng.choice(_OPENINGS))]
    sentences += [fill(middle) for middle in rng.sample(_MIDDLES, rng.randint(3, 6))]
    sentences.append(fill(rng.choice(_ENDINGS)))
    return fill(rng.choice(_REQUESTS)), " ".join(sentences)
