"""What may a pool file say about how its hardware is paid for?

Values only. Without this section a pool pays `hardware.usd_per_hour` for each replica while it holds its
hardware (on demand). An entry of `prices` holds from its instant until the next one's; before the first one
the hardware's own price does.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from backends.pool_sections import Strict


class PriceKind(StrEnum):
    """How hardware is paid for."""

    ON_DEMAND = "on_demand"
    """While a replica has it."""
    SPOT = "spot"
    """Likewise, at a price that its owner changes."""
    RESERVED = "reserved"
    """Always, for all declared replicas, whether they run or not."""


class Count(StrEnum):
    """Whose word it is how long a replica ran."""

    SEEN = "seen"
    """Its driver's; of servers that someone else runs, what the gateways saw up."""
    DECLARED = "declared"
    """The file's: all of its replicas, all the time."""


def _in_utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class PriceEntry(Strict):
    """What one replica's hardware costs from an instant on."""

    since: Annotated[datetime, AfterValidator(_in_utc)] = Field(
        description="first instant, such as 2026-12-01 or 2026-12-01T06:00:00Z; UTC where no zone is given"
    )
    kind: PriceKind = PriceKind.ON_DEMAND
    usd_per_hour: Decimal | None = Field(default=None, gt=0, description="of one replica's hardware")
    usd_per_gpu_hour: Decimal | None = Field(
        default=None, gt=0, description="instead: of each of hardware.gpus_per_replica"
    )

    @model_validator(mode="after")
    def _is_one_price(self) -> Self:
        if (self.usd_per_hour is None) == (self.usd_per_gpu_hour is None):
            message = "a price is either 'usd_per_hour' (of a replica) or 'usd_per_gpu_hour'"
            raise ValueError(message)
        return self

    def usd_per_replica_hour(self, gpus: int) -> Decimal:
        """What a replica of so many GPUs costs an hour, USD."""
        if self.usd_per_hour is not None:
            return self.usd_per_hour
        return (self.usd_per_gpu_hour or Decimal(0)) * gpus


class SupplySpec(Strict):
    """How a pool's hardware is paid for."""

    count: Count = Field(
        default=Count.SEEN, description="seen: while replicas were up; declared: all of them, always"
    )
    since: Annotated[datetime, AfterValidator(_in_utc)] | None = Field(
        default=None,
        description="what is paid for unseen (reserved or declared) is paid from then on, never within a"
        " closed month; else from when a gateway first reads it",
    )
    prices: tuple[PriceEntry, ...] = Field(
        default=(), max_length=1000, description="by instant, oldest first"
    )

    @model_validator(mode="after")
    def _is_in_order(self) -> Self:
        if any(earlier.since >= later.since for earlier, later in pairwise(self.prices)):
            message = "prices begin one after the other: order them by 'since', each once"
            raise ValueError(message)
        return self


def supply_obstacle(
    supply: SupplySpec | None, *, gpus: int, driver: Literal["process", "external"]
) -> str | None:
    """Why a pool of this kind cannot be paid for in this way; None if it can."""
    if supply is None:
        return None
    if driver == "process" and supply.count is Count.DECLARED:
        return "supply.count: the driver 'process' knows how long its replicas ran: leave it out"
    for index, price in enumerate(supply.prices):
        if price.usd_per_gpu_hour is not None and gpus < 1:
            return (
                f"supply.prices.{index}.usd_per_gpu_hour needs hardware.gpus_per_replica; "
                "say usd_per_hour of the replica instead"
            )
    return None
