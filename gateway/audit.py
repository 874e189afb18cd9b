"""Who changed what? One function writes a change and its entry, in one flush of one transaction.

Whatever is `Audited` cannot reach the database in any other way: the session refuses to flush it, and refuses
bulk statements on it. Entries are never changed or deleted, and chained by hashes (`audit_chain.py`); they
hold no secret, because a table names what an entry may show of it. Running gateways are told of each change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import JSON, Column, Index, String, event, inspect
from sqlalchemy import select as select_columns
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import ORMExecuteState, Session, UOWTransaction
from sqlmodel import Field, SQLModel, col, select

from gateway.audit_chain import AuditLink, chain_at_commit
from gateway.db import EpochMs, metadata, note_change
from gateway.errors import AuthenticationFailed, Conflict
from gateway.inference import new_id
from gateway.paging import Page, PageRequest, page_of, seek

_PERMITTED = "audited"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INSTANTS = ("_at_ms", "_from_ms")


class Audited(SQLModel):
    """What cannot change without an entry in the audit."""

    audit_kind: ClassVar[str]
    audit_fields: ClassVar[tuple[str, ...]]
    """What an entry shows of it."""
    audit_topic: ClassVar[str]
    """Raised with every change, so that running gateways take it over."""

    @property
    def audit_name(self) -> str:
        """What people call it in the audit."""
        return str(getattr(self, "name"))  # noqa: B009 - every audited table has one, the class knows none

    @property
    def audit_before(self) -> dict[str, Any] | None:
        """What held before a new row of it took its place; None: nothing."""
        return None


def _text(length: int, comment: str, *, optional: bool = False) -> Any:
    return Field(default=None, sa_column=Column(String(length), nullable=optional, comment=comment))


class AuditEntry(SQLModel, table=True):
    """Who changed what, when and how. Rows are only ever added."""

    __tablename__ = "audit_entries"
    __table_args__ = (
        Index("ix_audit_entries_at", "at_ms", "id"),
        Index("ix_audit_entries_object", "object_id", "at_ms"),
        Index("ix_audit_entries_actor", "actor_id", "at_ms"),
    )

    id: str = Field(sa_column=Column(String(64), primary_key=True, comment="opaque id, aud_…"))
    at_ms: int = Field(sa_column=Column(EpochMs, nullable=False, comment="when, epoch ms"))
    source: str = _text(16, "how it was done: api, cli, console, start or job")
    request_id: str | None = _text(64, "the request that did it, as in x-request-id", optional=True)
    client: str | None = _text(64, "address of whoever connected; empty: nobody did", optional=True)
    actor_kind: str = _text(16, "bootstrap, admin_key, person, cli, gateway or guard")
    actor_id: str = _text(160, "public id of the administrator key, id of the person, or cli:<user>")
    actor_name: str = _text(128, "what people called the actor then")
    actor_role: str = _text(16, "the actor's role then")
    action: str = _text(64, "what was done, such as key.rotate")
    object_kind: str = _text(32, "what it was done to, such as key")
    object_id: str = _text(64, "its id")
    object_name: str = _text(128, "what people called it afterwards")
    before: dict[str, Any] | None = Field(
        default=None,
        sa_column=Column(
            JSON(none_as_null=True), nullable=True, comment="what changed, as it was; empty for a new one"
        ),
    )
    after: dict[str, Any] | None = Field(
        default=None,
        sa_column=Column(JSON(none_as_null=True), nullable=True, comment="what changed, as it is now"),
    )


class ActorKind(StrEnum):
    """How an actor is known."""

    BOOTSTRAP = "bootstrap"
    ADMIN_KEY = "admin_key"
    PERSON = "person"
    """Somebody with a login to the console."""
    CLI = "cli"
    GATEWAY = "gateway"
    """The program itself, as it starts."""
    GUARD = "guard"
    """The program itself, as it watches over a canary."""


class Source(StrEnum):
    """How a change was made."""

    API = "api"
    CLI = "cli"
    CONSOLE = "console"
    START = "start"
    JOB = "job"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who makes a change."""

    kind: ActorKind
    id: str
    name: str
    role: str


@dataclass(frozen=True, slots=True)
class Act:
    """The circumstances of a change."""

    actor: Actor
    source: Source
    at_ms: int
    request_id: str | None = None
    client: str | None = None
    """Address of whoever connected: the last proxy's, if there is one."""


async def write(
    session: AsyncSession,
    act: Act,
    action: str,
    *,
    row: Audited,
    changes: Mapping[str, Any] | None = None,
    successor: Audited | None = None,
    along: Iterable[Audited] = (),
    conflict: str = "Somebody else changed this at the same moment. Look again and repeat.",
) -> bool:
    """Write a new row or a change to one, and say so; whether there was anything to change.

    Args:
        session: the caller's; flushed, not committed.
        act: who does it, and when.
        action: such as `key.update`.
        row: a new one, or one that this session has read.
        changes: new values by field; what is equal already is no change.
        successor: a new row that takes the place of `row`.
        along: new rows of other tables that the same change needs; the entry is about `row`.
        conflict: what to say when the database knows another row like it.

    Raises:
        AuthenticationFailed: the actor's own key is not valid any more, whatever a gateway still believes.
        Conflict: as above.
    """
    await _require_standing(session, act)
    is_new = inspect(row).transient
    before = _view(row)
    for field, value in (changes or {}).items():
        setattr(row, field, value)
    after = _view(row)
    if is_new:
        shown: tuple[dict[str, Any] | None, dict[str, Any]] = (row.audit_before, after)
    else:
        changed = [field for field in after if after[field] != before[field]]
        if not changed and successor is None:
            return False
        shown = ({field: before[field] for field in changed}, {field: after[field] for field in changed})
    if successor is not None:
        shown[1]["rotated_to"] = _id_of(successor)
    entry = _entry(act, action, row, before=shown[0], after=shown[1])
    rows = [row] if successor is None else [row, successor]
    others = list(along)
    session.info[_PERMITTED] = {id(each) for each in (*others, *rows, entry)}
    try:
        if others:  # there are no relationships by which the session would know who refers to whom
            order = {table.name: place for place, table in enumerate(metadata.sorted_tables)}
            for each in sorted([*others, row], key=lambda one: order[str(one.__tablename__)]):
                session.add(each)
                await session.flush()
        session.add_all([*rows, entry])
        await session.flush()
    except IntegrityError:
        raise Conflict(conflict) from None
    finally:
        del session.info[_PERMITTED]
    chain_at_commit(session.sync_session, entry.model_dump())
    await note_change(session, row.audit_topic)
    return True


def _entry(
    act: Act, action: str, row: Audited, *, before: dict[str, Any] | None, after: dict[str, Any]
) -> AuditEntry:
    return AuditEntry(
        id=new_id("aud_", act.at_ms),
        at_ms=act.at_ms,
        source=act.source,
        request_id=act.request_id,
        client=act.client,
        actor_kind=act.actor.kind,
        actor_id=act.actor.id,
        actor_name=act.actor.name,
        actor_role=act.actor.role,
        action=action,
        object_kind=row.audit_kind,
        object_id=_id_of(row),
        object_name=row.audit_name,
        before=before,
        after=after,
    )


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries are wanted; None: whatever it is."""

    actor: str | None = None
    """Id or name."""
    action: str | None = None
    """Whole, or its first part (`key` for all that begins with `key.`)."""
    object: str | None = None
    """Id or name."""
    since_ms: int | None = None
    until_ms: int | None = None
    """First instant that does not count."""


async def page_entries(session: AsyncSession, wanted: AuditFilter, page: PageRequest) -> Page[AuditEntry]:
    """Entries, the newest first.

    Raises:
        InvalidRequest: the limit or the cursor is wrong.
    """
    statement = select(AuditEntry)
    if wanted.actor is not None:
        statement = statement.where(
            (col(AuditEntry.actor_id) == wanted.actor) | (col(AuditEntry.actor_name) == wanted.actor)
        )
    if wanted.action is not None:
        statement = statement.where(
            (col(AuditEntry.action) == wanted.action)
            | col(AuditEntry.action).startswith(f"{wanted.action}.", autoescape=True)
        )
    if wanted.object is not None:
        statement = statement.where(
            (col(AuditEntry.object_id) == wanted.object) | (col(AuditEntry.object_name) == wanted.object)
        )
    if wanted.since_ms is not None:
        statement = statement.where(col(AuditEntry.at_ms) >= wanted.since_ms)
    if wanted.until_ms is not None:
        statement = statement.where(col(AuditEntry.at_ms) < wanted.until_ms)
    statement = seek(statement, page, at=col(AuditEntry.at_ms), row_id=col(AuditEntry.id), newest_first=True)
    rows = (await session.execute(statement)).scalars().all()
    return page_of(rows, page, lambda row: (row.at_ms, row.id))


async def _require_standing(session: AsyncSession, act: Act) -> None:
    if act.actor.kind is ActorKind.PERSON:
        people = metadata.tables["people"].c
        found = await session.execute(
            select_columns(people.retired_at_ms).where(
                people.id == act.actor.id, people.role == act.actor.role
            )
        )
        if found.all() != [(None,)]:
            raise AuthenticationFailed("Your login is not valid any more. Nothing was changed.")
    if act.actor.kind is not ActorKind.ADMIN_KEY:
        return
    # The table by its name: identity, whose it is, is a room above.
    keys = metadata.tables["admin_keys"].c
    found = await session.execute(
        select_columns(keys.revoked_at_ms, keys.expires_at_ms).where(keys.id == act.actor.id)
    )
    standing = found.first()
    if standing is not None:
        revoked_at_ms, expires_at_ms = standing
        if revoked_at_ms is None and (expires_at_ms is None or expires_at_ms > act.at_ms):
            return
    raise AuthenticationFailed("Your administrator key is not valid any more. Nothing was changed.")


def _view(row: Audited) -> dict[str, Any]:
    return {_shown_name(field): _shown(field, getattr(row, field)) for field in row.audit_fields}


def _shown_name(field: str) -> str:
    return field.removesuffix("_ms") if field.endswith(_INSTANTS) else field


def _shown(field: str, value: Any) -> Any:
    if field.endswith(_INSTANTS) and value is not None:
        moment = _EPOCH + timedelta(milliseconds=value)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return value


def _id_of(row: Audited) -> str:
    return str(getattr(row, "id"))  # noqa: B009 - every audited table has an id, the class knows none


# --------------------------------------------------------------------------------------- nothing else writes
def _refuse_silent_changes(session: Session, context: UOWTransaction, instances: object) -> None:
    del context, instances
    permitted: set[int] = session.info.get(_PERMITTED, set())
    touched = [
        *session.new,
        *(row for row in session.dirty if session.is_modified(row)),
        *session.deleted,
    ]
    _refuse(
        row
        for row in touched
        if id(row) not in permitted and isinstance(row, Audited | AuditEntry | AuditLink)
    )
    # Even `write` only ever adds entries.
    _refuse(row for row in touched if isinstance(row, AuditEntry) and row not in session.new)


def _refuse(rows: Iterable[object]) -> None:
    for row in rows:
        raise RuntimeError(f"{type(row).__name__} is written through gateway.audit.write alone")


def _refuse_bulk_changes(state: ORMExecuteState) -> None:
    if state.is_insert or state.is_update or state.is_delete:
        table = getattr(getattr(state.statement, "table", None), "name", "")
        if table in _protected_tables():
            raise RuntimeError(f"{table} is written through gateway.audit.write alone")


def _protected_tables() -> set[str]:
    """Every audited table that is loaded, and the entries themselves."""
    tables: list[type[SQLModel]] = [*Audited.__subclasses__(), AuditEntry, AuditLink]
    return {str(table.__tablename__) for table in tables}


event.listen(Session, "before_flush", _refuse_silent_changes)
event.listen(Session, "do_orm_execute", _refuse_bulk_changes)
