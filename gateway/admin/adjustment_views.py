"""How do credits and corrections look outside? One form for the API and the command line's `--json`."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.clock import instant_text
from gateway.errors import InvalidRequest
from gateway.identity.store import get_tenant
from gateway.ledger.adjustments import NewAdjustment
from gateway.ledger.period_tables import Proposal
from gateway.ledger.periods import month_named
from gateway.money import NANOS_PER_USD, USD_MAX, usd_text


class AdjustmentRequest(BaseModel):
    """A credit or a correction that is proposed."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "kind": "credit",
                    "tenant": "acme",
                    "amount_usd": "-12.50",
                    "reason": "Outage of 12 October, ticket 4711",
                    "charge_month": "2026-10",
                }
            ]
        },
    )

    kind: str = Field(description="credit (below zero) or correction")
    tenant: str = Field(description="name or id; whose account")
    amount_usd: str = Field(description="a decimal such as -12.50; below zero: the tenant owes less")
    reason: str = Field(description="why; people sign for it")
    charge_month: str | None = Field(default=None, description="the month that it is about, such as 2026-10")


class AdjustmentView(BaseModel):
    """A proposal, and what a second person said."""

    id: str
    kind: str
    tenant_id: str
    amount_usd: str
    charge_month: str | None
    pool: str | None
    reason: str
    reconciliation: str | None
    state: str = Field(description="proposed, approved (and booked) or rejected")
    proposed_by: str
    proposed_at: str
    decided_by: str | None
    decided_at: str | None
    journal_id: str | None = Field(description="its booking")


class AdjustmentsView(BaseModel):
    """Proposals, the newest first."""

    adjustments: list[AdjustmentView]


def signed_nanos(text: str, *, param: str = "amount_usd") -> int:
    """Nano-USD of a decimal with a sign.

    Raises:
        InvalidRequest: not a number, too large, or finer than a nano-USD.
    """
    try:
        amount = Decimal(text.strip()[:64])
        nanos = amount * NANOS_PER_USD if amount.is_finite() and abs(amount) <= USD_MAX else None
    except InvalidOperation:
        nanos = None
    if nanos is None or nanos != nanos.to_integral_value():
        raise InvalidRequest(
            f"`{param}` is a decimal amount of USD such as -12.50, down to a nano-dollar; not {text[:40]!r}.",
            param=param,
        )
    return int(nanos)


async def new_adjustment(session: AsyncSession, asked: AdjustmentRequest) -> NewAdjustment:
    """What is asked for, with the tenant's id.

    Raises:
        InvalidRequest: an amount or a month that is none, or a kind that nobody may ask for.
        NotFound: there is no such tenant.
    """
    if asked.kind not in {"credit", "correction"}:
        raise InvalidRequest(f"`kind` is credit or correction, not {asked.kind[:40]!r}.", param="kind")
    if asked.charge_month is not None:
        month_named(asked.charge_month)
    return NewAdjustment(
        kind=asked.kind,
        tenant_id=(await get_tenant(session, asked.tenant)).id,
        amount_usd_nanos=signed_nanos(asked.amount_usd),
        reason=asked.reason,
        charge_month=asked.charge_month,
    )


def adjustment_view(row: Proposal) -> AdjustmentView:
    """A proposal for machines."""
    return AdjustmentView(
        id=row.id,
        kind=row.kind,
        tenant_id=row.tenant_id,
        amount_usd=usd_text(row.amount_usd_nanos),
        charge_month=row.charge_month,
        pool=row.pool,
        reason=row.reason,
        reconciliation=row.reconciliation_id,
        state=row.state,
        proposed_by=row.proposed_by,
        proposed_at=instant_text(row.proposed_at_ms),
        decided_by=row.decided_by,
        decided_at=None if row.decided_at_ms is None else instant_text(row.decided_at_ms),
        journal_id=row.journal_id,
    )
