"""How does a budget's burn-down look outside?"""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.budget_owners import views_of
from gateway.admin.budget_views import BudgetView
from gateway.admin.views import optional_moment
from gateway.ledger.burn_down import BurnDown, Outlook, burn_down
from gateway.money import usd_text


class BurnDownView(BaseModel):
    """A budget, its pace, and when it runs out."""

    budget: BudgetView
    outlook: Outlook = Field(description="spent, runs_out (before its window ends), lasts, or unknown")
    why: str
    pace_usd_a_day: str | None = Field(description="null: not known")
    pace_over_hours: str | None = Field(description="the time until now over which the pace was taken")
    runs_out_at: datetime | None = Field(description="null: not before its window ends, or not known")
    at_window_end_usd: str | None = Field(description="booked by then, at this pace")


class BurnDownsView(BaseModel):
    """Every budget in force, the first to run out first."""

    budgets: list[BurnDownView]


async def burn_downs(session: AsyncSession, *, now_ms: int) -> list[BurnDownView]:
    """Every budget in force, with its owner's name; the first to run out first."""
    found = await burn_down(session, now_ms=now_ms)
    budgets = await views_of(session, [one.state for one in found])
    return [_view(one, budget) for one, budget in zip(found, budgets, strict=True)]


def _view(one: BurnDown, budget: BudgetView) -> BurnDownView:
    over = one.pace_over_ms
    return BurnDownView(
        budget=budget,
        outlook=one.outlook,
        why=one.why,
        pace_usd_a_day=_usd(one.pace_usd_nanos_a_day),
        pace_over_hours=None if over is None else f"{over // 3_600_000}.{over % 3_600_000 // 360_000}",
        runs_out_at=optional_moment(one.runs_out_at_ms),
        at_window_end_usd=_usd(one.at_end_usd_nanos),
    )


def _usd(nanos: int | None) -> str | None:
    return None if nanos is None else usd_text(nanos)
