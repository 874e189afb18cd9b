"""Would anybody notice if the audit were changed behind its back?

Each entry has a link: its number, the hash of the link before, and the SHA-256 of the two with the entry's
own content. Canonical form: JSON in ASCII, keys sorted, no spaces, `{"entry":…,"number":…,"previous":…}`; of
the entry all columns by their names but for those that are null, so that a column that comes later changes
no hash. The first link follows 64 zeros.

Links are made at the end of the transaction, so that nobody waits for the chain while he holds other locks:
their order is that of the commits. The hash has no key. Whoever may rewrite both tables can make another
chain, which does not lead to a head that was noted elsewhere: `tollgate audit` shows it and takes it back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import BigInteger, Column, String, event, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlmodel import Field, SQLModel

from gateway.db import metadata

BEGINNING: Final = "0" * 64
"""Stands where the first link names the one before."""
_ROWS: Final = 1000
"""Read at once."""
_LOCK: Final = 0x7461_6368
"""PostgreSQL's advisory lock of whoever adds links."""
_UNCHAINED: Final = "unchained"


class AuditLink(SQLModel, table=True):
    """The place of an entry in the chain. Rows are only ever added."""

    __tablename__ = "audit_chain"

    number: int = Field(
        sa_column=Column(
            BigInteger, primary_key=True, autoincrement=False, comment="counts entries from 1, no gaps"
        )
    )
    entry_id: str = Field(
        sa_column=Column(String(64), nullable=False, unique=True, comment="the entry, aud_…")
    )
    previous_hash: str = Field(
        sa_column=Column(String(64), nullable=False, comment="of the link before; the first one's is zeros")
    )
    hash: str = Field(
        sa_column=Column(
            String(64), nullable=False, comment="SHA-256 of number, previous hash and entry (audit_chain.py)"
        )
    )


@dataclass(frozen=True, slots=True)
class Head:
    """A link, and with it everything before it."""

    number: int
    hash: str


@dataclass(frozen=True, slots=True)
class Break:
    """A place where the chain is not what was written."""

    number: int | None
    """None: the entry has no link."""
    entry_id: str
    reason: str


def hash_of(number: int, previous_hash: str, entry: Mapping[str, Any]) -> str:
    """The hash of a link; see the module's docstring."""
    content = {name: value for name, value in entry.items() if value is not None}
    whole = {"entry": content, "number": number, "previous": previous_hash}
    return hashlib.sha256(json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def chain_at_commit(session: Session, entry: dict[str, Any]) -> None:
    """Let the entry, which this transaction has written, become a link when it commits.

    Args:
        session: the transaction's.
        entry: its columns.
    """
    session.info.setdefault(_UNCHAINED, []).append(entry)


def _add_links(session: Session) -> None:
    entries = session.info.pop(_UNCHAINED, None)
    if not entries:
        return
    links = metadata.tables["audit_chain"]
    # The connection, not the session: that refuses statements on audited tables.
    connection = session.connection()
    if connection.dialect.name == "postgresql":  # on SQLite whoever has written holds the only lock
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    newest = select(links.c.number, links.c.hash).order_by(links.c.number.desc()).limit(1)
    found = connection.execute(newest).one_or_none()
    number, previous = (0, BEGINNING) if found is None else (int(found[0]), str(found[1]))
    rows = []
    for entry in entries:
        number += 1
        own = hash_of(number, previous, entry)
        rows.append({"number": number, "entry_id": entry["id"], "previous_hash": previous, "hash": own})
        previous = own
    connection.execute(insert(links), rows)


def _forget(session: Session, previous_transaction: object) -> None:
    del previous_transaction
    session.info.pop(_UNCHAINED, None)


event.listen(Session, "before_commit", _add_links)
event.listen(Session, "after_soft_rollback", _forget)


# ------------------------------------------------------------------------------------------------ looking
async def head_of(session: AsyncSession) -> Head | None:
    """The newest link; None: there is none."""
    links = metadata.tables["audit_chain"].c
    found = await session.execute(select(links.number, links.hash).order_by(links.number.desc()).limit(1))
    row = found.one_or_none()
    return None if row is None else Head(row.number, row.hash)


async def leads_to(session: AsyncSession, head: Head) -> bool:
    """Whether the chain still goes through a link that was noted before."""
    links = metadata.tables["audit_chain"].c
    found = await session.execute(select(links.hash).where(links.number == head.number))
    return found.scalar_one_or_none() == head.hash


async def count_links(session: AsyncSession, *, since_ms: int = 0) -> int:
    """How many links `breaks` looks at."""
    links = metadata.tables["audit_chain"].c
    first = await _first_number(session, since_ms)
    found = await session.execute(
        select(func.count()).select_from(links.number.table).where(links.number >= first)
    )
    return int(found.scalar_one())


async def breaks(session: AsyncSession, *, since_ms: int = 0) -> AsyncIterator[Break]:
    """Every place where the chain is not what was written, the first one first.

    Args:
        session: sees one instant.
        since_ms: links of entries from then on, and whatever follows the first of them; 0: all.
    """
    entries, links = metadata.tables["audit_entries"], metadata.tables["audit_chain"]
    number = await _first_number(session, since_ms) - 1
    previous = BEGINNING
    if number > 0:
        found = await session.execute(select(links.c.hash).where(links.c.number == number))
        previous = found.scalar_one_or_none() or ""
    while True:
        statement = (
            select(links.c.number, links.c.entry_id, links.c.previous_hash, links.c.hash, *entries.c)
            .outerjoin_from(links, entries, entries.c.id == links.c.entry_id)
            .where(links.c.number > number)
            .order_by(links.c.number)
            .limit(_ROWS)
        )
        rows = (await session.execute(statement)).all()
        for row in rows:
            entry = dict(zip(entries.c.keys(), row[4:], strict=True))
            reason = _reason(
                AuditLink(number=row[0], entry_id=row[1], previous_hash=row[2], hash=row[3]),
                number,
                previous,
                entry=entry,
            )
            if reason is not None:
                yield Break(row[0], row[1], reason)
            number, previous = row[0], row[3]
        if len(rows) < _ROWS:
            break
    for entry_id in (await session.execute(_UNLINKED, {"since_ms": since_ms})).scalars():
        yield Break(
            None, entry_id, "it has no link: it was not written by this program, or its link was removed"
        )


def _reason(link: AuditLink, number: int, previous: str, *, entry: Mapping[str, Any]) -> str | None:
    """What is wrong with a link that follows another; None: nothing."""
    if link.number != number + 1:
        return f"it follows link {number}: those between were removed"
    if link.previous_hash != previous:
        return "the link before it was exchanged"
    if entry["id"] is None:
        return "its entry was removed"
    if hash_of(link.number, link.previous_hash, entry) != link.hash:
        return "its content was changed"
    return None


async def _first_number(session: AsyncSession, since_ms: int) -> int:
    if not since_ms:
        return 1
    entries, links = metadata.tables["audit_entries"].c, metadata.tables["audit_chain"].c
    found = await session.execute(
        select(func.min(links.number))
        .select_from(links.number.table.join(entries.id.table, entries.id == links.entry_id))
        .where(entries.at_ms >= since_ms)
    )
    first = found.scalar_one()
    if first is None:  # nothing is that new: look at the newest
        first = (await session.execute(select(func.max(links.number)))).scalar_one()
    return int(first or 1)


_UNLINKED = text(
    "SELECT id FROM audit_entries WHERE at_ms >= :since_ms"
    " AND NOT EXISTS (SELECT 1 FROM audit_chain WHERE entry_id = audit_entries.id) ORDER BY at_ms, id"
)
