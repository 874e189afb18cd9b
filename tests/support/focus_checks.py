"""What must be true of a FOCUS file that its validator does not see? Each check must find nothing.

The 13 complementary checks, asked of the file's text with decimals, and those against the ledger. Nothing of
the product's own arithmetic is used here.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Final

Row = Mapping[str, str | None]
_PLACES: Final = Decimal("1e-12")
_INSTANT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_MONTH: Final = re.compile(r"\d{4}-\d\d-01T00:00:00Z")
_CHARGED: Final = {"Usage", "Purchase"}


def number(row: Row, name: str) -> Decimal | None:
    """A column's number; None: null."""
    text = row[name]
    return None if text is None else Decimal(text)


def _is_priced(row: Row) -> bool:
    return row["ChargeCategory"] in _CHARGED and row["ChargeClass"] != "Correction"


def _is_no_product(row: Row, cost: str, unit: str) -> bool:
    price, quantity = number(row, unit), number(row, "PricingQuantity")
    if price is None or quantity is None:
        return True
    return number(row, cost) != (price * quantity).quantize(_PLACES, ROUND_HALF_UP)


def _text(row: Row, name: str) -> str:
    return row[name] or ""


CHECKS: Final[dict[str, Callable[[Row], bool]]] = {
    "allowed.ChargeCategory": lambda row: (
        row["ChargeCategory"] not in {"Usage", "Purchase", "Tax", "Credit", "Adjustment"}
    ),
    "allowed.ChargeFrequency": lambda row: (
        row["ChargeFrequency"] not in {"One-Time", "Recurring", "Usage-Based"}
    ),
    "allowed.ChargeClass": lambda row: row["ChargeClass"] not in {None, "Correction"},
    "allowed.PricingCategory": lambda row: (
        row["PricingCategory"] not in {None, "Standard", "Dynamic", "Committed", "Other"}
    ),
    "purchase.frequency": lambda row: (
        row["ChargeCategory"] == "Purchase" and row["ChargeFrequency"] == "Usage-Based"
    ),
    "unit.list": lambda row: _is_priced(row) and _is_no_product(row, "ListCost", "ListUnitPrice"),
    "unit.contract": lambda row: (
        _is_priced(row) and _is_no_product(row, "ContractedCost", "ContractedUnitPrice")
    ),
    "notnull.sku": lambda row: (
        _is_priced(row)
        and None in {row[name] for name in ("SkuId", "SkuPriceId", "PricingCategory", "PricingUnit")}
    ),
    "consumed.pair": lambda row: (row["ConsumedQuantity"] is None) != (row["ConsumedUnit"] is None),
    "consumed.usage_only": lambda row: (
        row["ConsumedQuantity"] is not None and row["ChargeCategory"] != "Usage"
    ),
    "utc.format": lambda row: (
        not all(
            pattern.fullmatch(_text(row, f"{kind}Period{end}"))
            for kind, pattern in (("Charge", _INSTANT), ("Billing", _MONTH))
            for end in ("Start", "End")
        )
    ),
    "period.order": lambda row: (
        not all(
            _text(row, f"{kind}PeriodStart") < _text(row, f"{kind}PeriodEnd")
            for kind in ("Billing", "Charge")
        )
    ),
    "period.inside": lambda row: (
        row["ChargeClass"] != "Correction"
        and not (
            _text(row, "ChargePeriodStart") >= _text(row, "BillingPeriodStart")
            and _text(row, "ChargePeriodEnd") <= _text(row, "BillingPeriodEnd")
        )
    ),
    "json.flat": lambda row: any(not _is_flat(row[name]) for name in ("Tags", "SkuPriceDetails")),
    "null.is_null": lambda row: "" in row.values(),
}
"""By row."""


def _is_flat(text: str | None) -> bool:
    if text is None:
        return True
    found = json.loads(text)
    return isinstance(found, dict) and not any(isinstance(value, dict | list) for value in found.values())


def found_by_row(rows: Sequence[Row]) -> set[str]:
    """The checks that find something."""
    return {name for name, is_wrong in CHECKS.items() if any(map(is_wrong, rows))}


def skus_of_prices(rows: Sequence[Row]) -> dict[str | None, set[str | None]]:
    """SkuPriceIds with more than one SkuId."""
    skus: defaultdict[str | None, set[str | None]] = defaultdict(set)
    for row in rows:
        if row["SkuPriceId"] is not None:
            skus[row["SkuPriceId"]].add(row["SkuId"])
    return {price: found for price, found in skus.items() if len(found) > 1}


def sums(rows: Sequence[Row], name: str, *by: str) -> dict[tuple[str | None, ...], Decimal]:
    """What a column comes to by others; groups that come to nothing are left out."""
    totals: defaultdict[tuple[str | None, ...], Decimal] = defaultdict(Decimal)
    for row in rows:
        totals[tuple(row[each] for each in by)] += number(row, name) or 0
    return {group: total for group, total in totals.items() if total}


def unbalanced_commitments(rows: Sequence[Row]) -> list[str | None]:
    """Commitments whose lines' effective cost is not what was paid for them."""
    committed = [row for row in rows if row["CommitmentDiscountId"] is not None]
    bought = [row for row in committed if row["ChargeCategory"] == "Purchase"]
    used = [row for row in committed if row["ChargeCategory"] == "Usage"]
    effective = sums(used, "EffectiveCost", "CommitmentDiscountId")
    billed = sums(bought, "BilledCost", "CommitmentDiscountId")
    spent = sums(bought, "EffectiveCost", "CommitmentDiscountId")
    return [key[0] for key in {*effective, *billed} if effective.get(key) != billed.get(key) or key in spent]
