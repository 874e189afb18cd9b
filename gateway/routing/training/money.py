"""What do the classifier's confusions cost?

Only the nature of a task decides its pool, so only confusions across natures cost money: predictable work
that goes without speculation, and creative work whose guesses are thrown away. Machine time comes from the
measured milliseconds per token of the bundled pools (backends/reference/weights/figures.json), its price from
their USD per hour, and the tenants' charge from their rates. In USD per million output tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from backends.files import load_pools
from backends.pool import PoolSpec
from gateway.inference import CREATIVE_TASKS, TaskType

REFERENCE: Final = Path(__file__).parents[3] / "backends" / "reference" / "weights" / "figures.json"
POOLS: Final = Path(__file__).parents[3] / "backends" / "pools"
TOKENS: Final = 1_000_000
_KINDS: Final = {"predictable": "structured", "creative": "creative"}
_POOLS: Final = ("plain", "speculative")


def pool_prices() -> dict[str, Any]:
    """What the bundled pools cost and charge."""
    pools = load_pools(POOLS)
    rates = {name: _output_usd(pools[name]) for name in ("plain", "speculative")}
    per_hour = float(pools["plain"].hardware.usd_per_hour)
    return prices(json.loads(REFERENCE.read_text()), usd_per_hour=per_hour, rates=rates)


def _output_usd(pool: PoolSpec) -> float:
    card = pool.rates
    if card is None:
        message = f"pool {pool.name} states no rates"
        raise ValueError(message)
    return float(card.output)


def prices(figures: Mapping[str, Any], *, usd_per_hour: float, rates: Mapping[str, float]) -> dict[str, Any]:
    """Cost and charge by nature and pool, and what the wrong pool costs.

    The cost is the mean over the measured batch sizes: alone, a request gains most from speculation; among
    others it loses most from guesses that are thrown away. A negative extra charge is what a tenant saves.

    Args:
        figures: as `backends.reference.speed` writes them.
        usd_per_hour: of a replica.
        rates: USD per million output tokens by pool, `plain` and `speculative`.
    """
    by_batch: dict[str, dict[str, dict[str, float]]] = {}
    for row in figures["speed"]:
        usd_per_ms = usd_per_hour / 3_600_000 / row["batch"] * TOKENS
        found = {pool: round(row[pool]["ms_per_token"] * usd_per_ms, 4) for pool in _POOLS}
        by_batch.setdefault(str(row["batch"]), {})[_nature(row["kind"])] = found
    cost = {
        nature: {
            pool: sum(each[nature][pool] for each in by_batch.values()) / len(by_batch) for pool in _POOLS
        }
        for nature in _KINDS
    }
    return {
        "by_batch": by_batch,
        "charge": dict(rates),
        "extra_cost": {
            "predictable": round(cost["predictable"]["plain"] - cost["predictable"]["speculative"], 4),
            "creative": round(cost["creative"]["speculative"] - cost["creative"]["plain"], 4),
        },
        "extra_charge": {
            "predictable": round(rates["plain"] - rates["speculative"], 4),
            "creative": round(rates["speculative"] - rates["plain"], 4),
        },
    }


def _nature(kind: str) -> str:
    return next(nature for nature, measured in _KINDS.items() if measured == kind)


def bill(
    tasks: Sequence[TaskType], matrix: Sequence[Sequence[int]], price: Mapping[str, Any]
) -> dict[str, Any]:
    """What confusions cost per million output tokens of all requests, and the dearest of them."""
    total = sum(sum(row) for row in matrix)
    cost = charge = 0.0
    pairs = []
    for true, counts in zip(tasks, matrix, strict=True):
        nature = "creative" if true in CREATIVE_TASKS else "predictable"
        for found, count in zip(tasks, counts, strict=True):
            if count and (true in CREATIVE_TASKS) != (found in CREATIVE_TASKS):
                share = count / total
                cost += share * price["extra_cost"][nature]
                charge += share * price["extra_charge"][nature]
                pairs.append(
                    {
                        "true": str(true),
                        "found": str(found),
                        "rows": count,
                        "cost_usd": round(share * price["extra_cost"][nature], 5),
                    }
                )
    pairs.sort(key=lambda pair: (-pair["cost_usd"], pair["true"], pair["found"]))
    return {"cost_usd": round(cost, 4), "charge_usd": round(charge, 4), "dearest": pairs[:8]}
