"""By how much does a bill differ from the ledger, and why?

Pure. For each pool and day the difference is taken apart, in this order, in integers of nano-USD, so that
every part of it is in exactly one class and the classes add up to it: a bill in another currency (what its
rate makes more than ours), days that end elsewhere than in UTC (one whole number of hours explains most of
what is off), lines that only one side has, another quantity at our price, and another price for what is left.
What is within the tolerance is rounding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from gateway.ledger.bills import BillLine

HOURS_PER_DAY: Final = 24
SHIFTS_H: Final = (*range(-12, 0), *range(1, 15))
"""Time zones, in hours ahead of UTC."""
SHIFT_EXPLAINS: Final = 10
"""A zone is believed if it leaves at most one part in so many of what is off."""
DAYS_FOR_A_ZONE: Final = 3
TOLERANCE_USD_NANOS: Final = 10_000_000
"""A cent a line: bills are rounded to cents."""


class Gap(StrEnum):
    """Why a bill differs."""

    MISSING_IN_LEDGER = "missing_in_ledger"
    MISSING_IN_BILL = "missing_in_bill"
    PRICE = "price"
    QUANTITY = "quantity"
    ROUNDING = "rounding"
    TIME_ZONE = "time_zone"
    CURRENCY = "currency"


@dataclass(slots=True)
class Amount:
    """A quantity and what it costs."""

    quantity: int = 0
    usd_nanos: int = 0

    def add(self, quantity: int, usd_nanos: int) -> None:
        """More of it."""
        self.quantity += quantity
        self.usd_nanos += usd_nanos


Hours = Mapping[str, Mapping[int, Amount]]
"""What the ledger says, by pool and hour since 1970."""


@dataclass(frozen=True, slots=True)
class Line:
    """A pool's day on both sides."""

    pool: str
    day: int
    bill: Amount
    ledger: Amount
    gaps: Mapping[Gap, int]
    """Nano-USD by class; together the difference."""

    @property
    def difference_usd_nanos(self) -> int:
        """What the bill has more."""
        return self.bill.usd_nanos - self.ledger.usd_nanos


@dataclass(slots=True)
class Comparison:
    """A bill beside the ledger."""

    lines: list[Line] = field(default_factory=list)
    zones_h: dict[str, int] = field(default_factory=dict)
    """Hours ahead of UTC at which the bill's days end, where that is not 0, by pool."""
    tolerance_usd_nanos: int = TOLERANCE_USD_NANOS

    @property
    def bill_usd_nanos(self) -> int:
        """The whole bill."""
        return sum(line.bill.usd_nanos for line in self.lines)

    @property
    def ledger_usd_nanos(self) -> int:
        """What the ledger has."""
        return sum(line.ledger.usd_nanos for line in self.lines)

    def by_class(self) -> dict[Gap, int]:
        """Nano-USD by class, those that are not nothing."""
        return {gap: amount for gap in Gap if (amount := sum(line.gaps.get(gap, 0) for line in self.lines))}

    def by_pool_and_class(self) -> dict[tuple[str, Gap], int]:
        """The same, by pool too."""
        sums: defaultdict[tuple[str, Gap], int] = defaultdict(int)
        for line in self.lines:
            for gap, amount in line.gaps.items():
                sums[line.pool, gap] += amount
        return {key: amount for key, amount in sorted(sums.items()) if amount}


def compare(
    bill: Iterable[BillLine],
    ledger: Hours,
    *,
    days: range,
    tolerance_usd_nanos: int = TOLERANCE_USD_NANOS,
) -> Comparison:
    """Take the differences of a month apart.

    Args:
        bill: its lines.
        ledger: by the hour, some hours before and after the month included.
        days: the month's, since 1970.
        tolerance_usd_nanos: of one line.
    """
    billed: defaultdict[str, defaultdict[int, Amount]] = defaultdict(lambda: defaultdict(Amount))
    by_currency: defaultdict[tuple[str, int], int] = defaultdict(int)
    for line in bill:
        billed[line.pool][line.day].add(line.quantity, line.usd_nanos)
        by_currency[line.pool, line.day] += line.currency_usd_nanos
    made = Comparison(tolerance_usd_nanos=tolerance_usd_nanos)
    for pool in sorted({*billed, *ledger}):
        hours = ledger.get(pool, {})
        of_pool: Mapping[int, Amount] = billed.get(pool, {})
        zone_h = _zone(of_pool, hours, days)
        if zone_h:
            made.zones_h[pool] = zone_h
        for day in sorted({*of_pool, *days}):
            ours = _day(hours, day, 0) if day in days else Amount()
            moved = _day(hours, day, zone_h) if zone_h else ours
            theirs = of_pool.get(day)
            if theirs is None and ours == Amount() == moved:
                continue
            gaps = _gaps(
                theirs, ours, moved, currency=by_currency.get((pool, day), 0), tolerance=tolerance_usd_nanos
            )
            made.lines.append(Line(pool, day, theirs or Amount(), ours, gaps))
    return made


def _day(hours: Mapping[int, Amount], day: int, zone_h: int) -> Amount:
    """The ledger's day where days end so many hours before those of UTC."""
    total = Amount()
    first = day * HOURS_PER_DAY - zone_h
    for hour in range(first, first + HOURS_PER_DAY):
        if hour in hours:
            total.add(hours[hour].quantity, hours[hour].usd_nanos)
    return total


def _zone(billed: Mapping[int, Amount], hours: Mapping[int, Amount], days: range) -> int:
    """The zone whose days explain the bill's quantities; 0: UTC does, or none."""
    shown = [day for day in days if day in billed]
    if len(shown) < DAYS_FOR_A_ZONE:
        return 0

    def off(zone_h: int) -> int:
        return sum(abs(billed[day].quantity - _day(hours, day, zone_h).quantity) for day in shown)

    now = off(0)
    best = min(SHIFTS_H, key=lambda zone_h: (off(zone_h), abs(zone_h)))
    return best if now and off(best) * SHIFT_EXPLAINS <= now else 0


def _gaps(
    theirs: Amount | None, ours: Amount, moved: Amount, *, currency: int, tolerance: int
) -> dict[Gap, int]:
    gaps = {Gap.CURRENCY: currency, Gap.TIME_ZONE: moved.usd_nanos - ours.usd_nanos}
    bill = theirs or Amount()
    rest = bill.usd_nanos - moved.usd_nanos - currency
    if theirs is None:
        gaps[Gap.MISSING_IN_BILL] = rest
    elif moved == Amount():
        gaps[Gap.MISSING_IN_LEDGER] = rest
    elif abs(rest) <= tolerance:
        gaps[Gap.ROUNDING] = rest
    else:
        by_quantity = _at_our_price(bill.quantity - moved.quantity, moved, rest)
        by_price = rest - by_quantity
        gaps[Gap.QUANTITY] = by_quantity
        gaps[Gap.ROUNDING if abs(by_price) <= tolerance else Gap.PRICE] = by_price
    return {gap: amount for gap, amount in gaps.items() if amount}


def _at_our_price(quantity: int, ours: Amount, rest: int) -> int:
    """What a quantity costs at the price of ours; all that is off where ours has no quantity."""
    if not ours.quantity:
        return rest
    numerator, denominator = quantity * ours.usd_nanos, ours.quantity
    return (2 * numerator + denominator) // (2 * denominator)


def totals_by(lines: Sequence[Line]) -> dict[str, tuple[int, int]]:
    """Bill and ledger by pool, nano-USD."""
    sums: dict[str, tuple[int, int]] = {}
    for line in lines:
        bill, ledger = sums.get(line.pool, (0, 0))
        sums[line.pool] = (bill + line.bill.usd_nanos, ledger + line.ledger.usd_nanos)
    return sums
