"""Which words do the generated texts use?

Every list below was written for this recipe; nothing is taken from a data set. Made-up names are built from
syllables, so that a model cannot learn them all by heart and has to copy. A word is *held out* when its
checksum says so (`is_held_out`): held-out words appear in the split `new_words` only.
"""

import zlib
from functools import lru_cache
from random import Random
from typing import Final, Literal

Split = Literal["train", "held_out", "new_words"]
"""`held_out`: the words of training in prompts that training never saw. `new_words`: other words too."""


def listed(text: str) -> tuple[str, ...]:
    """Read a list of words that is written as running text."""
    return tuple(text.split())


HELD_OUT_ONE_IN: Final = 8
"""One word in this many is kept for measuring whether copying works for words never seen."""

FIRST_NAMES: Final = listed(
    """
    Anna Ben Clara David Emma Felix Grace Henry Iris Jonas Kate Leo Maria Nina Oscar Paula Quentin Rosa Sam
    Tara Ursula Victor Wendy Xavier Yara Zoe Alice Bruno Carmen Dora Elias Fiona George Hanna Ivan Julia
    Karl Lena Mark Nora Olga Peter Rita Simon Thea Uwe Vera Walter Adam Beth Colin Diana Erik Flora Gina
    Hugo Ida Jack Kira Liam Mona Noah Omar Petra Ralf Sara Tom Una Vince Wanda Amir Bella Cyril Daria Enzo
    Frida Gregor Helen Igor Jana Kevin Linda Milan Nadia Otto Pia Rudi Stella Timo Viola Willi Amara Boris
    Celia Dario Elena Fabian Greta Hector Ingrid Jakob Karin Lukas Marta Nils Olivia Pablo Regina Stefan
    Tilda Valentin
    """
)
SURNAMES: Final = listed(
    """
    Berg Stone Field Marsh Wood Hill Brook Lane Frost Bell Carter Mason Fisher Baker Weaver Miller Cooper
    Turner Parker Hunter Shepherd Potter Archer Gardner Taylor Smith Clark Ward Page Knight King Young Moore
    Reed Hart Fox Wolf Swan Crane Finch Hawk Lamb Rose Lindner Keller Vogel Sommer Winter Huber Kraus Lang
    Roth Schuster Brandt Engel Falk Graf Haas Jung Kuhn Lorenz Maurer Neumann Otten Pohl Richter Sauer Thoma
    Ulrich Voss Weber Ziegler Rossi Greco Costa Ricci Bruni Moretti Silva Pinto Duarte Lopez Marin Vega
    Torres Novak Horak Kovac Dvorak Larsen Holm Dahl Lund Nyberg Ekman Okoro Mensah Tanaka Mori Sato Chen
    Lin Park
    """
)
CITIES: Final = listed(
    """
    Oslo Bern Porto Lyon Graz Turin Ghent Cork Leeds York Bath Bonn Kiel Ulm Nice Metz Brno Gdansk Riga
    Vilnius Tallinn Turku Malmo Aarhus Bergen Delft Leiden Namur Basel Zurich Vienna Linz Prague Krakow
    Split Zadar Varna Sofia Athens Patras Naples Parma Siena Seville Bilbao Braga Faro Dublin Galway Dundee
    Perth Boston Denver Austin Tampa Salem Dayton Toledo Quebec Halifax Lima Quito Bogota Osaka Kyoto Seoul
    Busan Hanoi
    """
)
COMPANY_HEADS: Final = listed(
    """
    Alder Beacon Cedar Delta Ember Falcon Granite Harbor Indigo Juniper Keystone Lantern Meridian Nimbus
    Onyx Prairie Quartz Ridge Summit Timber Umbra Vertex Willow Zenith Aurora Cobalt Copper Crystal Garnet
    Hazel Ivory Jasper Maple Marble Oasis Opal Pioneer Raven Sable Saffron Silver Solar Tidal Velvet Violet
    """
)
COMPANY_TAILS: Final = listed("Labs Works Foods Tools Energy Media Systems Freight Paper Glass Motors Health")
ROLES: Final = listed(
    """
    Engineer Manager Director Designer Analyst Accountant Planner Buyer Architect Consultant Editor Lawyer
    Nurse Teacher Technician Translator Secretary Chemist Librarian Developer
    """
)
PRODUCT_HEADS: Final = listed(
    """
    Oak Pine Steel Glass Blue Green Red White Black Round Small Large Soft Warm Light Heavy Folding Silent
    Garden Office Kitchen Travel Winter Summer Copper Cotton Leather Bamboo Ceramic Wool
    """
)
PRODUCT_TAILS: Final = listed(
    """
    Lamp Chair Table Desk Shelf Kettle Mug Plate Bowl Knife Blanket Pillow Carpet Mirror Clock Radio Printer
    Monitor Keyboard Cable Bag Tent Jacket Scarf Bicycle Helmet Ladder Hammer Drill Bucket
    """
)
EVENT_HEADS: Final = listed(
    """
    Spring Autumn Annual Open City Harbor Jazz Book Film Wine Science Garden Winter Night Family Design
    Chess Poetry Robot Solar Cheese Dance
    """
)
EVENT_TAILS: Final = listed(
    "Fair Festival Meeting Workshop Concert Lecture Market Party Contest Dinner Tour Show"
)
VENUE_HEADS: Final = listed(
    """
    Town Market River Castle Station Mill Union Royal Museum Abbey Bridge Tower Forest Lake Park School
    Library Palace Central Northern
    """
)
VENUE_TAILS: Final = listed("Hall House Square Theatre Garden Gallery Pavilion Arena Cafe Church")
MONTHS: Final = listed(
    "January February March April May June July August September October November December"
)
MAIL_HOSTS: Final = listed("mail post inbox letter office home work team desk studio")
MAIL_ENDINGS: Final = ("example", "test")

_ONSETS: Final = listed("b br c ch d dr f g gr h j k kl l m n p pr r s sh st t tr v w z")
_VOWELS: Final = listed("a e i o u ai ea io ou")
_CODAS: Final = ("", "", "", *listed("l n r s t nd rk m x"))
TWO_SYLLABLES_SHARE: Final = 0.75


def is_held_out(word: str) -> bool:
    """Say whether a word is kept out of training; the same on every machine and Python version."""
    return zlib.crc32(f"word:{word}".encode()) % HELD_OUT_ONE_IN == 0


@lru_cache(maxsize=256)
def _words_of(words: tuple[str, ...], split: Split) -> tuple[str, ...]:
    wanted = split == "new_words"
    return tuple(word for word in words if is_held_out(word) == wanted) or words


def pick(rng: Random, words: tuple[str, ...], split: Split) -> str:
    """Draw one word of the list that belongs to the split.

    A list that has no held-out word at all (a short one) answers from the whole list in every split.
    """
    return rng.choice(_words_of(words, split))


def invented_word(rng: Random, split: Split) -> str:
    """Build a capitalised word of two or three syllables that belongs to the split."""
    wanted = split == "new_words"
    while True:
        syllables = 2 if rng.random() < TWO_SYLLABLES_SHARE else 3
        word = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables)) + rng.choice(
            _CODAS
        )
        word = word.capitalize()
        if is_held_out(word) == wanted:
            return word
