"""What were tenants charged, as rows of FOCUS: hour, tenant, project, model, pool, price and meter?

Amounts come from the ledger, never from a second multiplication: a group's charge is the sum of its
attempts', each of which was rounded to a nano-USD once. Its meters are billed what they come to by unit
price, rounded to a nano-USD; the largest takes what is left, and every row says how far it is from its
product (`x_RoundingResidue`). A difference that rounding cannot explain is a row of its own, an adjustment.

Who pays is the sub-account: the tenant, or the platform for attempts that it bears. A correction (attempt
number 0) that takes back an attempt of an earlier month keeps that attempt's hour as its charge period and
has the class Correction; within a month it is a difference like any other. Usage that was booked after its
month was closed is in no row of that month: it is billed in the period in which it counts, keeps its own hour
as its charge period, and has the class Correction too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import BigInteger, Text, and_, case, cast, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased
from sqlmodel import col

from gateway.inference import Payer
from gateway.ledger.cuts import MS_PER_HOUR, Cut
from gateway.ledger.exports import Amounts, Names, Piece
from gateway.ledger.focus_columns import (
    PICO,
    PICO_PER_NANO,
    PLATFORM,
    RowMaker,
    constant,
    flat_json,
    periods,
    prices,
    rounded,
)
from gateway.ledger.late_usage import counted_parts
from gateway.ledger.tables import Attempt
from gateway.money import TOKENS_PER_RATE
from gateway.pricing.rates import UNPRICED, Rates
from gateway.pricing.tables import PriceVersion

PIECE_GROUPS: Final = 2_000
_CORRECTION_CHARS = len("rev_")
_PLACES: Final = 1_000_000
"""Nano-USD times this: what a count of tokens times a rate is in."""


class Meter(NamedTuple):
    """A token class and how FOCUS names it."""

    field: str
    """Of the ledger's sums and of `Rates`."""
    sku: str
    tier: str
    title: str
    token_type: str
    cache_status: str | None
    says: str


METERS: Final = (
    Meter("input", "input", "uncached", "Input Tokens", "input", "uncached", "input tokens"),
    Meter(
        "cached_input", "input", "cached", "Input Tokens", "input", "cached", "input tokens from the cache"
    ),
    Meter("cache_write", "input", "cache-write", "Input Tokens", "input", "written", "input tokens cached"),
    Meter("output", "output", "generated", "Output Tokens", "output", None, "output tokens"),
    Meter("reasoning", "output", "reasoning", "Output Tokens", "reasoning", None, "reasoning tokens"),
)
REQUESTS: Final = Meter("per_request", "requests", "answered", "Requests", "request", None, "requests")
FREE: Final = Rates(0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Part:
    """What one meter of a group comes to."""

    meter: Meter
    quantity: int
    """Tokens, or requests."""
    rate_usd_nanos: int
    """Per million tokens, or per request."""
    billed_usd_nanos: int

    @property
    def is_tokens(self) -> bool:
        """It is priced by the million."""
        return self.meter is not REQUESTS


def split(
    counts: Mapping[str, int], rates: Rates, *, charge_usd_nanos: int, attempts: int
) -> tuple[list[Part], int]:
    """A group's charge by meter, and what no meter explains; together exactly the charge, nano-USD.

    Args:
        counts: tokens by meter; `per_request`: how many attempts used a token, less those taken back.
        rates: by which they were charged.
        charge_usd_nanos: as booked.
        attempts: each was rounded once, by half a nano-USD at most.
    """
    fine: list[tuple[Meter, int, int, int]] = []
    for meter in (*METERS, REQUESTS):
        quantity, rate = counts[meter.field], getattr(rates, meter.field)
        if quantity and (rate or meter is not REQUESTS):
            scale = _PLACES if meter is REQUESTS else 1
            fine.append((meter, quantity, rate, quantity * rate * scale))
    off = charge_usd_nanos * _PLACES - sum(exact for *_, exact in fine)
    is_rounding = 2 * abs(off) <= attempts * _PLACES
    if not fine or not is_rounding:
        parts = [Part(meter, count, rate, rounded(exact, _PLACES)) for meter, count, rate, exact in fine]
        return parts, charge_usd_nanos - sum(part.billed_usd_nanos for part in parts)
    largest = max(range(len(fine)), key=lambda index: abs(fine[index][3]))
    billed = [rounded(exact, _PLACES) for *_, exact in fine]
    billed[largest] += charge_usd_nanos - sum(billed)
    return [Part(*each[:3], amount) for each, amount in zip(fine, billed, strict=True)], 0


# ------------------------------------------------------------------------------------------------------ SQL
_TOKENS = {
    "input": Attempt.input_tokens,
    "cached_input": Attempt.cached_input_tokens,
    "cache_write": Attempt.cache_write_tokens,
    "output": Attempt.output_tokens,
    "reasoning": Attempt.reasoning_tokens,
}
_KEYS = (
    "hour",
    "tenant_id",
    "project_id",
    "model_alias",
    "pool",
    "payer",
    "price_version",
    "is_hit",
)
_SAME = ("tags", "task", "usage_source")


async def read_rates(session: AsyncSession) -> dict[str, Rates]:
    """The rates of every version that ever was in force."""
    found = await session.execute(select(PriceVersion))
    names = ("input", "cached_input", "cache_write", "output", "reasoning", "per_request")
    return {row.version: Rates(*(getattr(row, name) for name in names)) for row in found.scalars()}


def _select(cut: Cut, conditions: Sequence[Any], *, of_corrections: bool) -> Any:
    original = aliased(Attempt)
    hour = col(Attempt.started_at_ms) // MS_PER_HOUR
    # Where late usage counts, or its own hour.
    month_hour = cut.instant // MS_PER_HOUR
    if of_corrections:
        # Of an original that is not there, the correction's own hour has to do.
        hour = func.coalesce(col(original.started_at_ms) // MS_PER_HOUR, hour)
    keys = [
        hour.label("hour"),
        *(getattr(Attempt, name) for name in _KEYS[1:-1]),
        case((col(Attempt.cache) == "hit", 1), else_=0).label("is_hit"),
    ]
    used = sum((col(column) for column in _TOKENS.values()), start=cast(0, BigInteger))
    sums = [
        *(func.sum(column).label(name) for name, column in _TOKENS.items()),
        func.sum(case((used > 0, 1), (used < 0, -1), else_=0)).label("per_request"),
        func.sum(func.coalesce(Attempt.charge_usd_nanos, 0)).label("charge"),
        func.sum(case((col(Attempt.charge_usd_nanos).is_(None), 1), else_=0)).label("unpriced"),
        func.sum(case((col(Attempt.attempt_number) == 1, 1), else_=0)).label("requests"),
        func.count().label("attempts"),
    ]
    for name in _SAME:
        # Not the JSON operators: as text it is the same value in the same words.
        column = cast(getattr(Attempt, name), Text) if name == "tags" else getattr(Attempt, name)
        sums += [func.min(column).label(f"{name}_min"), func.max(column).label(f"{name}_max")]
    statement = select(*keys, *sums, (func.min(month_hour)).label("billed_hour"))
    group = list(keys)
    if of_corrections or cut.late is not None:
        group.append(month_hour)
    if of_corrections:
        statement = statement.outerjoin(
            original,
            and_(
                col(original.attempt_id) == func.substr(Attempt.attempt_id, _CORRECTION_CHARS + 1),
                col(original.attempt_number) > 0,
            ),
        )
    number = col(Attempt.attempt_number)
    return (
        statement.where(*conditions, number == 0 if of_corrections else number > 0)
        .group_by(*group)
        .order_by(*group)
    )


async def demand_pieces(
    session: AsyncSession, cut: Cut, *, maker: RowMaker, names: Names
) -> AsyncIterator[Piece]:
    """Rows of usage, and what tenants and the platform are billed by them."""
    known = await read_rates(session)
    for part, conditions in await counted_parts(session, cut):
        for of_corrections in (False, True):
            found = await session.stream(
                _select(part, conditions, of_corrections=of_corrections),
                execution_options={"yield_per": PIECE_GROUPS},
            )
            async for groups in found.partitions():
                rows = [row for group in groups for row in _rows(maker, group, known, names=names)]
                charge = sum(int(each.charge) for each in groups if each.payer == Payer.TENANT.value)
                billed = sum(int(each.charge) for each in groups)
                if rows or billed or charge:
                    yield rows, Amounts(charge_usd_nanos=charge, platform_usd_nanos=billed - charge)


# ----------------------------------------------------------------------------------------------------- rows
def _rows(maker: RowMaker, group: Any, known: Mapping[str, Rates], *, names: Names) -> list[tuple[Any, ...]]:
    rates, state = FREE, "versioned"
    if not group.is_hit:
        found = known.get(group.price_version)
        is_unpriced = group.price_version == UNPRICED.version
        rates, state = (found, state) if found else (FREE, "unpriced" if is_unpriced else "unknown")
    counts = {meter.field: int(getattr(group, meter.field) or 0) for meter in (*METERS, REQUESTS)}
    parts, left = split(counts, rates, charge_usd_nanos=int(group.charge), attempts=int(group.attempts))
    about = _about(maker, group, names)
    about["x_PriceState"] = state
    first: dict[str, Any] = {
        "x_AttemptCount": int(group.attempts),
        "x_RequestCount": int(group.requests),
        "x_UnpricedAttemptCount": int(group.unpriced),
    }
    rows = []
    for part in parts:
        rows.append(maker.row(about, _of_meter(group, part), first))
        first = {}
    if left:
        rows.append(maker.row(about, _adjustment(group, left), first))
    return rows


def _about(maker: RowMaker, group: Any, names: Names) -> dict[str, Any]:
    is_platform = group.payer != Payer.TENANT.value
    payer = PLATFORM if is_platform else group.tenant_id
    pool = group.pool
    publisher = maker.terms.publishers.get(pool)
    tags = constant(group.tags_min, group.tags_max)
    billed_ms, hour_ms = int(group.billed_hour) * MS_PER_HOUR, int(group.hour) * MS_PER_HOUR
    return {
        **periods(billed_ms=billed_ms, from_ms=hour_ms, to_ms=hour_ms + MS_PER_HOUR),
        "HostProviderName": publisher or maker.terms.issuer,
        "InvoiceId": maker.invoice_id(billed_ms, payer),
        "PublisherName": publisher or maker.terms.issuer,
        "ResourceId": f"pool/{pool}" if publisher is None else f"external/{pool}",
        "ResourceName": pool,
        "ResourceType": "Model Deployment" if publisher is None else "External Model",
        "ServiceName": "LLM Inference",
        "ServiceSubcategory": "Generative AI",
        "SubAccountId": payer,
        "SubAccountName": "Platform" if is_platform else names.get("tenant", {}).get(payer, payer),
        "SubAccountType": "Platform" if is_platform else "Tenant",
        "Tags": None if tags in {None, "{}", "null"} else tags,
        "x_ModelId": group.model_alias,
        "x_OnBehalfOfTenantId": group.tenant_id if is_platform and group.tenant_id != PLATFORM else None,
        "x_PoolId": pool,
        "x_PriceVersionId": group.price_version,
        "x_ProjectId": group.project_id,
        "x_ProjectName": names.get("project", {}).get(group.project_id),
        "x_TaskType": constant(group.task_min, group.task_max),
        "x_UsageSource": constant(group.usage_source_min, group.usage_source_max),
    }


def _of_meter(group: Any, part: Part) -> dict[str, Any]:
    meter = part.meter
    per = TOKENS_PER_RATE if part.is_tokens else 1
    billed = part.billed_usd_nanos * PICO_PER_NANO
    cost = rounded(part.quantity * part.rate_usd_nanos * PICO_PER_NANO, per)
    sku = f"llm/{group.pool}/{'answer-cache-' if group.is_hit else ''}{meter.sku}"
    details: dict[str, object] = {"x_Target": group.pool, "x_TokenType": meter.token_type}
    if meter.cache_status is not None:
        details["x_CacheStatus"] = meter.cache_status
    said = f"{meter.says}{', answered from the cache' if group.is_hit else ''}"
    return {
        **prices(
            unit_pico=part.rate_usd_nanos * PICO_PER_NANO,
            cost_pico=cost,
            effective_pico=billed,
            billed_pico=billed,
        ),
        "ChargeCategory": "Usage",
        "ChargeDescription": f"{group.model_alias} on {group.pool}: {said}",
        "ChargeFrequency": "Usage-Based",
        "ConsumedQuantity": part.quantity * PICO,
        "ConsumedUnit": "Tokens" if part.is_tokens else "Requests",
        "PricingCategory": "Standard",
        "PricingQuantity": part.quantity * PICO // per,
        "PricingUnit": f"{TOKENS_PER_RATE} Tokens" if part.is_tokens else "Requests",
        "SkuId": sku,
        "SkuMeter": meter.title,
        "SkuPriceDetails": flat_json(details),
        "SkuPriceId": f"{sku}/{meter.tier}",
        "x_CacheStatus": meter.cache_status,
        "x_RoundingResidue": billed - cost,
        "x_TokenType": meter.token_type,
    }


def _adjustment(group: Any, left_usd_nanos: int) -> dict[str, Any]:
    """What was booked, and no price that is known explains."""
    amount = left_usd_nanos * PICO_PER_NANO
    return {
        **prices(unit_pico=None, cost_pico=amount, effective_pico=amount, billed_pico=amount),
        "ChargeCategory": "Adjustment",
        "ChargeDescription": f"{group.model_alias} on {group.pool}: booked beyond its unit prices",
        "ChargeFrequency": "One-Time",
    }
