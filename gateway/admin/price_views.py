"""How do prices look outside?

One form for the API's answers and the command line's `--json`. Amounts are decimal strings in USD with nine
places: rates per million tokens, and `per_request`. Instants are ISO 8601 in UTC.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from gateway.admin.views import PageView, moment, optional_moment
from gateway.money import usd_text
from gateway.pricing.book import Entry, Quote
from gateway.pricing.catalog import Derivation, Source
from gateway.pricing.rates import Price, Rates


class RatesView(BaseModel):
    """USD per million tokens, by meter, and USD per request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "input": "0.150000000",
                    "cached_input": "0.075000000",
                    "cache_write": "0.150000000",
                    "output": "0.600000000",
                    "reasoning": "0.600000000",
                    "per_request": "0.000000000",
                }
            ]
        }
    )

    input: str
    cached_input: str
    cache_write: str
    output: str
    reasoning: str
    per_request: str = Field(description="once for every answered attempt that used a token")


class DerivationView(BaseModel):
    """What the rates of a pool were derived from."""

    formula: str
    usd_per_hour: str = Field(description="of one replica's hardware")
    utilisation: str
    input_tokens_per_s: str
    output_tokens_per_s: str
    cached_input_ratio: str


class EntryView(BaseModel):
    """An entry of the price book; it never changes."""

    id: str
    version: str | None = Field(description="null: from then on what the pool or policy file says")
    rates: RatesView | None
    source: Source
    note: str | None
    effective_from: datetime
    created_at: datetime


class PriceView(BaseModel):
    """A target's price at an instant."""

    target: str
    version: str | None = Field(description="what spend records name; null: unpriced, so it is refused")
    rates: RatesView | None
    source: Source | None = Field(description="finance or litellm; pool, derived or policy: its file")
    since: datetime | None = Field(description="in force since; null: as long as its file says so")
    note: str | None
    derivation: DerivationView | None
    following: EntryView | None = Field(description="the next entry, which has not come into force")


class DifferenceView(BaseModel):
    """A target whose price differs; null: unpriced."""

    target: str
    before: RatesView | None
    after: RatesView | None
    meters: list[str] = Field(description="the rates that differ")


class PriceListView(BaseModel):
    """Every target's price at an instant."""

    at: datetime
    data: list[PriceView]


class PriceHistoryView(BaseModel):
    """A target's price at an instant, and every entry there ever was."""

    price: PriceView
    history: PageView[EntryView]


def price_view(quote: Quote) -> PriceView:
    """A price."""
    price = quote.price
    return PriceView(
        target=quote.target,
        version=None if price is None else price.version,
        rates=_rates_of(price),
        source=quote.source,
        since=optional_moment(quote.since_ms),
        note=quote.note,
        derivation=None if quote.derivation is None else _derivation_view(quote.derivation),
        following=None if quote.following is None else entry_view(quote.following),
    )


def entry_view(entry: Entry) -> EntryView:
    """An entry."""
    return EntryView(
        id=entry.id,
        version=None if entry.price is None else entry.price.version,
        rates=_rates_of(entry.price),
        source=entry.source,
        note=entry.note,
        effective_from=moment(entry.effective_from_ms),
        created_at=moment(entry.created_at_ms),
    )


def difference_view(target: str, before: Rates | None, after: Rates | None) -> DifferenceView | None:
    """What differs between two prices of a target; None: nothing."""
    if before == after:
        return None
    meters = [
        name for name in RatesView.model_fields if getattr(before, name, None) != getattr(after, name, None)
    ]
    return DifferenceView(
        target=target,
        before=None if before is None else rates_view(before),
        after=None if after is None else rates_view(after),
        meters=meters,
    )


def rates_view(rates: Rates) -> RatesView:
    """Rates as decimal strings."""
    return RatesView(
        input=usd_text(rates.input),
        cached_input=usd_text(rates.cached_input),
        cache_write=usd_text(rates.cache_write),
        output=usd_text(rates.output),
        reasoning=usd_text(rates.reasoning),
        per_request=usd_text(rates.per_request),
    )


def _rates_of(price: Price | None) -> RatesView | None:
    return None if price is None or price.rates is None else rates_view(price.rates)


def _derivation_view(derivation: Derivation) -> DerivationView:
    declared = derivation.declared
    return DerivationView(
        formula=derivation.formula(),
        usd_per_hour=str(derivation.usd_per_hour),
        utilisation=str(declared.utilisation),
        input_tokens_per_s=str(declared.input_tokens_per_s),
        output_tokens_per_s=str(declared.output_tokens_per_s),
        cached_input_ratio=str(declared.cached_input_ratio),
    )
