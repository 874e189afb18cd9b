"""What does a text to be turned into JSON look like, and what is its right answer?

Four kinds of record (contact, invoice, order, event), each told in sentences drawn from several wordings.
Every value of the answer stands in the text letter for letter: the task is to find and to copy, never to
compute.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

from backends.reference import words
from backends.reference.words import Split, invented_word, pick

INVENTED_SHARE: Final = 0.3
"""Share of names that are built from syllables instead of drawn from a list."""


ISO_DATE_SHARE: Final = 0.4
PRIVATE_CUSTOMER_SHARE: Final = 0.5
"""Share of invoices to a person; the others go to a company."""
FILLER_SHARE: Final = 0.25
"""Share of texts with a sentence that states nothing."""


@dataclass(frozen=True)
class Record:
    """A short text and the values it states, by key."""

    text: str
    values: Mapping[str, str]


def _first_name(rng: Random, split: Split) -> str:
    return invented_word(rng, split) if rng.random() < INVENTED_SHARE else pick(rng, words.FIRST_NAMES, split)


def _surname(rng: Random, split: Split) -> str:
    return invented_word(rng, split) if rng.random() < INVENTED_SHARE else pick(rng, words.SURNAMES, split)


def _name(rng: Random, split: Split) -> str:
    return f"{_first_name(rng, split)} {_surname(rng, split)}"


def _city(rng: Random, split: Split) -> str:
    return invented_word(rng, split) if rng.random() < INVENTED_SHARE / 2 else pick(rng, words.CITIES, split)


def _company(rng: Random, split: Split) -> str:
    head = (
        invented_word(rng, split) if rng.random() < INVENTED_SHARE else pick(rng, words.COMPANY_HEADS, split)
    )
    return f"{head} {rng.choice(words.COMPANY_TAILS)}"


def _email(rng: Random, split: Split, name: str) -> str:
    first, last = name.lower().split(" ")
    local = rng.choice((f"{first}.{last}", first, f"{first}.{last}", f"{first[0]}.{last}"))
    host = (
        invented_word(rng, split).lower()
        if rng.random() < INVENTED_SHARE / 2
        else rng.choice(words.MAIL_HOSTS)
    )
    return f"{local}@{host}.{rng.choice(words.MAIL_ENDINGS)}"


def _phone(rng: Random) -> str:
    return f"{rng.randint(200, 999)}-{rng.randint(1000, 9999)}"


def _date(rng: Random) -> str:
    day, month = rng.randint(1, 28), rng.randint(1, 12)
    if rng.random() < ISO_DATE_SHARE:
        return f"2026-{month:02d}-{day:02d}"
    return f"{day} {words.MONTHS[month - 1]}"


def _price(rng: Random) -> str:
    amount = rng.choice((rng.randint(5, 99), rng.randint(100, 999), rng.randint(1000, 9999)))
    cents = rng.choice(("", "", ".50", ".90", ".00", f".{rng.randint(10, 99)}"))
    return f"${amount}{cents}"


def _contact(rng: Random, split: Split) -> dict[str, str]:
    name = _name(rng, split)
    return {
        "name": name,
        "email": _email(rng, split, name),
        "phone": _phone(rng),
        "city": _city(rng, split),
        "company": _company(rng, split),
        "role": pick(rng, words.ROLES, split),
    }


def _invoice(rng: Random, split: Split) -> dict[str, str]:
    letters = rng.choice(("INV", "R", "BILL", "A", "F"))
    return {
        "number": f"{letters}-{rng.randint(100, 9999)}",
        "customer": _name(rng, split) if rng.random() < PRIVATE_CUSTOMER_SHARE else _company(rng, split),
        "total": _price(rng),
        "date": _date(rng),
        "city": _city(rng, split),
    }


def _order(rng: Random, split: Split) -> dict[str, str]:
    return {
        "product": f"{pick(rng, words.PRODUCT_HEADS, split)} {pick(rng, words.PRODUCT_TAILS, split)}",
        "quantity": str(rng.randint(2, 60)),
        "customer": _name(rng, split),
        "price": _price(rng),
        "city": _city(rng, split),
        "date": _date(rng),
    }


def _event(rng: Random, split: Split) -> dict[str, str]:
    return {
        "event": f"{pick(rng, words.EVENT_HEADS, split)} {pick(rng, words.EVENT_TAILS, split)}",
        "place": f"{pick(rng, words.VENUE_HEADS, split)} {pick(rng, words.VENUE_TAILS, split)}",
        "city": _city(rng, split),
        "date": _date(rng),
        "time": f"{rng.randint(8, 21)}:{rng.choice(('00', '15', '30', '45'))}",
        "host": _name(rng, split),
    }


_CONTACT: Final = {
    "name": (
        "{name} is our new contact.",
        "Please meet {name}.",
        "The person to ask is {name}.",
        "I spoke with {name}.",
        "My name is {name}.",
        "This card belongs to {name}.",
        "{name} sent us a note.",
    ),
    "name email": (
        "You can reach {name} at {email}.",
        "{name} has the address {email}.",
        "Write to {name} ({email}).",
    ),
    "name company": (
        "{name} works for {company}.",
        "{name} from {company} called.",
        "{name} joined {company}.",
    ),
    "name city": ("{name} lives in {city}.", "{name} moved to {city}.", "{name} is based in {city}."),
    "email": (
        "The email is {email}.",
        "Send mail to {email}.",
        "Use {email} for letters.",
        "Email: {email}.",
    ),
    "phone": (
        "The phone number is {phone}.",
        "Call {phone}.",
        "Phone: {phone}.",
        "The line {phone} is open all day.",
    ),
    "city": ("The office is in {city}.", "Home is {city}.", "City: {city}.", "Visits are welcome in {city}."),
    "company": ("The employer is {company}.", "Company: {company}.", "The firm is called {company}."),
    "role": ("The job title is {role}.", "The role is {role}.", "Role: {role}."),
    "company role": ("At {company} the role is {role}.", "The post at {company} is {role}."),
}
_INVOICE: Final = {
    "number": (
        "Invoice {number} is attached.",
        "The invoice number is {number}.",
        "This is about bill {number}.",
        "Number: {number}.",
    ),
    "number customer": ("Invoice {number} goes to {customer}.", "We sent {number} to {customer}."),
    "number total": ("Invoice {number} comes to {total}.", "Bill {number} is for {total}."),
    "customer": ("The customer is {customer}.", "It was made out to {customer}.", "Customer: {customer}."),
    "customer total": ("{customer} owes {total}.", "{customer} has to pay {total}."),
    "total": (
        "The total is {total}.",
        "Please pay {total}.",
        "Total: {total}.",
        "The sum of {total} is open.",
    ),
    "date": ("It is due on {date}.", "The date is {date}.", "Please pay by {date}.", "Date: {date}."),
    "city": ("It was written in {city}.", "The branch in {city} sent it.", "City: {city}."),
}
_ORDER: Final = {
    "product": ("The product is the {product}.", "Item: {product}.", "The order is for the {product}."),
    "product quantity": (
        "We need {quantity} pieces of the {product}.",
        "Please pack {quantity} of the {product}.",
        "The order lists {quantity} x {product}.",
    ),
    "customer product": ("{customer} ordered the {product}.", "{customer} wants to buy the {product}."),
    "quantity": ("The quantity is {quantity}.", "Quantity: {quantity}.", "Send {quantity} of them."),
    "customer": ("The customer is {customer}.", "{customer} placed the order.", "Customer: {customer}."),
    "price": ("The price is {price}.", "It costs {price}.", "Price: {price}.", "We agreed on {price}."),
    "city": ("Ship it to {city}.", "It goes to {city}.", "City: {city}.", "Delivery is in {city}."),
    "date": ("It should arrive on {date}.", "The date is {date}.", "Delivery is planned for {date}."),
}
_EVENT: Final = {
    "event": (
        "The {event} is coming.",
        "You are invited to the {event}.",
        "Event: {event}.",
        "Do not miss the {event}.",
    ),
    "event place": ("The {event} takes place at the {place}.", "The {event} is held in the {place}."),
    "event date": ("The {event} is on {date}.", "The {event} opens on {date}."),
    "place": ("The place is the {place}.", "Come to the {place}.", "Place: {place}."),
    "city": ("It is in {city}.", "All of {city} will be there.", "City: {city}."),
    "date": ("The date is {date}.", "It happens on {date}.", "Date: {date}."),
    "date time": ("It starts on {date} at {time}.", "Be there on {date} at {time}."),
    "time": ("Doors open at {time}.", "It starts at {time}.", "Time: {time}."),
    "host": ("The host is {host}.", "{host} will open it.", "Host: {host}.", "Ask {host} for tickets."),
}
_Kind = tuple[Callable[[Random, Split], dict[str, str]], dict[str, tuple[str, ...]]]
_KINDS: Final[tuple[_Kind, ...]] = (
    (_contact, _CONTACT),
    (_invoice, _INVOICE),
    (_order, _ORDER),
    (_event, _EVENT),
)
_FILLERS: Final = (
    "Thank you.",
    "Best regards.",
    "The weather was fine.",
    "Please keep this note.",
    "We are happy about it.",
    "Nothing else is known.",
    "More will follow soon.",
)

_REQUESTS: Final = (
    "Extract {keys} as JSON: {text}",
    "Extract {keys} as JSON.\n{text}",
    "Extract the {keys} from this text as JSON: {text}",
    "From the text below give {keys} as JSON.\n{text}",
    "Return a JSON object with the keys {keys}.\nText: {text}",
    "Give me {keys} as JSON. Text: {text}",
    "{text}\nExtract {keys} as JSON.",
    "{text}\nReturn {keys} as a JSON object.",
    "Read this: {text}\nNow answer with JSON, keys {keys}.",
    "Turn this text into JSON with {keys}: {text}",
    "What are {keys} in this text? Answer in JSON. {text}",
)
_FOLLOW_UPS: Final = (
    "Now give {keys} as JSON.",
    "And {keys}, please.",
    "Extract {keys} from the same text.",
    "Also return {keys} as JSON.",
)


def make_record(rng: Random, split: Split) -> Record:
    """Draw a record whose text states at least three of its keys, in random order."""
    draw_values, wordings = rng.choice(_KINDS)
    values = draw_values(rng, split)
    wanted = rng.sample(sorted(values), rng.randint(3, min(5, len(values))))
    sentences: list[str] = []
    covered: set[str] = set()
    while missing := [key for key in wanted if key not in covered]:
        fits = [
            group
            for group in wordings
            if missing[0] in group.split() and not covered.intersection(group.split())
        ]
        group = rng.choice(fits)
        sentences.append(rng.choice(wordings[group]).format_map(values))
        covered.update(group.split())
    rng.shuffle(sentences)
    if rng.random() < FILLER_SHARE:
        sentences.insert(rng.randint(0, len(sentences)), rng.choice(_FILLERS))
    return Record(" ".join(sentences), {key: values[key] for key in values if key in covered})


def list_keys(rng: Random, keys: list[str]) -> str:
    """Word a list of keys in one of the ways people do."""
    style = rng.choices(("quoted", "spoken", "plain"), weights=(15, 35, 50))[0]
    if style == "quoted":
        return ", ".join(f'"{key}"' for key in keys)
    if style == "spoken" and len(keys) > 1:
        return ", ".join(keys[:-1]) + " and " + keys[-1]
    return ", ".join(keys)


def choose_keys(rng: Random, record: Record) -> list[str]:
    """Draw two to four keys of the record, in random order."""
    available = sorted(record.values)
    return rng.sample(available, rng.randint(2, min(4, len(available))))


def request(rng: Random, record: Record, keys: list[str]) -> str:
    """Word a request for these keys that carries the record's text."""
    return rng.choice(_REQUESTS).format(keys=list_keys(rng, keys), text=record.text)


def follow_up(rng: Random, keys: list[str]) -> str:
    """Word a second request about a text that was already given."""
    return rng.choice(_FOLLOW_UPS).format(keys=list_keys(rng, keys))


def answer(record: Record, keys: list[str]) -> str:
    """Write the one right answer: a JSON object with exactly these keys, in this order."""
    return json.dumps({key: record.values[key] for key in keys})
