"""Which price is in force for a target at an instant?

The newest entry of the price book that has come into force, else what the target's file says (its card), else
none: unpriced. A book never changes; whoever learns of a new entry makes a new book. A request takes the
prices of one instant with it and is settled at those. Instants are epoch milliseconds.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gateway.errors import NotFound
from gateway.pricing.catalog import Card, Derivation, Source
from gateway.pricing.rates import UNPRICED, Price, no_price

_NEAR = 3
_KNOWN = 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the price book."""

    id: str
    target: str
    price: Price | None
    """None: from then on the card holds again."""
    source: Source
    note: str | None
    effective_from_ms: int
    created_at_ms: int

    @property
    def order(self) -> tuple[int, int, str]:
        """Of two entries that have come into force, the greater one counts."""
        return self.effective_from_ms, self.created_at_ms, self.id


@dataclass(frozen=True, slots=True)
class Quote:
    """A target's price at an instant, and where it comes from."""

    target: str
    price: Price | None
    source: Source | None
    since_ms: int | None
    """None: since its file says so, which nobody wrote down."""
    note: str | None
    derivation: Derivation | None
    following: Entry | None
    """The next entry, which has not come into force."""
    entry: Entry | None
    """The one in force; None: there never was one."""


@dataclass(frozen=True, slots=True)
class Prices:
    """The prices of all targets at one instant. Frozen: this is what a request is settled at."""

    by_target: Mapping[str, Price]
    refused: frozenset[str] = frozenset()
    """Known targets that have no price and may not be used without."""
    allows_unpriced: bool = False
    since_ms: int | None = None
    """First instant at which they hold; None: from the beginning."""
    until_ms: int | None = None
    """First instant at which they do not hold any more; None: to the end."""

    def holds_at(self, at_ms: int) -> bool:
        """Whether these are the prices of that instant."""
        return (self.since_ms is None or self.since_ms <= at_ms) and (
            self.until_ms is None or at_ms < self.until_ms
        )

    def find(self, target: str) -> Price | None:
        """The target's price, if it has one."""
        return self.by_target.get(target)

    def price_of(self, target: str) -> Price:
        """The target's price; `UNPRICED` for one without, if such may be used.

        Raises:
            Unpriced: there is none; an unpriced target is refused, never served for nothing.
        """
        price = self.by_target.get(target)
        if price is None:
            if self.allows_unpriced:
                return UNPRICED
            raise no_price(target)
        return price


class PriceBook:
    """Cards and entries. The prices of the moment are kept until the next entry's instant."""

    def __init__(
        self, cards: Mapping[str, Card], entries: Iterable[Entry] = (), *, allows_unpriced: bool = False
    ) -> None:
        self.cards = cards
        self._allows_unpriced = allows_unpriced
        self._entries: dict[str, list[Entry]] = {target: [] for target in cards}
        for entry in sorted(entries, key=lambda each: each.order):
            if entry.target in self._entries:  # a target that there was once is nobody's price
                self._entries[entry.target].append(entry)
        self._instants = sorted(
            {entry.effective_from_ms for of_target in self._entries.values() for entry in of_target}
        )
        self._latest: Prices | None = None

    def with_entries(self, entries: Iterable[Entry]) -> PriceBook:
        """The same cards with other entries."""
        return PriceBook(self.cards, entries, allows_unpriced=self._allows_unpriced)

    def at(self, now_ms: int) -> Prices:
        """The prices of that instant. Cheap while time goes on: a comparison, between two changes."""
        if self._latest is None or not self._latest.holds_at(now_ms):
            self._latest = self._prices(now_ms)
        return self._latest

    def quote(self, target: str, at_ms: int) -> Quote:
        """The target's price at that instant, and where it comes from.

        Raises:
            NotFound: there is no such target; names the nearest.
        """
        card = self.cards[self.require(target)]
        in_force, following = None, None
        for entry in self._entries[target]:
            if entry.effective_from_ms > at_ms:
                following = entry
                break
            in_force = entry
        since_ms = None if in_force is None else in_force.effective_from_ms
        if in_force is not None and in_force.price is not None:
            return Quote(
                target,
                in_force.price,
                source=in_force.source,
                since_ms=since_ms,
                note=in_force.note,
                derivation=None,
                following=following,
                entry=in_force,
            )
        return Quote(
            target,
            card.price,
            source=None if card.price is None else card.source,
            since_ms=since_ms,
            note=None if in_force is None else in_force.note,
            derivation=card.derivation,
            following=following,
            entry=in_force,
        )

    def quotes(self, at_ms: int) -> list[Quote]:
        """Every target's, as `quote`."""
        return [self.quote(target, at_ms) for target in self.cards]

    def require(self, target: str) -> str:
        """The name of a target.

        Raises:
            NotFound: there is no such target; names the nearest.
        """
        if target not in self.cards:
            near = difflib.get_close_matches(target, list(self.cards), n=_NEAR)
            hint = (
                f"Did you mean {' or '.join(map(repr, near))}?"
                if near
                else f"Known: {', '.join(list(self.cards)[:_KNOWN])}."
            )
            raise NotFound(f"There is no target {target[:64]!r} among the pools and external targets. {hint}")
        return target

    def _prices(self, now_ms: int) -> Prices:
        found = {
            target: price for target in self.cards if (price := self.quote(target, now_ms).price) is not None
        }
        return Prices(
            by_target=found,
            refused=frozenset() if self._allows_unpriced else frozenset(self.cards.keys() - found.keys()),
            allows_unpriced=self._allows_unpriced,
            since_ms=max((at_ms for at_ms in self._instants if at_ms <= now_ms), default=None),
            until_ms=min((at_ms for at_ms in self._instants if at_ms > now_ms), default=None),
        )
