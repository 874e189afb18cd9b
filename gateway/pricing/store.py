"""How are price versions and the entries of the price book kept? Their SQL; flushes, never commits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from gateway import audit
from gateway.audit import Act
from gateway.db import insert_ignoring_duplicates
from gateway.errors import InvalidRequest
from gateway.inference import new_id
from gateway.paging import Page, PageRequest, page_of, seek
from gateway.pricing.book import Entry, PriceBook
from gateway.pricing.catalog import Source, priced
from gateway.pricing.rates import Price, Rates
from gateway.pricing.tables import NOTE_CHARS, PriceEntry, PriceVersion

_ACTIONS = {Source.FINANCE: "price.set", Source.LITELLM: "price.import"}


@dataclass(frozen=True, slots=True)
class PriceChange:
    """What shall hold for a target from an instant on."""

    rates: Rates | None
    """None: what its file says."""
    source: Source = Source.FINANCE
    note: str | None = None
    effective_from_ms: int | None = None
    """None: now."""


async def remember_versions(session: AsyncSession, prices: Mapping[str, Price], *, now_ms: int) -> None:
    """Write down versions that were never seen before, by target."""
    rows = [
        {
            "version": price.version,
            "target": target,
            "input": price.rates.input,
            "cached_input": price.rates.cached_input,
            "cache_write": price.rates.cache_write,
            "output": price.rates.output,
            "reasoning": price.rates.reasoning,
            "per_request": price.rates.per_request,
            "first_seen_at_ms": now_ms,
        }
        for target, price in prices.items()
        if price.rates is not None
    ]
    await insert_ignoring_duplicates(session, PriceVersion, rows)


async def rates_of_version(session: AsyncSession, version: str) -> Rates | None:
    """The rates of a version that was ever in force; None where there is none of that name."""
    row = await session.get(PriceVersion, version)
    return None if row is None else _rates(row)


async def list_entries(session: AsyncSession, target: str | None = None) -> list[Entry]:
    """Every entry of the price book, or of one target."""
    statement = _entries()
    if target is not None:
        statement = statement.where(col(PriceEntry.target) == target)
    return [_entry(row, version) for row, version in await session.execute(statement)]


async def page_entries(session: AsyncSession, target: str, page: PageRequest) -> Page[Entry]:
    """A target's entries, the newest first.

    Raises:
        InvalidRequest: the limit or the cursor is wrong.
    """
    statement = seek(
        _entries().where(col(PriceEntry.target) == target),
        page,
        at=col(PriceEntry.created_at_ms),
        row_id=col(PriceEntry.id),
        newest_first=True,
    )
    entries = [_entry(row, version) for row, version in await session.execute(statement)]
    return page_of(entries, page, lambda entry: (entry.created_at_ms, entry.id))


async def change_price(
    session: AsyncSession, book: PriceBook, target: str, *, change: PriceChange, act: Act
) -> bool:
    """Enter a price, or that the file's holds again; whether there was anything to change.

    Args:
        session: the caller's.
        book: for the targets that there are and their cards; entries are read anew.
        target: pool or external target.
        change: what shall hold, and from when on.
        act: who does it, and when.

    Raises:
        NotFound: there is no such target.
        InvalidRequest: it would begin in the past, or the note is no note.
    """
    book.require(target)
    _check_note(change.note)
    if change.effective_from_ms is not None and change.effective_from_ms < act.at_ms:
        raise InvalidRequest(
            "`effective_from` lies in the past: what was charged never changes. Leave it out to begin now.",
            param="effective_from",
        )
    known = await list_entries(session, target)
    from_ms = change.effective_from_ms
    if from_ms is None:
        # What was entered "from now on" by a machine whose clock is ahead must not outlive this.
        already = [one.effective_from_ms for one in known if one.effective_from_ms <= one.created_at_ms]
        from_ms = max([act.at_ms, *already])
    price = None if change.rates is None else priced(target, change.rates)
    if _changes_nothing(book.with_entries(known), target, price, from_ms=from_ms, change=change):
        return False
    if price is not None:
        await remember_versions(session, {target: price}, now_ms=from_ms)
    # Of several that begin at the same instant the last one counts.
    created_at_ms = max([act.at_ms, *(one.created_at_ms + 1 for one in known)])
    entry = PriceEntry(
        id=new_id("prc_", created_at_ms),
        target=target,
        version=None if price is None else price.version,
        source=change.source,
        note=change.note,
        effective_from_ms=from_ms,
        created_at_ms=created_at_ms,
    )
    action = "price.reset" if price is None else _ACTIONS[change.source]
    return await audit.write(session, act, action, row=entry)


def _changes_nothing(
    book: PriceBook, target: str, price: Price | None, *, from_ms: int, change: PriceChange
) -> bool:
    entry = book.quote(target, from_ms).entry
    if entry is None or entry.price is None or price is None:
        return price is None and (entry is None or entry.price is None)
    is_same = entry.price.version == price.version and entry.source is change.source
    return is_same and change.note in {None, entry.note}


def _check_note(note: str | None) -> None:
    if note is not None and not (0 < len(note) <= NOTE_CHARS and note.isprintable()):
        raise InvalidRequest(f"A note has 1 to {NOTE_CHARS} characters, and no line breaks.", param="note")


def _entries() -> Select[PriceEntry, PriceVersion | None]:
    return select(PriceEntry, PriceVersion).outerjoin(
        PriceVersion, col(PriceVersion.version) == col(PriceEntry.version)
    )


def _entry(row: PriceEntry, version: PriceVersion | None) -> Entry:
    return Entry(
        id=row.id,
        target=row.target,
        price=None if version is None else Price(version.version, _rates(version)),
        source=Source(row.source),
        note=row.note,
        effective_from_ms=row.effective_from_ms,
        created_at_ms=row.created_at_ms,
    )


def _rates(version: PriceVersion) -> Rates:
    return Rates(
        input=version.input,
        cached_input=version.cached_input,
        cache_write=version.cache_write,
        output=version.output,
        reasoning=version.reasoning,
        per_request=version.per_request,
    )
