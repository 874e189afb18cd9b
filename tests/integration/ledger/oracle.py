"""What should have happened: exact integers, no slices, no processes, no database."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

MS_PER_DAY = 86_400_000
Place = tuple[str, int]
"""A budget's name and the first instant of its window."""


@dataclass
class Hold:
    """A request under way."""

    process: str
    amount: int
    places: tuple[Place, ...]
    price: int
    attempt_id: str | None


@dataclass
class Oracle:
    """Budgets `day` and `total`, and every attempt."""

    limits: dict[str, int]
    price: int = 1
    spent: Counter[Place] = field(default_factory=Counter)
    excess: Counter[Place] = field(default_factory=Counter)
    """What charges exceeded their holds by: as much may be let in too much."""
    lent_beyond: Counter[Place] = field(default_factory=Counter)
    """What was lent or booked beyond the limit when it was changed last."""
    holds: list[Hold] = field(default_factory=list)
    rows: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    """State, payer and charge by attempt."""

    @staticmethod
    def places(now_ms: int) -> tuple[Place, ...]:
        return ("day", now_ms // MS_PER_DAY * MS_PER_DAY), ("total", 0)

    def room(self, place: Place) -> int:
        held = sum(hold.amount for hold in self.holds if place in hold.places)
        return self.limits[place[0]] - self.spent[place] - held

    def may_admit(self, amount: int, places: tuple[Place, ...]) -> bool:
        return all(
            amount <= self.room(place) + self.excess[place] + self.lent_beyond[place] for place in places
        )

    def must_admit(self, amount: int, places: tuple[Place, ...]) -> bool:
        return all(amount <= self.room(place) for place in places)

    def settle(self, hold: Hold, tokens: int, state: str) -> None:
        assert hold.attempt_id is not None
        charge, is_tenant = tokens * hold.price, state in {"answered", "cancelled"}
        self.rows[hold.attempt_id] = (state, "tenant" if is_tenant else "platform", charge)
        for place in hold.places if is_tenant else ():
            self.spent[place] += charge
            self.excess[place] += max(0, charge - hold.amount)
        self.holds.remove(hold)

    def die(self, process: str, estimate: int) -> None:
        for hold in [hold for hold in self.holds if hold.process == process]:
            if hold.attempt_id is not None:
                self.rows[hold.attempt_id] = ("interrupted", "platform", estimate)
            self.holds.remove(hold)
