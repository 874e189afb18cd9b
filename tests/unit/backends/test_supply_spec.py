"""Does a pool file say clearly how its hardware is paid for, and is what makes no sense refused?"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from backends.files import PoolFileError, load_pools
from backends.pool import HardwareSpec, PoolSpec
from backends.profile import load_profile
from backends.supply_spec import Count, PriceKind
from gateway.errors import ConfigurationError
from gateway.ledger.supply import Price, TokenWeights
from gateway.ledger.supply_terms import terms_of, weights_of
from tests.support.factories import make_pool_spec
from tests.support.pool_files import ROOT, write_pools

DAY = {"since": "2026-12-01", "usd_per_hour": "0.08"}
DAY_MS = 1_796_083_200_000


def spec_of(*prices: dict[str, Any], gpus: int = 0, **supply: Any) -> PoolSpec:
    hardware = HardwareSpec(gpu="H100", gpus_per_replica=gpus, usd_per_hour=Decimal("0.12"))
    written = make_pool_spec(hardware=hardware).model_dump(exclude_unset=True)
    return PoolSpec.model_validate({**written, "supply": {"prices": prices, **supply}})


def test_a_price_holds_from_its_instant_in_utc_and_the_hardwares_before() -> None:
    kinds = ({**DAY, "kind": "reserved"}, {"since": "2027-01-01T01:00:00+01:00", "usd_per_gpu_hour": "2.5"})
    terms = terms_of({"plain": spec_of(*kinds, gpus=4)})["plain"]
    new_year_ms = int(datetime(2027, 1, 1, tzinfo=UTC).timestamp() * 1000)
    assert terms.prices == (
        Price(0, PriceKind.ON_DEMAND, 120_000_000),
        Price(DAY_MS, PriceKind.RESERVED, 80_000_000),
        Price(new_year_ms, PriceKind.ON_DEMAND, 10_000_000_000),
    )
    assert (terms.count, terms.time_source, terms.replicas) == (Count.SEEN, "observed", ("plain-0",))
    assert terms.is_declared, "a reserved replica is paid for unseen"
    declared = terms_of({"plain": spec_of(count="declared")})["plain"]
    assert (declared.time_source, declared.is_declared) == ("declared", True)
    assert declared.declared_from_ms(7) == 7, "when it was first read"
    assert not terms_of({"plain": make_pool_spec()})["plain"].is_declared


@pytest.mark.parametrize(
    ("prices", "gpus", "says"),
    [
        ((DAY, DAY), 0, "order them by 'since'"),
        (({"since": "2026-12-01"},), 0, "either 'usd_per_hour'"),
        (({**DAY, "usd_per_gpu_hour": "1"},), 1, "either 'usd_per_hour'"),
        (({"since": "2026-12-01", "usd_per_gpu_hour": "1"},), 0, "needs hardware.gpus_per_replica"),
        (({**DAY, "kind": "free"},), 0, "on_demand"),
        (({**DAY, "usd": "1"},), 0, "Extra inputs"),
        (({**DAY, "usd_per_hour": "0"},), 0, "greater than 0"),
    ],
)
def test_what_makes_no_sense_is_refused(prices: tuple[dict[str, Any], ...], gpus: int, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        spec_of(*prices, gpus=gpus)


def test_a_driver_that_knows_is_not_overruled() -> None:
    written = make_pool_spec(driver="external").model_dump(exclude_unset=True)
    written |= {"driver": "process", "urls": (), "supply": {"count": "declared"}}
    written["model"]["path"] = "weights"
    with pytest.raises(ValidationError, match="knows how long its replicas ran"):
        PoolSpec.model_validate(written)


def test_a_mistake_in_the_file_is_told_with_its_line(tmp_path: Path) -> None:
    folder = write_pools(tmp_path, {"plain": ["http://127.0.0.1:9"], "speculative": ["http://127.0.0.1:9"]})
    path = folder / "plain.yaml"
    path.write_text(path.read_text() + "supply:\n  prices:\n    - {since: 2026-12-01, usd_per_hours: 1}\n")
    with pytest.raises(
        PoolFileError, match=r"plain.yaml:\d+: supply.prices.0..usd_per_hours: .*usd_per_hour"
    ):
        load_pools(folder)
    path.write_text(path.read_text().replace("usd_per_hours", "usd_per_hour"))
    supply = load_pools(folder)["plain"].supply
    assert supply is not None
    assert supply.prices[0].since == datetime(2026, 12, 1, tzinfo=UTC)


def test_a_price_too_fine_to_be_kept_and_a_profile_that_is_none_are_refused() -> None:
    fine = spec_of({**DAY, "usd_per_hour": "0.0000000001"})
    with pytest.raises(ConfigurationError, match=r"pool 'plain', supply.prices.0: .* is finer"):
        terms_of({"plain": fine})
    with pytest.raises(ConfigurationError, match=r"nowhere.json: cannot be read"):
        terms_of({"plain": make_pool_spec(profile="nowhere.json")})


def test_tokens_weigh_what_their_pools_profile_says() -> None:
    profiles = ROOT / "backends" / "profiles"
    plain, fast = (weights_of(load_profile(profiles / f"{name}.json")) for name in ("plain", "speculative"))
    # By hand: (0.004825/16 + 0.00002762 + 0.0001977) / (0.0001977 + 0.004825/2048) = 2.6337.
    assert (plain.input, plain.cached_input, plain.output) == (1000, 10, 2634)
    assert plain.source == "profile of plain, 2026-11-28"
    assert fast.output != plain.output
    free = load_profile(profiles / "plain.json")
    free = free.model_copy(
        update={"step_time": free.step_time.model_copy(update={"batched_token_s": 0.0, "fixed_s": 0.0})}
    )
    assert weights_of(free) == TokenWeights()
