"""How are administrators' keys kept? Their SQL; flushes, never commits.

The bootstrap key is not among them: it is a setting, always there, so that nobody can lock themselves out.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased
from sqlmodel import col, select

from gateway import audit
from gateway.audit import Act
from gateway.errors import AuthenticationFailed, Conflict, NotFound
from gateway.identity.credentials import (
    ADMIN_PREFIX,
    OVERLAP_S_DEFAULT,
    IssuedKey,
    check_expiry,
    check_name,
    check_overlap,
    hash_of,
    mint,
    public_id,
)
from gateway.identity.key_store import KeyState, end_of_overlap
from gateway.identity.roles import Role
from gateway.identity.tables import AdminKey, Person
from gateway.paging import Page, PageRequest, page_of, seek


@dataclass(frozen=True, slots=True)
class AdminRecord:
    """An administrator's key."""

    id: str
    secret_hash: str
    name: str
    role: Role
    created_at_ms: int
    revoked_at_ms: int | None = None
    expires_at_ms: int | None = None
    rotated_from: str | None = None
    rotated_to: str | None = None

    def state(self, now_ms: int) -> KeyState:
        """What it is at this instant."""
        if self.revoked_at_ms is not None:
            return KeyState.REVOKED
        if self.expires_at_ms is not None and self.expires_at_ms <= now_ms:
            return KeyState.EXPIRED
        return KeyState.ACTIVE


@dataclass(frozen=True, slots=True)
class Whoever:
    """Whose doing something was, as far as the audit's id of an actor tells."""

    first_key: str
    """The public id from which the actor's key was rotated, however often; else the actor's id."""
    name: str


async def whoever_is(session: AsyncSession, actor_id: str) -> Whoever:
    """Who an actor is, by the id that the audit has."""
    key = await session.get(AdminKey, actor_id)
    if key is None:
        person = await session.get(Person, actor_id)
        return Whoever(actor_id, actor_id.removeprefix("cli:") if person is None else person.name)
    first = key
    while first.rotated_from is not None:
        before = await session.get(AdminKey, first.rotated_from)
        if before is None:
            break
        first = before
    return Whoever(first.id, key.name)


async def actor_with_secret(session: AsyncSession, secret: str, *, now_ms: int) -> AdminRecord:
    """The administrator's key behind a secret that somebody shows at a terminal.

    Raises:
        AuthenticationFailed: there is none, or it is not valid any more.
    """
    found = await session.execute(_keys().where(col(AdminKey.secret_hash) == hash_of(secret.strip())))
    row = found.first()
    record = None if row is None else _record(*row)
    if record is None or record.state(now_ms) is not KeyState.ACTIVE:
        why = "unknown" if record is None else record.state(now_ms)
        raise AuthenticationFailed(
            f"That administrator key is {why}: `tollgate admins list` shows those that are valid."
        )
    return record


async def create_admin_key(
    session: AsyncSession, name: str, role: Role, *, act: Act, expires_at_ms: int | None = None
) -> IssuedKey:
    """A new administrator's key; its secret is not kept anywhere.

    Raises:
        InvalidRequest: the name is no name, or the expiry is over.
    """
    check_name(name)
    check_expiry(expires_at_ms, now_ms=act.at_ms)
    issued = mint(ADMIN_PREFIX)
    key = AdminKey(
        id=issued.id,
        secret_hash=hash_of(issued.secret),
        name=name,
        role=role,
        created_at_ms=act.at_ms,
        expires_at_ms=expires_at_ms,
    )
    await audit.write(session, act, "admin_key.create", row=key)
    return issued


async def rotate_admin_key(
    session: AsyncSession, key_id: str, *, act: Act, overlap_s: int = OVERLAP_S_DEFAULT
) -> IssuedKey:
    """A new key of the same name and role; this one ends when the overlap is over.

    Raises:
        NotFound: no administrator's key has that public id.
        Conflict: it does not work any more, or was rotated already.
        InvalidRequest: the overlap is out of range.
    """
    check_overlap(overlap_s)
    key = await _for_change(session, key_id)
    record = await get_admin_key(session, key.id)
    if record.rotated_to is not None:
        raise Conflict(
            f"Administrator key {key.id} was rotated already: its successor is {record.rotated_to}."
        )
    state = record.state(act.at_ms)
    if state is not KeyState.ACTIVE:
        raise Conflict(f"Administrator key {key.id} is {state} and cannot be rotated; create a new one.")
    issued = mint(ADMIN_PREFIX)
    successor = AdminKey(
        id=issued.id,
        secret_hash=hash_of(issued.secret),
        name=key.name,
        role=key.role,
        created_at_ms=act.at_ms,
        expires_at_ms=key.expires_at_ms,
        rotated_from=key.id,
    )
    await audit.write(
        session,
        act,
        "admin_key.rotate",
        row=key,
        changes={"expires_at_ms": end_of_overlap(key.expires_at_ms, act.at_ms, overlap_s)},
        successor=successor,
        conflict=f"Administrator key {key.id} was rotated by somebody else at the same moment.",
    )
    return issued


async def revoke_admin_key(session: AsyncSession, key_id: str, *, act: Act) -> None:
    """Make an administrator's key useless, and the logins made with it; twice keeps the first instant.

    Raises:
        NotFound: no administrator's key has that public id.
    """
    key = await _for_change(session, key_id)
    if key.revoked_at_ms is None:
        await audit.write(session, act, "admin_key.revoke", row=key, changes={"revoked_at_ms": act.at_ms})


async def list_admin_keys(session: AsyncSession) -> list[AdminRecord]:
    """Every administrator's key, oldest first."""
    statement = _keys().order_by(col(AdminKey.created_at_ms), col(AdminKey.id))
    return [_record(*row) for row in await session.execute(statement)]


async def get_admin_key(session: AsyncSession, key_id: str) -> AdminRecord:
    """The administrator's key of that public id.

    Raises:
        NotFound: there is none.
    """
    found = await session.execute(_keys().where(col(AdminKey.id) == public_id(key_id, ADMIN_PREFIX)))
    row = found.first()
    if row is None:
        raise _unknown(key_id)
    return _record(*row)


async def page_admin_keys(session: AsyncSession, page: PageRequest) -> Page[AdminRecord]:
    """Administrators' keys, the oldest first.

    Raises:
        InvalidRequest: the limit or the cursor is wrong.
    """
    statement = seek(_keys(), page, at=col(AdminKey.created_at_ms), row_id=col(AdminKey.id))
    records = [_record(*row) for row in await session.execute(statement)]
    return page_of(records, page, lambda record: (record.created_at_ms, record.id))


def _keys() -> Select[AdminKey, str]:
    successor = aliased(AdminKey)
    return select(AdminKey, successor.id).outerjoin(
        successor, col(successor.rotated_from) == col(AdminKey.id)
    )


def _record(key: AdminKey, rotated_to: str | None) -> AdminRecord:
    return AdminRecord(
        id=key.id,
        secret_hash=key.secret_hash,
        name=key.name,
        # A role that only a newer program knows: the least there is, and no reason to know no keys at all.
        role=Role(key.role) if key.role in set(Role) else Role.VIEWER,
        created_at_ms=key.created_at_ms,
        revoked_at_ms=key.revoked_at_ms,
        expires_at_ms=key.expires_at_ms,
        rotated_from=key.rotated_from,
        rotated_to=rotated_to,
    )


async def _for_change(session: AsyncSession, key_id: str) -> AdminKey:
    statement = select(AdminKey).where(col(AdminKey.id) == public_id(key_id, ADMIN_PREFIX))
    found = await session.execute(statement.with_for_update().execution_options(populate_existing=True))
    key = found.scalars().first()
    if key is None:
        raise _unknown(key_id)
    return key


def _unknown(key_id: str) -> NotFound:
    # Only the beginning: somebody may have pasted a secret.
    return NotFound(f"No administrator key {key_id[:12]!r}; `tollgate admins list` shows the public ids.")
