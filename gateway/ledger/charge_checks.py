"""Is every charge what its tokens cost at its price? Counted again.

The database sorts out the attempts whose charge its own integer arithmetic confirms; whatever is left, also
where a number is too large for that arithmetic, is counted again by the function that made the charge.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.inference import TokenUsage
from gateway.ledger.findings import EXAMPLES_MAX, Example, Extent, Invariant, Seen
from gateway.money import TOKENS_PER_RATE
from gateway.pricing.rates import Rates, charge

UNPRICED = "unpriced"
"""The price version of what had no price: such an attempt has no charge, rather than one of 0."""
BATCH_ROWS = 1_000
_METERS = {
    "input": "input_tokens",
    "cached_input": "cached_input_tokens",
    "cache_write": "cache_write_tokens",
    "output": "output_tokens",
    "reasoning": "reasoning_tokens",
}
_RATES = tuple(field.name for field in dataclasses.fields(Rates))


def _statement(dialect: str) -> str:
    number = "CAST(a.{} AS numeric)" if dialect == "postgresql" else "a.{}"
    terms = [f"{number.format(_METERS[name])} * p.{name}" for name in _RATES if name in _METERS]
    twice = f"2 * ({' + '.join(terms)}) + {TOKENS_PER_RATE}"
    again = f"div({twice}, {2 * TOKENS_PER_RATE})"
    doubts = [f"{again} <> a.charge_usd_nanos"]
    if dialect != "postgresql":
        again = f"({twice}) / {2 * TOKENS_PER_RATE}"
        # SQLite makes a float of an integer that is too large.
        doubts = [f"{again} <> a.charge_usd_nanos", f"typeof({twice}) <> 'integer'"]
    doubts += [f"p.{name} <> 0" for name in _RATES if name not in _METERS]
    meters = ", ".join(f"a.{column}" for column in _METERS.values())
    rates = ", ".join(f"p.{name} AS rate_{name}" for name in _RATES)
    return f"""
SELECT a.attempt_id, a.price_version, a.charge_usd_nanos, p.version, {meters}, {rates}
FROM attempts a LEFT JOIN price_versions p ON p.version = a.price_version
WHERE a.started_at_ms >= :since_ms AND (
  (a.charge_usd_nanos IS NULL AND a.price_version <> '{UNPRICED}')
  OR (a.charge_usd_nanos IS NOT NULL AND (p.version IS NULL OR {" OR ".join(doubts)}))
)
"""  # noqa: S608 - ours


async def _charges(session: AsyncSession, extent: Extent) -> Seen:
    bounds = {"since_ms": extent.since_ms}
    count = text("SELECT count(*) FROM attempts WHERE started_at_ms >= :since_ms")
    looked_at = (await session.execute(count, bounds)).scalar_one()
    statement = text(_statement(session.get_bind().dialect.name))
    breaches = 0
    examples: list[Example] = []
    found = await session.stream(statement, bounds)
    async for rows in found.mappings().partitions(BATCH_ROWS):
        for row in rows:
            example = _breach(row)
            if example is not None:
                breaches += 1
                examples += [example][: EXAMPLES_MAX - len(examples)]
    return Seen(looked_at, breaches, tuple(examples))


def _breach(row: Any) -> Example | None:
    """What is wrong with a charge, if anything is."""
    example: Example = {
        "attempt": row["attempt_id"],
        "price_version": row["price_version"],
        "charge_usd_nanos": row["charge_usd_nanos"],
        "counted_again_usd_nanos": None,
    }
    if row["charge_usd_nanos"] is None or row["version"] is None:
        return example  # no charge though it had a price, or a charge at a price that nobody knows
    usage = TokenUsage(**{meter: row[column] for meter, column in _METERS.items()})
    try:
        again = charge(usage, Rates(**{name: row[f"rate_{name}"] for name in _RATES}))
    except ValueError:
        return None  # a count below zero, of which another invariant tells
    if again == row["charge_usd_nanos"]:
        return None
    return {**example, "counted_again_usd_nanos": again}


CHARGES = (Invariant("I-14", "every charge is what its tokens cost at its price", (_charges,)),)
