"""What was saved, against the baselines that a policy declares?

Puts together what no room knows alone: the policy's baselines, the pools' profiles, replica time and its
cost, and the attempts. The arithmetic is `gateway.ledger.savings`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from backends.pool import PoolSpec
from backends.profile import Profile, ProfileError, load_profile
from gateway.errors import ConfigurationError
from gateway.ledger.savings import (
    Comparison,
    Engine,
    Naive,
    PoolFacts,
    against_list_price,
    against_naive_pool,
)
from gateway.ledger.savings_store import hits_of, presence_ms, works_of
from gateway.ledger.supply_report import PoolSupply, SupplyFigures, supply_report
from gateway.ledger.supply_terms import terms_of
from gateway.money import usd_nanos_from_decimal
from gateway.pricing.catalog import rates_from_card
from gateway.routing.baselines import BaselinesSection, NaivePool
from gateway.routing.policy import Policy

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US_PER_HOUR = 3_600_000_000
_FULL_BITS = 16


@dataclass(frozen=True, slots=True)
class SavingsReport:
    """Comparisons over a period; none where the policy declares no baseline."""

    start: datetime
    end: datetime
    policy_version: str
    comparisons: tuple[Comparison, ...]


async def savings_report(
    session: AsyncSession,
    policy: Policy,
    specs: Mapping[str, PoolSpec],
    *,
    start: datetime,
    end: datetime,
    now_ms: int,
) -> SavingsReport:
    """What was saved between two instants, whole hours.

    Raises:
        InvalidRequest: see `supply_report`.
        ConfigurationError: a profile or a price cannot be used.
    """
    supply = await supply_report(
        session, terms_of(specs), group_by=("pool",), start=start, end=end, now_ms=now_ms
    )
    start_ms, end_ms = _ms(start), _ms(end)
    works = await works_of(session, start_ms=start_ms, end_ms=end_ms)
    hits = await hits_of(session, start_ms=start_ms, end_ms=end_ms)
    inside = await presence_ms(session, start_ms=start_ms, end_ms=end_ms)
    pools = {
        name: _facts(pool, supply.rows.get((name,), SupplyFigures()), inside.get(name, 0))
        for name, pool in supply.pools.items()
    }
    declared: BaselinesSection = policy.baselines
    made: list[Comparison] = []
    if declared.naive_pool is not None:
        engines = {name: engine for name, spec in specs.items() if (engine := engine_of(spec)) is not None}
        made.append(
            against_naive_pool(
                _naive(declared.naive_pool),
                works,
                hits,
                pools=pools,
                engines=engines,
                home_pool=declared.home_pool,
            )
        )
    of_ours = [work for work in works if work.pool in pools]
    made += [
        against_list_price(
            name,
            rates_from_card(price.rates, owner=f"baselines.list_prices.{name}"),
            price.source,
            works=of_ours,
            hits=hits,
            bill_usd_nanos=supply.bill_usd_nanos,
        )
        for name, price in declared.list_prices.items()
    ]
    return SavingsReport(start, end, policy.version, tuple(made))


def _ms(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def _facts(pool: PoolSupply, used: SupplyFigures, inside_ms: int) -> PoolFacts:
    rate = float(max(pool.prices)[-1]) if pool.prices else 0.0
    if used.engine_us:
        rate = used.usage_usd_nanos / used.engine_us * _US_PER_HOUR
    busy_ms = pool.time.busy_ms
    return PoolFacts(rate, inside_ms / busy_ms if busy_ms else None, used.usage_usd_nanos)


def _naive(declared: NaivePool) -> Naive:
    step = declared.step
    return Naive(
        Engine(
            fixed_s=step.fixed_s,
            batched_token_s=step.batched_token_s,
            kv_token_s=step.kv_token_s,
            sequence_s=step.sequence_s,
            error_ratio=declared.error_ratio,
            source=declared.source,
            is_quantized=False,
        ),
        usd_nanos_from_decimal(declared.usd_per_hour, what="baselines.naive_pool.usd_per_hour"),
        declared.batch,
        declared.source,
    )


def engine_of(spec: PoolSpec) -> Engine | None:
    """A pool's engine by its profile; None: it has none.

    Raises:
        ConfigurationError: the profile cannot be used.
    """
    if spec.profile is None:
        return None
    try:
        profile: Profile = load_profile(Path(spec.profile))
    except ProfileError as error:
        raise ConfigurationError(str(error)) from None
    step, draft = profile.step_time, profile.draft_costs.get(profile.method or "")
    return Engine(
        fixed_s=step.fixed_s,
        batched_token_s=step.batched_token_s,
        kv_token_s=step.kv_token_s,
        sequence_s=step.sequence_s,
        draft_fixed_s=0.0 if draft is None else draft.fixed_s,
        proposed_token_s=0.0 if draft is None else draft.proposed_token_s,
        error_ratio=step.error_median_ratio,
        source=f"{profile.provenance.kind} {profile.provenance.date}, {profile.provenance.source}",
        is_quantized=_is_quantized(spec),
    )


def _is_quantized(spec: PoolSpec) -> bool | None:
    """Whether the weights are stored in fewer bits; None: this machine cannot tell."""
    if spec.model.quantization is not None:
        return True
    shape = spec.model.shape
    if shape is not None and shape.weight_bits is not None:
        return shape.weight_bits < _FULL_BITS
    try:
        config = json.loads((Path(spec.model.path or "") / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return isinstance(config, dict) and "quantization_config" in config
