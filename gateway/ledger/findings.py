"""How is an invariant of the books looked at, and how is what was found told?

A look counts the rows that it saw and those that break the rule, and keeps a few of these as examples. All
numbers are integers. The statements are text, because the same text must be readable beside the rule that it
checks; they run on SQLite and PostgreSQL alike. `:since_ms` bounds those that go row by row.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

EXAMPLES_MAX = 5
Example = dict[str, int | str | None]
"""Ids and amounts of one breach, by the name of the column."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of the books is looked at."""

    since_ms: int
    """Attempts that started, and bookings that were made, from then on; 0: all."""
    now_ms: int
    """The database's clock."""
    grace_ms: int
    """How long a slice may be over before it is booked as unattributed."""

    def parameters(self) -> dict[str, int]:
        """What the statements may name."""
        return {
            "since_ms": self.since_ms,
            "hour_ms": self.since_ms - self.since_ms % 3_600_000,
            "day_ms": self.since_ms - self.since_ms % 86_400_000,
            "over_ms": self.now_ms - self.grace_ms - SWEEP_MS,
        }


SWEEP_MS = 600_000
"""Silent slices are looked for at intervals; a late look is no breach."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look saw."""

    looked_at: int = 0
    breaches: int = 0
    examples: tuple[Example, ...] = ()
    note: str = ""


Look = Callable[[AsyncSession, Extent], Awaitable[Seen]]


@dataclass(frozen=True, slots=True)
class Invariant:
    """What must hold at every moment, and how to see whether it does."""

    id: str
    says: str
    looks: tuple[Look, ...]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an invariant holds."""

    id: str
    says: str
    looked_at: int
    """Rows, or groups of rows."""
    breaches: int
    examples: list[Example]
    note: str = ""
    """What is worth knowing and no breach."""


async def look_at(session: AsyncSession, invariant: Invariant, extent: Extent) -> Finding:
    """Whether one invariant holds."""
    seen = [await look(session, extent) for look in invariant.looks]
    examples = [example for one in seen for example in one.examples]
    return Finding(
        id=invariant.id,
        says=invariant.says,
        looked_at=sum(one.looked_at for one in seen),
        breaches=sum(one.breaches for one in seen),
        examples=examples[:EXAMPLES_MAX],
        note=" ".join(one.note for one in seen if one.note),
    )


def by_sql(*, broken: str, of: str | None = None) -> Look:
    """A look by two statements.

    Args:
        broken: selects a row for each breach.
        of: counts what was looked at; None: the same rows as another look of the invariant.
    """
    # Their number and the first of them at once.
    first = f"SELECT broken.*, count(*) OVER () AS breaches_ FROM ({broken}) AS broken LIMIT {EXAMPLES_MAX}"  # noqa: S608 - ours

    async def look(session: AsyncSession, extent: Extent) -> Seen:
        looked_at = 0 if of is None else int((await _run(session, of, extent)).scalar_one())
        rows = [dict(row) for row in (await _run(session, first, extent)).mappings()]
        breaches = int(rows[0]["breaches_"]) if rows else 0
        return Seen(looked_at, breaches, tuple(example_of(row) for row in rows))

    return look


async def _run(session: AsyncSession, statement: str, extent: Extent) -> Any:
    named = {name: value for name, value in extent.parameters().items() if f":{name}" in statement}
    return await session.execute(text(statement), named)


def example_of(row: dict[str, Any]) -> Example:
    """A row as plain values: PostgreSQL's sums are decimals."""
    return {
        name: int(value) if isinstance(value, Decimal) else value
        for name, value in row.items()
        if name != "breaches_"
    }
