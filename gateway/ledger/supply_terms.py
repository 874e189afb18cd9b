"""How is each pool paid for, and what do its tokens weigh, by its files?

Reads a pool's profile; no database. The weights are of a step in the middle of what the pool is built for:
half of its batch decodes. Reading a token takes the step's time per token; writing one takes its part of a
step's fixed time too, less where speculation yields several tokens a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from backends.pool import HardwareSpec, PoolSpec
from backends.profile import Profile, ProfileError, load_profile
from backends.supply_spec import Count, PriceKind, SupplySpec
from gateway.errors import ConfigurationError
from gateway.ledger.supply import Price, Terms, TokenWeights
from gateway.money import usd_nanos_from_decimal

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INPUT_UNITS = 1000
_CACHED_RATIO = 0.01
"""A token that was found in the prefix cache is attended to and not computed."""


def terms_of(specs: Mapping[str, PoolSpec]) -> dict[str, Terms]:
    """The terms of every pool.

    Raises:
        ConfigurationError: a price finer than a nano-USD an hour, or a profile that cannot be used.
    """
    try:
        return {name: _terms(spec) for name, spec in specs.items()}
    except ProfileError as error:
        raise ConfigurationError(str(error)) from None


def _terms(spec: PoolSpec) -> Terms:
    supply = spec.supply or SupplySpec()
    profile = None if spec.profile is None else load_profile(Path(spec.profile))
    is_external = spec.driver == "external"
    seen = "observed" if is_external else "driver"
    count = len(spec.urls) if is_external else spec.replicas
    return Terms(
        pool=spec.name,
        prices=_prices(spec.name, spec.hardware, supply),
        count=supply.count,
        time_source="declared" if supply.count is Count.DECLARED else seen,
        replicas=tuple(f"{spec.name}-{index}" for index in range(count)),
        gpus_per_replica=spec.hardware.gpus_per_replica,
        weights=TokenWeights() if profile is None else weights_of(profile),
        since_ms=None if supply.since is None else (supply.since - _EPOCH) // timedelta(milliseconds=1),
    )


def _prices(pool: str, hardware: HardwareSpec, supply: SupplySpec) -> tuple[Price, ...]:
    def nanos(amount: object, what: str) -> int:
        return int(usd_nanos_from_decimal(str(amount), what=f"pool {pool!r}, {what}"))

    first = Price(0, PriceKind.ON_DEMAND, nanos(hardware.usd_per_hour, "hardware.usd_per_hour"))
    later = (
        Price(
            (entry.since - _EPOCH) // timedelta(milliseconds=1),
            entry.kind,
            nanos(entry.usd_per_replica_hour(hardware.gpus_per_replica), f"supply.prices.{index}"),
        )
        for index, entry in enumerate(supply.prices)
    )
    return (first, *later)


def weights_of(profile: Profile) -> TokenWeights:
    """What reading and writing a token weigh in an engine of this profile."""
    step = profile.step_time
    batch = max(1, profile.engine.max_num_seqs // 2)
    read_s = step.batched_token_s + step.fixed_s / profile.engine.max_num_batched_tokens
    drafted = profile.num_speculative_tokens if profile.method else 0
    draft = profile.draft_costs.get(profile.method or "")
    step_s = step.fixed_s / batch + step.sequence_s + step.batched_token_s * (1 + drafted)
    if draft is not None:
        step_s += draft.fixed_s / batch + draft.proposed_token_s * drafted
    yields = [known.tokens_per_step for known in profile.acceptance if known.method == profile.method]
    write_s = step_s / (sum(yields) / len(yields) if yields and drafted else 1.0)
    if read_s <= 0 or write_s <= 0:
        return TokenWeights()
    output = max(1, round(_INPUT_UNITS * write_s / read_s))
    cached = max(1, round(_INPUT_UNITS * _CACHED_RATIO))
    return TokenWeights(_INPUT_UNITS, cached, output, f"profile of {profile.pool}, {profile.provenance.date}")
