"""What did the fleet's pool-hours cost, as rows of FOCUS: hour, pool, line, tenant, project and model?

Frozen bills only, as they were frozen. A bill is replica time times price; a row's quantity is replica hours,
and the GPUs of one are in its price's details. Nobody's time has the sub-account `unallocated`.

A reserved pool's bill is a recurring purchase, billed as such, and its lines cost nothing more: their
effective cost is their part of the purchase, with the status Used where something used it and Unused where
nothing did. So the effective cost of a commitment's lines is its purchase, to the nano-USD. In the 1.4
profile every line also says how it was split from its pool-hour (`AllocatedMethodDetails`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from backends.supply_spec import PriceKind
from gateway.ledger.exports import Amounts, Names, Piece
from gateway.ledger.focus_columns import (
    PICO,
    PICO_PER_NANO,
    PLATFORM,
    UNALLOCATED,
    RowMaker,
    flat_json,
    month_texts,
    periods,
    prices,
    rounded,
)
from gateway.ledger.supply import MS_PER_HOUR, LineKind, apportion
from gateway.ledger.supply_store import TIMES
from gateway.ledger.supply_tables import SupplyHour, SupplyLine
from gateway.money import NANOS_PER_USD

PIECE_LINES: Final = 5_000
_RATIO_PLACES: Final = 12
_OF_TENANTS: Final = frozenset({LineKind.REQUEST.value})
_OF_PLATFORM: Final = frozenset(
    {LineKind.FAILED.value, LineKind.WARM_UP.value, LineKind.HEARTBEAT.value, LineKind.EVALUATION.value}
)
_SAYS: Final = {
    LineKind.REQUEST.value: "answering requests",
    LineKind.FAILED.value: "attempts that failed",
    LineKind.WARM_UP.value: "starts and warm-ups",
    LineKind.HEARTBEAT.value: "heartbeats",
    LineKind.EVALUATION.value: "evaluations",
    LineKind.IDLE.value: "idle",
    LineKind.ASLEEP.value: "asleep",
    LineKind.BROKEN.value: "hung or crashed",
    LineKind.UNUSED.value: "reserved, no replica ran",
}
_CATEGORIES: Final = {
    PriceKind.ON_DEMAND.value: "Standard",
    PriceKind.SPOT.value: "Dynamic",
    PriceKind.RESERVED.value: "Committed",
}


@dataclass(frozen=True, slots=True)
class Bill:
    """A pool's hour, or a correction of one."""

    booked_in_ms: int
    pool: str
    hour_ms: int
    bill_usd_nanos: int
    paid_ms: int
    """Of one replica."""
    gpus: int
    kind: str
    usd_nanos_per_hour: int
    is_blended: bool
    """Its price changed within the hour: the unit price is the mean."""
    method: str

    @property
    def is_reserved(self) -> bool:
        """It is paid for whether it runs or not."""
        return self.kind == PriceKind.RESERVED.value

    def hours_nano(self, usd_nanos: int) -> int:
        """Replica hours that an amount pays for, in billionths."""
        if not self.usd_nanos_per_hour:
            return 0
        return rounded(usd_nanos * NANOS_PER_USD, self.usd_nanos_per_hour)


async def supply_total(session: AsyncSession, start_ms: int, end_ms: int) -> int:
    """What the bills come to, nano-USD, asked apart from their lines."""
    found = await session.execute(
        select(func.sum(col(SupplyHour.bill_usd_nanos))).where(
            col(SupplyHour.hour_start_ms) >= start_ms, col(SupplyHour.hour_start_ms) < end_ms
        )
    )
    return int(found.scalar_one() or 0)


async def supply_pieces(
    session: AsyncSession, start_ms: int, end_ms: int, *, maker: RowMaker, names: Names
) -> AsyncIterator[Piece]:
    """Rows, and what they are billed: all of it is the platform's."""
    piece: list[tuple[Any, ...]] = []
    total = 0
    async for bill, lines in _bills(session, start_ms, end_ms):
        piece += _rows(maker, bill, lines, names=names)
        total += bill.bill_usd_nanos
        if len(piece) >= PIECE_LINES:
            yield piece, Amounts(platform_usd_nanos=total)
            piece, total = [], 0
    if piece or total:
        yield piece, Amounts(platform_usd_nanos=total)


async def _bills(session: AsyncSession, start_ms: int, end_ms: int) -> AsyncIterator[tuple[Bill, list[Any]]]:
    """Bills in order, each with its lines; a bill's lines are in memory, and no more."""
    key = ("hour_start_ms", "pool", "corrects_hour_ms")
    about = ("line", "tenant_id", "project_id", "model_alias")
    together = [getattr(SupplyHour, name) == getattr(SupplyLine, name) for name in key]
    of_bill = [getattr(SupplyHour, name) for name in key]
    of_line = [getattr(SupplyLine, name) for name in about]
    statement = (
        select(
            *of_bill,
            *of_line,
            func.sum(SupplyLine.cost_usd_nanos).label("cost"),
            func.sum(SupplyLine.engine_us).label("engine_us"),
            func.sum(SupplyLine.attempts).label("attempts"),
        )
        .outerjoin(SupplyLine, together[0] & together[1] & together[2])
        .where(col(SupplyHour.hour_start_ms) >= start_ms, col(SupplyHour.hour_start_ms) < end_ms)
        .group_by(*of_bill, *of_line)
        .order_by(*of_bill, *of_line)
    )
    found = await session.stream(statement, execution_options={"yield_per": PIECE_LINES})
    waiting: list[Any] = []
    async for part in found.partitions():
        waiting += part
        last = tuple(waiting[-1][:3])
        whole = [row for row in waiting if tuple(row[:3]) != last]
        waiting = waiting[len(whole) :]
        for bill, lines in await _with_bills(session, whole):
            yield bill, lines
    for bill, lines in await _with_bills(session, waiting):
        yield bill, lines


async def _with_bills(session: AsyncSession, rows: Sequence[Any]) -> list[tuple[Bill, list[Any]]]:
    if not rows:
        return []
    hour = col(SupplyHour.hour_start_ms)
    found = await session.execute(
        select(SupplyHour).where(hour >= rows[0].hour_start_ms, hour <= rows[-1].hour_start_ms)
    )
    bills = {(bill.hour_start_ms, bill.pool, bill.corrects_hour_ms): _bill(bill) for bill in found.scalars()}
    return [
        (bills[key], [row for row in group if row.line is not None])
        for key, group in groupby(rows, key=lambda row: tuple(row[:3]))
    ]


def _bill(bill: SupplyHour) -> Bill:
    paid_ms = sum(getattr(bill, name) for name in TIMES if name != "busy_ms")
    rates = {(each["kind"], each["usd_nanos_per_hour"]) for each in bill.prices}
    kind, rate = min(rates) if rates else (PriceKind.ON_DEMAND.value, 0)
    if len(rates) > 1 and paid_ms:
        rate = max(0, rounded(bill.bill_usd_nanos * MS_PER_HOUR, paid_ms))
    return Bill(
        booked_in_ms=bill.hour_start_ms,
        pool=bill.pool,
        hour_ms=bill.corrects_hour_ms,
        bill_usd_nanos=bill.bill_usd_nanos,
        paid_ms=paid_ms,
        gpus=bill.gpus_per_replica,
        kind=kind,
        usd_nanos_per_hour=rate,
        is_blended=len(rates) > 1,
        method=bill.method,
    )


# ----------------------------------------------------------------------------------------------------- rows
def _rows(maker: RowMaker, bill: Bill, lines: Sequence[Any], *, names: Names) -> list[tuple[Any, ...]]:
    about = _about(bill)
    rows = []
    if bill.is_reserved and bill.bill_usd_nanos:
        rows.append(maker.row(about, _purchase(bill)))
    kept = [line for line in lines if int(line.cost)]
    weights = [abs(int(line.cost)) for line in kept]
    # Signs of a correction's lines differ: parts of a whole are said of bills alone.
    ratios = apportion(10**_RATIO_PLACES, weights) if weights and bill.hour_ms == bill.booked_in_ms else []
    for index, line in enumerate(kept):
        parts = [about, _of_line(bill, line), _whose(line, names)]
        if maker.terms.version == "1.4":
            parts.append(_allocated(bill, line, ratios[index] if ratios else None, names=names))
        rows.append(maker.row(*parts))
    return rows


def _about(bill: Bill) -> dict[str, Any]:
    reserved = bill.is_reserved
    return {
        **periods(billed_ms=bill.booked_in_ms, from_ms=bill.hour_ms, to_ms=bill.hour_ms + MS_PER_HOUR),
        "CommitmentDiscountCategory": "Usage" if reserved else None,
        "CommitmentDiscountId": f"reservation/{bill.pool}" if reserved else None,
        "CommitmentDiscountName": f"Reservation of {bill.pool}" if reserved else None,
        "CommitmentDiscountType": "GPU Reservation" if reserved else None,
        "PricingCategory": _CATEGORIES.get(bill.kind, "Other"),
        "PricingUnit": "Hours",
        "ResourceId": f"pool/{bill.pool}",
        "ResourceName": bill.pool,
        "ResourceType": "GPU Pool",
        "ServiceName": "GPU Capacity",
        "ServiceSubcategory": "Generative AI",
        "SkuPriceDetails": flat_json({"GpuCount": bill.gpus, "x_PriceKind": bill.kind}),
        "SubAccountId": PLATFORM,
        "SubAccountName": "Platform",
        "SubAccountType": "Platform",
        "x_PoolId": bill.pool,
        "x_PriceState": "blended" if bill.is_blended else "versioned",
    }


def _purchase(bill: Bill) -> dict[str, Any]:
    hours = bill.hours_nano(bill.bill_usd_nanos) * PICO_PER_NANO
    billed = bill.bill_usd_nanos * PICO_PER_NANO
    cost = rounded(hours * bill.usd_nanos_per_hour * PICO_PER_NANO, PICO)
    sku = f"gpu/{bill.pool}/reservation"
    return {
        **prices(
            unit_pico=bill.usd_nanos_per_hour * PICO_PER_NANO,
            cost_pico=cost,
            effective_pico=0,
            billed_pico=billed,
        ),
        "ChargeCategory": "Purchase",
        "ChargeDescription": f"{bill.pool}: reserved replicas for an hour",
        "ChargeFrequency": "Recurring",
        **_committed(bill, hours),
        "PricingQuantity": hours,
        "SkuId": sku,
        "SkuMeter": "GPU Hours",
        "SkuPriceId": f"{sku}/hourly",
        "x_RoundingResidue": billed - cost,
    }


def _committed(bill: Bill, hours_pico: int) -> dict[str, Any]:
    """Of a correction it may be null by the specification's text, and must be by its machine rules."""
    is_correction = month_texts(bill.hour_ms) != month_texts(bill.booked_in_ms)
    if not bill.is_reserved or is_correction:
        return {}
    return {"CommitmentDiscountQuantity": hours_pico, "CommitmentDiscountUnit": "Hours"}


def _of_line(bill: Bill, line: Any) -> dict[str, Any]:
    hours = bill.hours_nano(int(line.cost)) * PICO_PER_NANO
    amount = int(line.cost) * PICO_PER_NANO
    cost = rounded(hours * bill.usd_nanos_per_hour * PICO_PER_NANO, PICO)
    was_used = line.line in _OF_TENANTS | _OF_PLATFORM
    is_unused = bill.is_reserved and not was_used
    sku = f"gpu/{bill.pool}/replica-hours"
    return {
        **prices(
            unit_pico=bill.usd_nanos_per_hour * PICO_PER_NANO,
            cost_pico=cost,
            effective_pico=amount,
            billed_pico=0 if bill.is_reserved else amount,
        ),
        "ChargeCategory": "Usage",
        "ChargeDescription": f"{bill.pool}: replica hours, {_SAYS.get(line.line, line.line)}",
        "ChargeFrequency": "Usage-Based",
        **_committed(bill, hours),
        "CommitmentDiscountStatus": ("Unused" if is_unused else "Used") if bill.is_reserved else None,
        "ConsumedQuantity": None if is_unused else hours,
        "ConsumedUnit": None if is_unused else "Hours",
        "PricingQuantity": hours,
        "SkuId": sku,
        "SkuMeter": "GPU Hours",
        "SkuPriceId": f"{sku}/{bill.kind}",
        "x_AttemptCount": int(line.attempts),
        "x_EngineSeconds": int(line.engine_us) * (PICO // 1_000_000),
        "x_Line": line.line,
        "x_ModelId": line.model_alias or None,
        "x_ProjectId": line.project_id or None,
        "x_RoundingResidue": 0 if bill.is_reserved else amount - cost,
    }


def _whose(line: Any, names: Names) -> dict[str, Any]:
    if line.line in _OF_TENANTS:
        return {
            "SubAccountId": line.tenant_id,
            "SubAccountName": names.get("tenant", {}).get(line.tenant_id, line.tenant_id),
            "SubAccountType": "Tenant",
            "x_ProjectName": names.get("project", {}).get(line.project_id),
        }
    if line.line in _OF_PLATFORM:
        behalf = None if line.tenant_id in {"", PLATFORM} else line.tenant_id
        return {"x_OnBehalfOfTenantId": behalf}
    return {"SubAccountId": UNALLOCATED, "SubAccountName": "Unallocated", "SubAccountType": "Platform"}


def _allocated(bill: Bill, line: Any, ratio: int | None, *, names: Names) -> dict[str, Any]:
    whose = "/".join(part for part in (line.tenant_id, line.project_id, line.model_alias) if part)
    element: dict[str, Any] = {
        "UsageQuantity": int(line.engine_us) * bill.gpus / 1_000_000,
        "UsageUnit": "GPU-Seconds",
    }
    if ratio is not None:
        element["AllocatedRatio"] = ratio / 10**_RATIO_PLACES
    shown: Mapping[str, str] = names.get("tenant", {})
    return {
        "AllocatedMethodId": bill.method,
        "AllocatedMethodDetails": flat_json({"Elements": [element]}),
        "AllocatedResourceId": whose or f"{UNALLOCATED}/{line.line}",
        "AllocatedResourceName": shown.get(line.tenant_id) or _SAYS.get(line.line),
    }
