"""Two months of books for FOCUS files: price change, cached tokens, refunds, an external target, GPUs."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncSession

from backends.replica_time import Phase
from backends.supply_spec import Count, PriceKind
from gateway.inference import TokenUsage
from gateway.ledger.focus_terms import FocusTerms
from gateway.ledger.supply import MS_PER_HOUR, Key, LineKind, Price, Span, Terms, Work, pool_hour
from gateway.ledger.supply_store import book_hour
from gateway.pricing.rates import Price as TokenPrice
from gateway.pricing.rates import Rates, charge
from gateway.pricing.store import remember_versions
from tests.support.spend_rows import attempt_row, book_rows

START: Final = datetime(2026, 10, 1, tzinfo=UTC)
END: Final = datetime(2026, 12, 1, tzinfo=UTC)
START_MS, END_MS = (int(moment.timestamp()) * 1000 for moment in (START, END))
NOVEMBER_MS: Final = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp()) * 1000
TERMS: Final = FocusTerms(publishers={"outside": "openai"}, region_id="eu-1", region="Frankfurt")
RATES: Final = {
    "plain@old": Rates(400_000_001, 40_000_000, 0, 800_000_000, 800_000_000),
    "plain@new": Rates(333_333_333, 33_333_333, 1, 900_000_007, 900_000_007),
    "outside@1": Rates(3_000_000_000, 300_000_000, 3_750_000_000, 15_000_000_000, 15_000_000_000, 1_000_003),
}
_METERS: Final = (
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
)


def attempts(count: int, *, seed: int = 5) -> list[dict[str, Any]]:
    """Attempts, and what takes some of them back: within their month, and in the next one."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        bucket = draw.randrange((END_MS - START_MS) // (40 * MS_PER_HOUR) - 1)
        at_ms = START_MS + bucket * 40 * MS_PER_HOUR + draw.randrange(MS_PER_HOUR)  # several to an hour
        pool = draw.choice(["plain", "plain", "outside"])
        version = "outside@1" if pool == "outside" else ("plain@old", "plain@new")[at_ms >= NOVEMBER_MS + 9]
        tokens = (
            draw.randrange(5_000),
            draw.choice([0, draw.randrange(9_000)]),
            draw.choice([0, 0, draw.randrange(900)]),
            draw.randrange(2_000),
            draw.choice([0, draw.randrange(700)]),
        )
        rows.append(
            attempt_row(
                number,
                started_at_ms=at_ms,
                ended_at_ms=at_ms + 900,
                tenant_id=(tenant := draw.choice(["ten_1", "ten_2"])),
                project_id=f"prj_{tenant}",
                pool=pool,
                payer=draw.choice(["tenant"] * 4 + ["platform"]),
                price_version=version,
                tags=draw.choice([{}, {"team": "search"}, {"team": "rag", "of": 'a "quoted", Grüße'}]),
                charge_usd_nanos=charge(TokenUsage(*tokens), RATES[version]),
                **dict(zip(_METERS, tokens, strict=True)),
            )
        )
    rows.append(attempt_row(count, started_at_ms=START_MS, price_version="unpriced", charge_usd_nanos=None))
    taken = [row for row in rows if row["started_at_ms"] < NOVEMBER_MS and row["charge_usd_nanos"]]
    same_month = [reversal(row, row["started_at_ms"] + MS_PER_HOUR) for row in taken[:5]]
    later = [reversal(row, NOVEMBER_MS + 3 * MS_PER_HOUR) for row in taken[5:12]]
    odd = attempt_row(
        count + 1,
        attempt_id="rev_goodwill",
        attempt_number=0,
        started_at_ms=START_MS,
        price_version="plain@old",
        pool="plain",
        input_tokens=0,
        output_tokens=0,
        charge_usd_nanos=-12_345,
    )
    return [*rows, *same_month, *later, odd]


def reversal(row: dict[str, Any], at_ms: int) -> dict[str, Any]:
    """What takes an attempt back, booked at another instant."""
    negative = {name: -row[name] for name in (*_METERS, "charge_usd_nanos")}
    when = {"started_at_ms": at_ms, "ended_at_ms": at_ms}
    return {**row, **negative, **when, "attempt_id": f"rev_{row['attempt_id']}", "attempt_number": 0}


async def fill(session: AsyncSession, *, count: int = 120) -> list[dict[str, Any]]:
    """Books of both sides; returns the attempts. The caller commits."""
    prices = {version.partition("@")[0] + version[-1]: version for version in RATES}
    for target, version in prices.items():
        await remember_versions(session, {target: TokenPrice(version, RATES[version])}, now_ms=1)
    rows = attempts(count)
    await book_rows(session, rows)
    await _supply(session)
    return rows


def _terms(pool: str, kind: PriceKind, rate: int) -> Terms:
    return Terms(pool, (Price(0, kind, rate),), Count.SEEN, "driver", (f"{pool}-0", f"{pool}-1"), 2)


async def _supply(session: AsyncSession) -> None:
    pools = [
        _terms("plain", PriceKind.ON_DEMAND, 5_380_000_001),
        _terms("kept", PriceKind.RESERVED, 7_777_777_777),
        _terms("cheap", PriceKind.SPOT, 2_250_000_000),
    ]
    for terms in pools:
        for number in range(6):
            hour_ms = (START_MS if number < 3 else NOVEMBER_MS) + number * MS_PER_HOUR
            await _hour(session, terms, hour_ms, booked_in_ms=hour_ms, until_ms=3_000_000 + number * 7)
        # Found in November: a replica had run longer in October.
        await _hour(session, terms, START_MS, booked_in_ms=NOVEMBER_MS + 9 * MS_PER_HOUR, until_ms=1_111_111)


async def _hour(
    session: AsyncSession, terms: Terms, hour_ms: int, *, booked_in_ms: int, until_ms: int
) -> None:
    replica = terms.replicas[0]
    spans = [
        Span(replica, Phase.STARTING, hour_ms, hour_ms + 60_000),
        Span(replica, Phase.SERVING, hour_ms + 60_000, hour_ms + until_ms),
    ]
    works = [
        Work(f"att_{tenant}", replica, hour_ms + 100_000 * tenant, hour_ms + 700_001, 1_000, Key(*key))
        for tenant, key in (
            (1, (LineKind.REQUEST, "ten_1", "prj_ten_1", "key1", "auto", "code")),
            (2, (LineKind.REQUEST, "ten_2", "prj_ten_2", "key2", "auto", "qa")),
            (3, (LineKind.FAILED, "ten_2", "prj_ten_2", "key2", "auto", "qa")),
        )
    ]
    made = pool_hour(terms, hour_ms, spans, works=works)
    await book_hour(session, terms, made, booked_in_ms=booked_in_ms, booked_before_ms=1, now_ms=1)
