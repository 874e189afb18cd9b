"""What does each target cost, and who says so? /admin/v1/prices."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.price_views import PriceHistoryView, PriceListView, PriceView, entry_view, price_view
from gateway.admin.views import PageView, epoch_ms_of, moment
from gateway.audit import Act
from gateway.dependencies import ActDep, PageDep, Services, ServicesDep, SessionDep
from gateway.pricing.book import PriceBook
from gateway.pricing.catalog import rates_from_amounts
from gateway.pricing.store import PriceChange, change_price, list_entries, page_entries

router = APIRouter(prefix="/admin/v1/prices", tags=["prices"])

_At = Annotated[datetime | None, Query(description="at this instant, UTC where no zone is given; null: now")]
_EFFECTIVE = "from when on, UTC where no zone is given; null: now. Never in the past"
_NOTE = "why, for people"


class NewPrice(BaseModel):
    """Rates that shall hold for a target: decimal strings, USD per million tokens."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "input": "0.15",
                    "cached_input": "0.075",
                    "output": "0.60",
                    "effective_from": "2027-01-01T00:00:00Z",
                    "note": "contract of November",
                }
            ]
        },
    )

    input: str = Field(description="fresh input tokens")
    output: str = Field(description="generated tokens")
    cached_input: str | None = Field(default=None, description="found in a cache; null: as input")
    cache_write: str | None = Field(default=None, description="written to a billed cache; null: as input")
    reasoning: str | None = Field(default=None, description="reasoning tokens; null: as output")
    per_request: str | None = Field(default=None, description="USD per answered request; null: nothing")
    effective_from: datetime | None = Field(default=None, description=_EFFECTIVE)
    note: str | None = Field(default=None, description=_NOTE)

    def amounts(self) -> dict[str, str | None]:
        """The money in it, by name."""
        return self.model_dump(exclude={"effective_from", "note"})


class PriceReset(BaseModel):
    """When the target's own file shall hold again."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"note": "contract of November ended"}]}
    )

    effective_from: datetime | None = Field(default=None, description=_EFFECTIVE)
    note: str | None = Field(default=None, description=_NOTE)


@router.get("", summary="Every target's price")
async def list_prices(services: ServicesDep, session: SessionDep, at: _At = None) -> PriceListView:
    """In force at an instant. What the files say is known as it is now; nobody wrote down what they said."""
    at_ms = _instant(services, at)
    book = _book(services).with_entries(await list_entries(session))
    return PriceListView(at=moment(at_ms), data=[price_view(quote) for quote in book.quotes(at_ms)])


@router.get("/{target}", summary="A target's price, and every entry there was")
async def show_price(
    services: ServicesDep, session: SessionDep, page: PageDep, *, target: str, at: _At = None
) -> PriceHistoryView:
    """In force at an instant; entries the newest first."""
    book = _book(services).with_entries(await list_entries(session, target))
    price = price_view(book.quote(target, _instant(services, at)))
    found = await page_entries(session, target, page)
    entries = [entry_view(entry) for entry in found.rows]
    return PriceHistoryView(price=price, history=PageView(data=entries, next_cursor=found.next_cursor))


@router.post("/{target}", summary="Set a target's price")
async def set_price(
    services: ServicesDep, session: SessionDep, act: ActDep, *, target: str, new: NewPrice
) -> PriceView:
    """Running gateways charge it within two seconds, or from its instant on. Requests under way keep theirs.

    Answers with the price at that instant. The same again changes nothing.
    """
    _book(services).require(target)
    change = PriceChange(
        rates=rates_from_amounts(new.amounts()),
        note=new.note,
        effective_from_ms=epoch_ms_of(new.effective_from, "effective_from"),
    )
    view = await enter(session, _book(services), target, change=change, act=act)
    await session.commit()
    return view


@router.post("/{target}/reset", summary="Back to what the pool or policy file says")
async def reset_price(
    services: ServicesDep, session: SessionDep, act: ActDep, *, target: str, reset: PriceReset | None = None
) -> PriceView:
    """From now or from an instant on. Where the file has no rates, the target is unpriced and refused."""
    wanted = reset or PriceReset()
    change = PriceChange(
        rates=None,
        note=wanted.note,
        effective_from_ms=epoch_ms_of(wanted.effective_from, "effective_from"),
    )
    view = await enter(session, _book(services), target, change=change, act=act)
    await session.commit()
    return view


async def enter(
    session: AsyncSession, book: PriceBook, target: str, *, change: PriceChange, act: Act
) -> PriceView:
    """Make a change and show the price from then on; flushes, does not commit.

    Raises:
        NotFound: there is no such target.
        InvalidRequest: it would begin in the past, or the note is no note.
    """
    await change_price(session, book, target, change=change, act=act)
    at_ms = act.at_ms if change.effective_from_ms is None else change.effective_from_ms
    return price_view(book.with_entries(await list_entries(session, target)).quote(target, at_ms))


def _book(services: Services) -> PriceBook:
    """The cards in force; entries are read from the database, which may know newer ones."""
    return services.pipeline.routing.prices


def _instant(services: Services, at: datetime | None) -> int:
    at_ms = epoch_ms_of(at, "at")
    return services.clock.epoch_ms() if at_ms is None else at_ms
