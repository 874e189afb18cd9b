"""Which columns has a FOCUS file, of which kind, and what is the same in every row?

The 57 columns of FOCUS 1.2 (FinOps Open Cost and Usage Specification, tag v1.2 of 2025-05-29) in the order
of their names, then our own, which begin with `x_` as its attribute "column handling" asks. The 1.4 profile
(ratified 2026-06-04) drops ProviderName and PublisherName and adds ten; it follows the published text, and no
machine rules for it were run.

Amounts are integers of pico-USD (1e-12 USD) and quantities of pico-units: a rate has nine decimal places and
a quantity of tokens six, so that a product is rounded once, half away from zero, to twelve.
"""

from __future__ import annotations

import calendar
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from gateway.ledger.exports import Column
from gateway.ledger.focus_terms import FocusTerms

PICO: Final = 1_000_000_000_000
PICO_PER_NANO: Final = 1_000
PLATFORM: Final = "platform"
UNALLOCATED: Final = "unallocated"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_IN_BOTH: Final = (
    "AvailabilityZone",
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingAccountType",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "CapacityReservationId",
    "CapacityReservationStatus",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "CommitmentDiscountCategory",
    "CommitmentDiscountId",
    "CommitmentDiscountName",
    "CommitmentDiscountQuantity",
    "CommitmentDiscountStatus",
    "CommitmentDiscountType",
    "CommitmentDiscountUnit",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "ContractedUnitPrice",
    "EffectiveCost",
    "InvoiceId",
    "InvoiceIssuerName",
    "ListCost",
    "ListUnitPrice",
    "PricingCategory",
    "PricingCurrency",
    "PricingCurrencyContractedUnitPrice",
    "PricingCurrencyEffectiveCost",
    "PricingCurrencyListUnitPrice",
    "PricingQuantity",
    "PricingUnit",
    "RegionId",
    "RegionName",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SkuPriceDetails",
    "SkuPriceId",
    "SubAccountId",
    "SubAccountName",
    "SubAccountType",
    "Tags",
)
_ONLY_1_2: Final = ("ProviderName", "PublisherName")
_ONLY_1_4: Final = (
    "AllocatedMethodDetails",
    "AllocatedMethodId",
    "AllocatedResourceId",
    "AllocatedResourceName",
    "AllocatedTags",
    "CommitmentProgramEligibilityDetails",
    "ContractApplied",
    "HostProviderName",
    "InvoiceDetailId",
    "ServiceProviderName",
)
OWN: Final[tuple[Column, ...]] = (
    Column("x_AdjustmentId", "text", "of a credit or correction that two people agreed on"),
    Column("x_AttemptCount", "count", "attempts; on the first row of its group, so that it adds up"),
    Column("x_CacheStatus", "text", "uncached, cached or written: of input tokens"),
    Column("x_EngineSeconds", "pico", "measured time of one engine, supply side"),
    Column("x_LedgerHighWater", "text", "the last booking that the file knew"),
    Column("x_Line", "text", "what a part of a pool-hour was for, supply side"),
    Column("x_ModelId", "text", "the model as callers named it"),
    Column("x_OnBehalfOfTenantId", "text", "whose request it was, where the platform pays"),
    Column("x_PoolId", "text", "pool or external target"),
    Column("x_PriceState", "text", "versioned, unpriced, unknown or blended: where unit prices come from"),
    Column("x_PriceVersionId", "text", "price that was charged by"),
    Column("x_ProjectId", "text", "where the spend is allocated"),
    Column("x_ProjectName", "text", "its name"),
    Column("x_RequestCount", "count", "requests, not attempts; on the first row of its group"),
    Column("x_RoundingResidue", "pico", "what was booked beyond unit price times quantity, USD"),
    Column("x_TaskType", "text", "where it is the same in the whole row"),
    Column("x_TokenType", "text", "input, output, reasoning or request"),
    Column("x_UnpricedAttemptCount", "count", "attempts without a price: they are in no amount"),
    Column("x_UsageSource", "text", "measured or estimated, where it is the same in the whole row"),
)
_COUNTS_AS_AMOUNT: Final = ("Cost", "Quantity", "UnitPrice")


def columns_of(version: str) -> tuple[Column, ...]:
    """The columns of a file, in their order."""
    only = _ONLY_1_4 if version == "1.4" else _ONLY_1_2
    names = sorted([*_IN_BOTH, *only])
    says = f"FOCUS {version}"
    return (*(Column(name, "pico" if _is_amount(name) else "text", says) for name in names), *OWN)


def _is_amount(name: str) -> bool:
    return name.endswith(_COUNTS_AS_AMOUNT)


def rounded(numerator: int, denominator: int) -> int:
    """The quotient, halves away from zero."""
    sign = -1 if numerator < 0 else 1
    return sign * ((2 * abs(numerator) + denominator) // (2 * denominator))


def second_text(epoch_ms: int) -> str:
    """`YYYY-MM-DDTHH:mm:ssZ`, as FOCUS writes instants."""
    return f"{_EPOCH + timedelta(milliseconds=epoch_ms):%Y-%m-%dT%H:%M:%SZ}"


def month_texts(epoch_ms: int) -> tuple[str, str]:
    """First and last instant, half-open, of the billing period around an instant."""
    day = _EPOCH + timedelta(milliseconds=epoch_ms)
    first = datetime(day.year, day.month, 1, tzinfo=UTC)
    after = first + timedelta(days=calendar.monthrange(day.year, day.month)[1])
    return f"{first:%Y-%m-%dT%H:%M:%SZ}", f"{after:%Y-%m-%dT%H:%M:%SZ}"


def flat_json(pairs: Mapping[str, object]) -> str | None:
    """An object of FOCUS's key-value format; None where there is nothing to say."""
    return msgspec.json.encode(dict(sorted(pairs.items()))).decode() if pairs else None


class RowMaker:
    """Turns values by name into rows in the order of the columns; unknown names are mistakes."""

    def __init__(
        self, terms: FocusTerms, high_water: str | None, *, invoiced: frozenset[str] = frozenset()
    ) -> None:
        """Months in `invoiced`, such as 2026-10, are closed: their rows are of a statement."""
        self.terms = terms
        self._invoiced = invoiced
        self.columns = columns_of(terms.version)
        self._names = tuple(column.name for column in self.columns)
        self._known = frozenset((*self._names, *_ONLY_1_2, *_ONLY_1_4))
        self._always: dict[str, Any] = {
            "BillingAccountId": terms.organisation_id,
            "BillingAccountName": terms.organisation,
            "BillingAccountType": "Organization",
            "BillingCurrency": "USD",
            "HostProviderName": terms.issuer,
            "InvoiceIssuerName": terms.issuer,
            "PricingCurrency": "USD",
            "ProviderName": terms.issuer,
            "PublisherName": terms.issuer,
            "RegionId": terms.region_id,
            "RegionName": terms.region,
            "ServiceCategory": "AI and Machine Learning",
            "ServiceProviderName": terms.issuer,
            "x_LedgerHighWater": high_water,
        }

    def invoice_id(self, billed_ms: int, payer: str) -> str | None:
        """The statement that rows are of, once it says what it says for ever; None: it may change."""
        month = month_texts(billed_ms)[0][: len("2026-10")]
        return f"{month}/{payer}" if month in self._invoiced else None

    def row(self, *parts: Mapping[str, Any]) -> tuple[Any, ...]:
        """One row; later parts replace earlier ones.

        Raises:
            ValueError: a name that is no column.
        """
        values = dict(self._always)
        for part in parts:
            values.update(part)
        if not values.keys() <= self._known:
            raise ValueError(f"no columns of FOCUS: {sorted(values.keys() - self._known)}")
        return tuple(map(values.get, self._names))


def periods(*, billed_ms: int, from_ms: int, to_ms: int) -> dict[str, Any]:
    """Billing and charge period; one that another month has ended is a correction."""
    start, end = month_texts(billed_ms)
    return {
        "BillingPeriodStart": start,
        "BillingPeriodEnd": end,
        "ChargePeriodStart": second_text(from_ms),
        "ChargePeriodEnd": second_text(to_ms),
        "ChargeClass": None if month_texts(from_ms) == (start, end) else "Correction",
    }


def prices(*, unit_pico: int | None, cost_pico: int, effective_pico: int, billed_pico: int) -> dict[str, Any]:
    """The amounts of a row; list and contract are one rate card."""
    return {
        "BilledCost": billed_pico,
        "ContractedCost": cost_pico,
        "ContractedUnitPrice": unit_pico,
        "EffectiveCost": effective_pico,
        "ListCost": cost_pico,
        "ListUnitPrice": unit_pico,
        "PricingCurrencyContractedUnitPrice": unit_pico,
        "PricingCurrencyEffectiveCost": effective_pico,
        "PricingCurrencyListUnitPrice": unit_pico,
    }


def constant(lowest: Any, highest: Any) -> Any:
    """A value that is the same in a whole group; None where it is not."""
    return lowest if lowest == highest else None
