"""How much may be spent, and how much is? /admin/v1/budgets."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from gateway.admin.budget_owners import detail_of, limit_of, owner_of, scope_id_of, view_of, views_of
from gateway.admin.budget_views import BudgetDetailView, BudgetView
from gateway.admin.views import PageView
from gateway.dependencies import ActDep, PageDep, ServicesDep, SessionDep
from gateway.ledger import budget_store
from gateway.ledger.buckets import Scope, Window
from gateway.ledger.budget_store import ALERT_PERCENTS

router = APIRouter(prefix="/admin/v1/budgets", tags=["budgets"])


class NewBudget(BaseModel):
    """A budget to be made."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "name": "search-monthly",
                    "scope": "project",
                    "of": "search",
                    "tenant": "acme",
                    "window": "month",
                    "limit_usd": "100.00",
                    "is_hard": True,
                    "alert_percents": [50, 80, 100],
                }
            ]
        },
    )

    name: str = Field(description="what people call it; unique")
    scope: Scope = Field(description="whose spending it counts")
    of: str = Field(
        description="a tenant's name or id; a project's id, or its name with `tenant`; a key's public id;"
        " `name=value` of a tag that the operator fixed"
    )
    tenant: str | None = Field(
        default=None, description="name or id: where the project is, or whose requests a tag's budget counts"
    )
    window: Window = Field(description="in UTC; weeks begin on Mondays")
    limit_usd: str = Field(description="a decimal such as 100.00, down to a nano-dollar")
    is_hard: bool = Field(default=True, description="refuses (402) what it cannot hold; false: only tells")
    alert_percents: list[int] = Field(
        default=list(ALERT_PERCENTS), description="shares of the limit at which to tell, percent"
    )


class BudgetChange(BaseModel):
    """What shall be different; what is left out stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"limit_usd": "250"}]})

    name: str | None = None
    limit_usd: str | None = None
    is_hard: bool | None = None
    alert_percents: list[int] | None = None


@router.get("", summary="Budgets and how they stand, the oldest first")
async def list_budgets(
    services: ServicesDep,
    session: SessionDep,
    page: PageDep,
    *,
    scope: Annotated[Scope | None, Query(description="only of this scope")] = None,
    owner: Annotated[str | None, Query(description="only of this owner; with `scope`, as `of` is")] = None,
    tenant: Annotated[str | None, Query(description="where the project of `owner` is")] = None,
    with_retired: Annotated[bool, Query(description="retired ones too")] = False,
) -> PageView[BudgetView]:
    """A page of budgets, each in its window of now."""
    found = await budget_store.page_budgets(
        session,
        page,
        now_ms=services.clock.epoch_ms(),
        scope=scope,
        scope_id=await scope_id_of(session, scope, owner, tenant=tenant),
        with_retired=with_retired,
    )
    return PageView(data=await views_of(session, found.rows), next_cursor=found.next_cursor)


@router.post("", status_code=201, summary="Make a budget")
async def create_budget(session: SessionDep, act: ActDep, new: NewBudget) -> BudgetView:
    """It binds within two seconds; what was spent before does not count."""
    budget = await budget_store.create_budget(
        session,
        new.name,
        owner=await owner_of(session, new.scope, new.of, tenant=new.tenant, is_new=True),
        window=new.window,
        limit_usd_nanos=limit_of(new.limit_usd),
        is_hard=new.is_hard,
        act=act,
        alert_percents=new.alert_percents,
    )
    await session.commit()
    return await view_of(session, budget, now_ms=act.at_ms)


@router.get("/{budget}", summary="One budget, by id or name")
async def show_budget(services: ServicesDep, session: SessionDep, budget: str) -> BudgetDetailView:
    """How it stands, what was told of it in this window, and the windows before."""
    found = await budget_store.get_budget(session, budget)
    return await detail_of(session, found, now_ms=services.clock.epoch_ms())


@router.patch("/{budget}", summary="Rename a budget, or change its limit, its alerts or whether it refuses")
async def update_budget(session: SessionDep, act: ActDep, *, budget: str, change: BudgetChange) -> BudgetView:
    """A lowered limit binds new slices at once. The same change again changes nothing."""
    changed = await budget_store.update_budget(
        session,
        budget,
        act=act,
        name=change.name,
        limit_usd_nanos=None if change.limit_usd is None else limit_of(change.limit_usd),
        is_hard=change.is_hard,
        alert_percents=change.alert_percents,
    )
    await session.commit()
    return await view_of(session, changed, now_ms=act.at_ms)


@router.post("/{budget}/retire", summary="Let a budget bind nobody from now on")
async def retire_budget(session: SessionDep, act: ActDep, budget: str) -> BudgetView:
    """Nothing is deleted. Retiring twice keeps the first instant."""
    retired = await budget_store.retire_budget(session, budget, act=act)
    await session.commit()
    return await view_of(session, retired, now_ms=act.at_ms)
