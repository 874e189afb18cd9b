"""What would a policy's fleet be compared with? The section `baselines:` of a policy. Pure.

A saving is a difference to something that never was, so the policy says what that is, with constants and
where they are from; nothing is assumed where it says nothing. Constants stand in the policy itself, for its
versions are kept for ever and files are not.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from backends.pool import NAME_CHARS_MAX, RateCard


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$", max_length=NAME_CHARS_MAX)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class StepConstants(_Strict):
    """What a step of the naive engine takes, as in a pool's profile (backends/profile.py)."""

    fixed_s: Seconds = Field(description="of every step")
    batched_token_s: Seconds = Field(description="per token computed")
    kv_token_s: Seconds = Field(default=0.0, description="per token of context attended to")
    sequence_s: Seconds = Field(default=0.0, description="per sequence in the step")


class NaivePool(_Strict):
    """A pool as it would be without all that: 16-bit weights, no speculation."""

    usd_per_hour: Decimal = Field(gt=0, description="of one replica's hardware")
    step: StepConstants
    batch: int | None = Field(
        default=None, ge=1, description="requests at a time; left out: as many as there were"
    )
    error_ratio: float | None = Field(
        default=None, ge=0, le=1, description="of the constants, such as a profile's error_median_ratio"
    )
    source: str = Field(min_length=1, max_length=256, description="who measured or published them, and when")


class ListPrice(_Strict):
    """A model outside that could have answered instead."""

    rates: RateCard
    source: str = Field(min_length=1, max_length=256, description="whose list, and of which day")


class BaselinesSection(_Strict):
    """What savings are measured against."""

    naive_pool: NaivePool | None = Field(default=None, description="left out: no such saving is claimed")
    home_pool: str | None = Field(
        default=None, description="where everything would go without routing; left out: none is claimed"
    )
    list_prices: dict[_Name, ListPrice] = Field(
        default_factory=dict, description="models outside, by a name for people"
    )


def declares_nothing(section: BaselinesSection) -> bool:
    """The id of policies that were written before the section existed stays what it was."""
    return section == BaselinesSection()
