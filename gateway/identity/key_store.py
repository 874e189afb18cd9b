"""How are API keys kept? Their SQL; flushes, never commits.

A key is rotated by giving its permissions to a new key with an id of its own, which names the old one: the
spend of both stays attributable to whoever used which, and the old one ends by itself after the overlap.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, not_, or_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased
from sqlmodel import col, select

from gateway import audit
from gateway.audit import Act
from gateway.errors import Conflict, InvalidRequest, NotFound
from gateway.identity.credentials import (
    KEY_PREFIX,
    OVERLAP_S_DEFAULT,
    IssuedKey,
    check_expiry,
    check_name,
    check_overlap,
    hash_of,
    mint,
    public_id,
)
from gateway.identity.store import require_in_use
from gateway.identity.tables import CLASSES, ApiKey, Project, Tenant
from gateway.identity.tags import Tags, checked_tags, sorted_tags
from gateway.paging import Page, PageRequest, page_of, seek

NAMES_MAX = 100
"""Models that one key may be limited to by name."""


class KeyState(StrEnum):
    """Whether a key works, and if not, why."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"
    RETIRED = "retired"
    """Its tenant or its project is."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key with the names that people know."""

    id: str
    secret_hash: str
    name: str
    tenant_id: str
    tenant_name: str
    project_id: str
    project_name: str
    created_at_ms: int
    revoked_at_ms: int | None
    is_internal_only: bool = True
    caches_answers: bool = True
    expires_at_ms: int | None = None
    allowed_models: tuple[str, ...] | None = None
    """None: all."""
    allowed_classes: tuple[str, ...] | None = None
    rotated_from: str | None = None
    rotated_to: str | None = None
    tenant_retired_at_ms: int | None = None
    project_retired_at_ms: int | None = None
    tags: Tags = ()
    """Fixed on the key itself."""
    project_tags: Tags = ()
    """Fixed on its project."""

    def state(self, now_ms: int) -> KeyState:
        """What it is at this instant."""
        if self.revoked_at_ms is not None:
            return KeyState.REVOKED
        if self.tenant_retired_at_ms is not None or self.project_retired_at_ms is not None:
            return KeyState.RETIRED
        if self.expires_at_ms is not None and self.expires_at_ms <= now_ms:
            return KeyState.EXPIRED
        return KeyState.ACTIVE


@dataclass(frozen=True, slots=True)
class Permissions:
    """What a key shall be limited to; None (in a change: leave it), empty: no limit."""

    models: Sequence[str] | None = None
    classes: Sequence[str] | None = None
    known_models: Collection[str] = ()
    """The aliases of the policy in force."""

    def checked(self) -> dict[str, list[str] | None]:
        """The fields that are given, by name.

        Raises:
            InvalidRequest: a name is not known; says the nearest one that is.
        """
        fields: dict[str, list[str] | None] = {}
        if self.models is not None:
            fields["allowed_models"] = _checked(self.models, self.known_models, "allowed_models") or None
        if self.classes is not None:
            fields["allowed_classes"] = _checked(self.classes, CLASSES, "allowed_classes") or None
        return fields


UNLIMITED = Permissions()


async def create_key(
    session: AsyncSession,
    project: Project,
    name: str,
    *,
    act: Act,
    permissions: Permissions = UNLIMITED,
    expires_at_ms: int | None = None,
    tags: Mapping[str, str] | None = None,
) -> IssuedKey:
    """A new key of the project; its secret is not kept anywhere.

    Raises:
        Conflict: the project or its tenant is retired.
        InvalidRequest: the name is no name, a limit is not known, a tag is none, or the expiry is over.
    """
    check_name(name)
    check_expiry(expires_at_ms, now_ms=act.at_ms)
    limits = permissions.checked()
    await _require_owner_in_use(session, project)
    issued = mint(KEY_PREFIX)
    key = ApiKey(
        id=issued.id,
        secret_hash=hash_of(issued.secret),
        tenant_id=project.tenant_id,
        project_id=project.id,
        name=name,
        created_at_ms=act.at_ms,
        expires_at_ms=expires_at_ms,
        allowed_models=limits.get("allowed_models"),
        allowed_classes=limits.get("allowed_classes"),
        tags=checked_tags(tags or {}),
    )
    await audit.write(session, act, "key.create", row=key)
    return issued


async def update_key(
    session: AsyncSession,
    key_id: str,
    *,
    act: Act,
    name: str | None = None,
    permissions: Permissions = UNLIMITED,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Change what is given; None leaves it. The same change again changes nothing.

    Tags that are given take the place of all that there were.

    Raises:
        NotFound: no key has that public id.
        Conflict: it is revoked.
        InvalidRequest: the name is no name, a limit is not known, or a tag is none.
    """
    key = await _key_for_change(session, key_id)
    if key.revoked_at_ms is not None:
        raise Conflict(f"Key {key.id} is revoked and cannot be changed; create a new one.")
    changes: dict[str, Any] = dict(permissions.checked())
    if name is not None and name != key.name:
        check_name(name)
        changes["name"] = name
    if tags is not None:
        changes["tags"] = checked_tags(tags)
    await audit.write(session, act, "key.update", row=key, changes=changes)


async def rotate_key(
    session: AsyncSession,
    key_id: str,
    *,
    act: Act,
    overlap_s: int = OVERLAP_S_DEFAULT,
    expires_at_ms: int | None = None,
) -> IssuedKey:
    """A new key with the permissions of this one, which ends when the overlap is over.

    Args:
        session: the caller's.
        key_id: the old key's public id.
        act: who does it, and when.
        overlap_s: how long both work; 0: the old one stops at once. It never lives longer than it would have.
        expires_at_ms: of the new key; None: as the old one had it.

    Raises:
        NotFound: no key has that public id.
        Conflict: it does not work any more, or was rotated already.
        InvalidRequest: the overlap or the expiry is out of range.
    """
    check_overlap(overlap_s)
    check_expiry(expires_at_ms, now_ms=act.at_ms)
    key = await _key_for_change(session, key_id)
    record = await get_key(session, key.id)
    if record.rotated_to is not None:
        raise Conflict(f"Key {key.id} was rotated already: its successor is {record.rotated_to}.")
    state = record.state(act.at_ms)
    if state is not KeyState.ACTIVE:
        raise Conflict(f"Key {key.id} is {state} and cannot be rotated; create a new one.")
    issued = mint(KEY_PREFIX)
    successor = ApiKey(
        id=issued.id,
        secret_hash=hash_of(issued.secret),
        tenant_id=key.tenant_id,
        project_id=key.project_id,
        name=key.name,
        created_at_ms=act.at_ms,
        expires_at_ms=expires_at_ms if expires_at_ms is not None else key.expires_at_ms,
        allowed_models=key.allowed_models,
        allowed_classes=key.allowed_classes,
        tags=key.tags,
        rotated_from=key.id,
    )
    await audit.write(
        session,
        act,
        "key.rotate",
        row=key,
        changes={"expires_at_ms": end_of_overlap(key.expires_at_ms, act.at_ms, overlap_s)},
        successor=successor,
        conflict=f"Key {key.id} was rotated by somebody else at the same moment.",
    )
    return issued


async def revoke_key(session: AsyncSession, key_id: str, *, act: Act) -> ApiKey:
    """Make a key useless; revoking twice keeps the first instant.

    Raises:
        NotFound: no key has that public id.
    """
    key = await _key_for_change(session, key_id)
    if key.revoked_at_ms is None:
        await audit.write(session, act, "key.revoke", row=key, changes={"revoked_at_ms": act.at_ms})
    return key


async def list_keys(session: AsyncSession) -> list[KeyRecord]:
    """Every key, oldest first."""
    statement = _keys().order_by(col(ApiKey.created_at_ms), col(ApiKey.id))
    return [_record(row) for row in await session.execute(statement)]


async def get_key(session: AsyncSession, key_id: str) -> KeyRecord:
    """The key of that public id.

    Raises:
        NotFound: there is none.
    """
    found = await session.execute(_keys().where(col(ApiKey.id) == public_id(key_id, KEY_PREFIX)))
    row = found.first()
    if row is None:
        raise _unknown(key_id)
    return _record(row)


async def page_keys(
    session: AsyncSession,
    page: PageRequest,
    *,
    now_ms: int,
    tenant: Tenant | None = None,
    project: Project | None = None,
    state: KeyState | None = None,
    search: str | None = None,
) -> Page[KeyRecord]:
    """Keys of one owner or of all, in one state or in any, the oldest first.

    Args:
        session: the caller's.
        page: which piece.
        now_ms: states are those of this instant, epoch ms.
        tenant: only its keys.
        project: only its keys.
        state: only in this one.
        search: only those whose public id, or name, project or tenant, has this text, in any case.

    Raises:
        InvalidRequest: the limit or the cursor is wrong.
    """
    statement = _keys()
    if tenant is not None:
        statement = statement.where(col(ApiKey.tenant_id) == tenant.id)
    if project is not None:
        statement = statement.where(col(ApiKey.project_id) == project.id)
    if state is not None:
        statement = statement.where(_is_in(state, now_ms))
    if search:
        columns = (ApiKey.id, ApiKey.name, Project.name, Tenant.name)
        found = [col(column).icontains(search, autoescape=True) for column in columns]
        statement = statement.where(or_(*found))
    statement = seek(statement, page, at=col(ApiKey.created_at_ms), row_id=col(ApiKey.id))
    records = [_record(row) for row in await session.execute(statement)]
    return page_of(records, page, lambda record: (record.created_at_ms, record.id))


def end_of_overlap(expires_at_ms: int | None, now_ms: int, overlap_s: int) -> int:
    """When a rotated key stops: after the overlap, or earlier if it would have anyway."""
    end_ms = now_ms + overlap_s * 1000
    return end_ms if expires_at_ms is None else min(end_ms, expires_at_ms)


def _keys() -> Select[ApiKey, Tenant, Project, str]:
    successor = aliased(ApiKey)
    return (
        select(ApiKey, Tenant, Project, successor.id)
        .join(Tenant, col(Tenant.id) == col(ApiKey.tenant_id))
        .join(Project, col(Project.id) == col(ApiKey.project_id))
        .outerjoin(successor, col(successor.rotated_from) == col(ApiKey.id))
    )


def _record(row: Any) -> KeyRecord:
    key, tenant, project, rotated_to = row
    return KeyRecord(
        id=key.id,
        secret_hash=key.secret_hash,
        name=key.name,
        tenant_id=key.tenant_id,
        tenant_name=tenant.name,
        project_id=key.project_id,
        project_name=project.name,
        created_at_ms=key.created_at_ms,
        revoked_at_ms=key.revoked_at_ms,
        is_internal_only=tenant.is_internal_only,
        caches_answers=tenant.caches_answers,
        expires_at_ms=key.expires_at_ms,
        allowed_models=tuple(key.allowed_models) if key.allowed_models else None,
        allowed_classes=tuple(key.allowed_classes) if key.allowed_classes else None,
        rotated_from=key.rotated_from,
        rotated_to=rotated_to,
        tenant_retired_at_ms=tenant.retired_at_ms,
        project_retired_at_ms=project.retired_at_ms,
        tags=sorted_tags(key.tags),
        project_tags=sorted_tags(project.tags),
    )


def _is_in(state: KeyState, now_ms: int) -> ColumnElement[bool]:
    """The same as `KeyRecord.state`, in SQL."""
    is_revoked = col(ApiKey.revoked_at_ms).is_not(None)
    is_retired = or_(col(Tenant.retired_at_ms).is_not(None), col(Project.retired_at_ms).is_not(None))
    is_over = and_(col(ApiKey.expires_at_ms).is_not(None), col(ApiKey.expires_at_ms) <= now_ms)
    if state is KeyState.REVOKED:
        return is_revoked
    if state is KeyState.RETIRED:
        return and_(not_(is_revoked), is_retired)
    if state is KeyState.EXPIRED:
        return and_(not_(is_revoked), not_(is_retired), is_over)
    return and_(not_(is_revoked), not_(is_retired), not_(is_over))


async def _key_for_change(session: AsyncSession, key_id: str) -> ApiKey:
    statement = select(ApiKey).where(col(ApiKey.id) == public_id(key_id, KEY_PREFIX)).with_for_update()
    found = await session.execute(statement.execution_options(populate_existing=True))
    key = found.scalars().first()
    if key is None:
        raise _unknown(key_id)
    return key


async def _require_owner_in_use(session: AsyncSession, project: Project) -> None:
    tenant = await session.get(Tenant, project.tenant_id)
    for owner in (tenant, project):
        if owner is not None:
            require_in_use(owner)


def _unknown(key_id: str) -> NotFound:
    # Only the beginning: somebody may have pasted a secret.
    return NotFound(f"No key {key_id[:12]!r}; `tollgate keys list` shows the public ids.")


def _checked(names: Sequence[str], known: Collection[str], field: str) -> list[str]:
    if len(names) > NAMES_MAX:
        raise InvalidRequest(f"`{field}` holds at most {NAMES_MAX} names.", param=field)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, list(known), n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}."
            raise InvalidRequest(f"`{field}`: there is no {name[:128]!r}. {hint}", param=field)
    return list(dict.fromkeys(names))
