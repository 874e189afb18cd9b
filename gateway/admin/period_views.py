"""How do periods look outside? One form for the API's answers and the command line's `--json`."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, Field

from gateway.clock import instant_text
from gateway.closing import Check, Closing
from gateway.ledger.period_tables import ClosedPeriod
from gateway.ledger.periods import Month, PeriodState
from gateway.money import usd_text


class PeriodView(BaseModel):
    """A month; money in decimal strings of USD."""

    period: str = Field(description="a UTC month, such as 2026-10")
    state: str = Field(
        description="open; ending: over, late usage is still its own; due: to be closed; or closed"
    )
    period_start: str
    period_end: str = Field(description="first instant that does not count")
    closed_at: str | None = None
    closed_by: str | None = None
    charge_usd: str | None = Field(default=None, description="corrections of earlier months included")
    platform_usd: str | None = None
    adjustments_usd: str | None = Field(default=None, description="credits and corrections by hand")
    supply_usd: str | None = Field(default=None, description="bills of the pools")
    report_sha256: str | None = None
    report_bytes: int | None = None
    seal: str | None = Field(default=None, description="what is signed")
    seal_sha256: str | None = None
    signature: str | None = Field(default=None, description="Ed25519, hexadecimal")
    public_key: str | None = None
    ledger_high_water: str | None = Field(default=None, description="the last booking that it knew")


class PeriodsView(BaseModel):
    """Months, the newest first."""

    periods: list[PeriodView]


class ClosingView(PeriodView):
    """A month that is closed now."""

    was_closed_already: bool
    warnings: list[str]


class CheckView(BaseModel):
    """Whether one thing holds."""

    what: str
    holds: bool
    why: str = Field(description="what is wrong")


class VerificationView(BaseModel):
    """Whether a closed month is what it was."""

    period: str
    is_right: bool
    checks: list[CheckView]


def period_view(state: PeriodState) -> PeriodView:
    """A month as it stands."""
    if state.closed is not None:
        return closed_view(state.closed)
    month = state.month
    return PeriodView(
        period=month.id,
        state=state.state,
        period_start=instant_text(month.start_ms),
        period_end=instant_text(month.end_ms),
    )


def closed_view(period: ClosedPeriod) -> PeriodView:
    """A closed month, without its report."""
    return PeriodView(
        period=period.id,
        state="closed",
        period_start=instant_text(period.start_ms),
        period_end=instant_text(period.end_ms),
        closed_at=instant_text(period.closed_at_ms),
        closed_by=period.closed_by,
        charge_usd=usd_text(period.charge_usd_nanos),
        platform_usd=usd_text(period.platform_usd_nanos),
        adjustments_usd=usd_text(period.adjustments_usd_nanos),
        supply_usd=usd_text(period.supply_usd_nanos),
        report_sha256=period.report_sha256,
        report_bytes=period.report_bytes,
        seal=period.seal,
        seal_sha256=period.seal_sha256,
        signature=period.signature,
        public_key=period.public_key,
        ledger_high_water=period.high_water,
    )


def closing_view(closing: Closing) -> ClosingView:
    """What came of a wish to close."""
    return ClosingView(
        **closed_view(closing.period).model_dump(),
        was_closed_already=not closing.is_new,
        warnings=list(closing.warnings),
    )


def verification_view(month: Month, checks: Sequence[Check]) -> VerificationView:
    """Every check, and whether all hold."""
    return VerificationView(
        period=month.id,
        is_right=all(check.holds for check in checks),
        checks=[CheckView(what=each.what, holds=each.holds, why=each.why) for each in checks],
    )
