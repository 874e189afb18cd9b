"""What did people credit or correct, as rows of FOCUS?

One row each, billed in the month in which it was booked. Its charge period is the month that it is about; one
about an earlier month has the class Correction (FOCUS 1.2, "ChargeClass": what corrects a billing period that
was invoiced). A credit has the category Credit, everything else Adjustment, both are One-Time; neither has a
price or a quantity.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from gateway.ledger.adjustments import adjustments_in
from gateway.ledger.cuts import MS_PER_HOUR, Cut, period_bounds
from gateway.ledger.export_attempts import amounts_of
from gateway.ledger.exports import Names, Piece
from gateway.ledger.focus_columns import PICO_PER_NANO, PLATFORM, RowMaker, periods, prices
from gateway.ledger.period_tables import Adjustment

_CATEGORIES = {"credit": "Credit"}


async def adjustment_pieces(
    session: AsyncSession, cut: Cut, *, maker: RowMaker, names: Names
) -> AsyncIterator[Piece]:
    """Rows of adjustments, and what they come to."""
    async for part in adjustments_in(session, cut):
        yield [_row(maker, each, names) for each in part], amounts_of(part)


def _row(maker: RowMaker, each: Adjustment, names: Names) -> tuple[Any, ...]:
    amount = each.amount_usd_nanos * PICO_PER_NANO
    is_platform = each.tenant_id == PLATFORM
    from_ms, to_ms = _charge_period(each)
    about = "" if each.charge_month is None else f" of {each.charge_month}"
    return maker.row(
        prices(unit_pico=None, cost_pico=amount, effective_pico=amount, billed_pico=amount),
        periods(billed_ms=each.at_ms, from_ms=from_ms, to_ms=to_ms),
        {
            "ChargeCategory": _CATEGORIES.get(each.kind, "Adjustment"),
            "ChargeDescription": f"{each.kind}{about}: {each.reason}",
            "ChargeFrequency": "One-Time",
            "InvoiceId": maker.invoice_id(each.at_ms, each.tenant_id),
            "ResourceId": None if each.pool is None else f"pool/{each.pool}",
            "ResourceName": each.pool,
            "ResourceType": None if each.pool is None else "Model Deployment",
            "ServiceName": "LLM Inference",
            "ServiceSubcategory": "Generative AI",
            "SubAccountId": each.tenant_id,
            "SubAccountName": "Platform"
            if is_platform
            else names.get("tenant", {}).get(each.tenant_id, each.tenant_id),
            "SubAccountType": "Platform" if is_platform else "Tenant",
            "x_AdjustmentId": each.id,
            "x_PoolId": each.pool,
        },
    )


def _charge_period(each: Adjustment) -> tuple[int, int]:
    """The month that it is about; of one about none, or a later one, the hour in which it was booked."""
    hour_ms = each.at_ms // MS_PER_HOUR * MS_PER_HOUR
    if each.charge_month is not None:
        start_ms, end_ms = period_bounds("month", each.charge_month)
        if start_ms <= each.at_ms:
            return start_ms, end_ms
    return hour_ms, hour_ms + MS_PER_HOUR
