"""How does the supply report look outside? One form for the API's answers and the command line's `--json`."""

from __future__ import annotations

from typing import Any

from gateway.clock import instant_text
from gateway.ledger.supply import METHOD
from gateway.ledger.supply_report import PoolSupply, SupplyFigures, SupplyReport
from gateway.money import usd_text

_MS_PER_HOUR = 3_600_000
_RATIO_DIGITS = 6


def as_json(report: SupplyReport) -> dict[str, Any]:
    """A report for machines."""
    return {
        "from": report.start.isoformat(),
        "to": report.end.isoformat(),
        "time_zone": "UTC",
        "currency": "USD",
        "method": METHOD,
        "ledger_high_water": instant_text(report.high_water_ms) if report.high_water_ms else None,
        "group_by": list(report.group_by),
        "rows": [
            {**dict(zip(report.group_by, group, strict=True)), **_figures(figures)}
            for group, figures in report.rows.items()
        ],
        "total": _figures(report.total),
        "lines": {kind.value: usd_text(amount) for kind, amount in report.lines.items()},
        "bill_usd": usd_text(report.bill_usd_nanos),
        "unallocated_usd": usd_text(sum(pool.unallocated_usd_nanos for pool in report.pools.values())),
        "recovery_usd": usd_text(report.total.charge_usd_nanos - report.bill_usd_nanos),
        "outside_charge_usd": usd_text(report.outside_charge_usd_nanos),
        "pools": [_pool(pool) for pool in report.pools.values()],
    }


def _figures(figures: SupplyFigures) -> dict[str, Any]:
    per_million = figures.usd_nanos_per_million()
    return {
        "attempts": figures.attempts,
        "engine_s": f"{figures.engine_us / 1e6:.3f}",
        "input_tokens": figures.input_tokens,
        "cached_input_tokens": figures.cached_input_tokens,
        "output_tokens": figures.output_tokens,
        "usage_cost_usd": usd_text(figures.usage_usd_nanos),
        "allocated_cost_usd": usd_text(figures.allocated_usd_nanos),
        "charge_usd": usd_text(figures.charge_usd_nanos),
        "recovery_usd": usd_text(figures.recovery_usd_nanos),
        "allocated_usd_per_million_tokens": None if per_million is None else usd_text(per_million),
    }


def _pool(pool: PoolSupply) -> dict[str, Any]:
    ratio = pool.utilisation_ratio
    return {
        "pool": pool.pool,
        "time_source": pool.time_source,
        "prices": [
            {"since": instant_text(since_ms), "kind": kind, "usd_per_replica_hour": usd_text(nanos)}
            for since_ms, kind, nanos in sorted(pool.prices)
        ],
        "token_weights": pool.weights,
        "replica_hours": {
            name.removesuffix("_ms"): f"{getattr(pool.time, name) / _MS_PER_HOUR:.6f}"
            for name in (*type(pool.time).__slots__, "billed_ms")
        },
        "gpu_hours": f"{pool.time.billed_ms * pool.gpus_per_replica / _MS_PER_HOUR:.6f}",
        "utilisation_ratio": None if ratio is None else round(ratio, _RATIO_DIGITS),
        "frozen_hours": pool.frozen_hours,
        "open_hours": pool.open_hours,
        "lines": {kind.value: usd_text(amount) for kind, amount in sorted(pool.lines.items())},
        "corrections_usd": usd_text(pool.corrections_usd_nanos),
        "unallocated_usd": usd_text(pool.unallocated_usd_nanos),
        "bill_usd": usd_text(pool.bill_usd_nanos),
    }
