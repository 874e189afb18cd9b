"""How does the supply report look outside? One form for the API's answers and the command line's `--json`."""

from __future__ import annotations

from pydantic import BaseModel, Field

from gateway.clock import instant_text
from gateway.ledger.supply import METHOD, ReplicaMs
from gateway.ledger.supply_report import PoolSupply, SupplyFigures, SupplyReport
from gateway.money import usd_text

_MS_PER_HOUR = 3_600_000
_RATIO_DIGITS = 6


class SupplyFiguresView(BaseModel):
    """Cost and charge beside each other; money in decimal strings of USD."""

    attempts: int = Field(description="of tenants, in an engine; once for each hour that they were in")
    engine_s: str = Field(description="engine time, seconds")
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    usage_cost_usd: str = Field(description="of engine time alone")
    allocated_cost_usd: str = Field(description="with its part of what nobody used")
    charge_usd: str
    recovery_usd: str = Field(description="charge minus allocated cost; below zero: under-recovery")
    allocated_usd_per_million_tokens: str | None = Field(description="empty: no tokens")


class SupplyRowView(SupplyFiguresView):
    """One group."""

    group: dict[str, str] = Field(description="by dimension")


class SupplyPriceView(BaseModel):
    """What a replica cost from an instant on."""

    since: str
    kind: str = Field(description="on_demand, spot or reserved")
    usd_per_replica_hour: str


class PoolSupplyView(BaseModel):
    """A pool's bill."""

    pool: str
    time_source: str = Field(description="driver, observed (what gateways saw up) or declared (by its file)")
    prices: list[SupplyPriceView]
    token_weights: str = Field(description="input:cached:output, and who says so")
    replica_hours: dict[str, str] = Field(description="by what they were spent on; billed is their sum")
    gpu_hours: str
    utilisation_ratio: float | None = Field(description="busy by billed time")
    frozen_hours: int
    open_hours: int
    lines: dict[str, str] = Field(description="the bill by what it was for")
    corrections_usd: str = Field(description="part of the bill: what was found later of earlier hours")
    unallocated_usd: str = Field(description="overhead that nobody's usage could be given")
    bill_usd: str


class SupplyView(BaseModel):
    """What supply cost, who used it, and what charges recovered of it."""

    period_start: str
    period_end: str = Field(description="first instant that does not count")
    time_zone: str
    currency: str
    method: str
    ledger_high_water: str | None = Field(description="attempts booked before are in every frozen hour")
    group_by: list[str]
    rows: list[SupplyRowView]
    total: SupplyFiguresView
    lines: dict[str, str] = Field(description="all bills by what they were for; they add up to bill_usd")
    bill_usd: str
    unallocated_usd: str
    recovery_usd: str = Field(description="all charges minus all bills")
    outside_charge_usd: str = Field(description="for targets whose cost is their provider's invoice")
    pools: list[PoolSupplyView]


def supply_view(report: SupplyReport) -> SupplyView:
    """A report for machines."""
    return SupplyView(
        period_start=report.start.isoformat(),
        period_end=report.end.isoformat(),
        time_zone="UTC",
        currency="USD",
        method=METHOD,
        ledger_high_water=instant_text(report.high_water_ms) if report.high_water_ms else None,
        group_by=list(report.group_by),
        rows=[
            SupplyRowView(
                group=dict(zip(report.group_by, group, strict=True)), **_figures(figures).model_dump()
            )
            for group, figures in report.rows.items()
        ],
        total=_figures(report.total),
        lines={kind.value: usd_text(amount) for kind, amount in report.lines.items()},
        bill_usd=usd_text(report.bill_usd_nanos),
        unallocated_usd=usd_text(sum(pool.unallocated_usd_nanos for pool in report.pools.values())),
        recovery_usd=usd_text(report.total.charge_usd_nanos - report.bill_usd_nanos),
        outside_charge_usd=usd_text(report.outside_charge_usd_nanos),
        pools=[_pool(pool) for pool in report.pools.values()],
    )


def _figures(figures: SupplyFigures) -> SupplyFiguresView:
    per_million = figures.usd_nanos_per_million()
    return SupplyFiguresView(
        attempts=figures.attempts,
        engine_s=f"{figures.engine_us / 1e6:.3f}",
        input_tokens=figures.input_tokens,
        cached_input_tokens=figures.cached_input_tokens,
        output_tokens=figures.output_tokens,
        usage_cost_usd=usd_text(figures.usage_usd_nanos),
        allocated_cost_usd=usd_text(figures.allocated_usd_nanos),
        charge_usd=usd_text(figures.charge_usd_nanos),
        recovery_usd=usd_text(figures.recovery_usd_nanos),
        allocated_usd_per_million_tokens=None if per_million is None else usd_text(per_million),
    )


def _pool(pool: PoolSupply) -> PoolSupplyView:
    ratio = pool.utilisation_ratio
    names = (*ReplicaMs.__slots__, "billed_ms")
    return PoolSupplyView(
        pool=pool.pool,
        time_source=pool.time_source,
        prices=[
            SupplyPriceView(since=instant_text(since_ms), kind=kind, usd_per_replica_hour=usd_text(amount))
            for since_ms, kind, amount in sorted(pool.prices)
        ],
        token_weights=pool.weights,
        replica_hours={
            name.removesuffix("_ms"): f"{getattr(pool.time, name) / _MS_PER_HOUR:.6f}" for name in names
        },
        gpu_hours=f"{pool.time.billed_ms * pool.gpus_per_replica / _MS_PER_HOUR:.6f}",
        utilisation_ratio=None if ratio is None else round(ratio, _RATIO_DIGITS),
        frozen_hours=pool.frozen_hours,
        open_hours=pool.open_hours,
        lines={kind.value: usd_text(amount) for kind, amount in sorted(pool.lines.items())},
        corrections_usd=usd_text(pool.corrections_usd_nanos),
        unallocated_usd=usd_text(pool.unallocated_usd_nanos),
        bill_usd=usd_text(pool.bill_usd_nanos),
    )
