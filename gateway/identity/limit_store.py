"""How are limits kept? Their SQL; flushes, never commits.

A tenant, a project or a key has one limit at most at a time. Setting one anew changes it, taking it away ends
it. The limit of a key belongs to its whole line of rotations: it is kept under the id of the first one.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Select, and_, func
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased
from sqlmodel import col, select

from gateway import audit
from gateway.audit import Act
from gateway.errors import InvalidRequest, NotFound
from gateway.identity.key_store import get_key
from gateway.identity.limits import Limit, Scope
from gateway.identity.store import get_project, get_tenant
from gateway.identity.tables import ApiKey, Project, RateLimit, Tenant
from gateway.inference import new_id
from gateway.paging import Page, PageRequest, page_of, seek

BOUND_MAX = 10**15
"""More is a mistake; and it fits into every database's integers."""


@dataclass(frozen=True, slots=True)
class LimitOwner:
    """The tenant, the project or the key that a limit is set on."""

    scope: Scope
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a limit holds; None: any number."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None

    def checked(self) -> dict[str, int | None]:
        """By field.

        Raises:
            InvalidRequest: there is none, or one is out of range.
        """
        fields = {
            "requests_per_minute": self.requests_per_minute,
            "tokens_per_minute": self.tokens_per_minute,
            "concurrent_requests": self.concurrent_requests,
        }
        for name, bound in fields.items():
            if bound is not None and not 1 <= bound <= BOUND_MAX:
                raise InvalidRequest(
                    f"`{name}` must be 1 to {BOUND_MAX:,}, or left out for any number. To refuse every call,"
                    " revoke the key or retire the project.",
                    param=name,
                )
        if all(bound is None for bound in fields.values()):
            raise InvalidRequest(
                f"A limit needs at least one of {', '.join(fields)}; to lift it, take it away"
                " (DELETE, or `tollgate limits clear`)."
            )
        return fields


@dataclass(frozen=True, slots=True)
class LimitRecord:
    """A limit with the names that people know."""

    row: RateLimit
    name: str
    """Of what it is set on."""
    tenant_name: str


async def find_owner(
    session: AsyncSession, scope: Scope, name_or_id: str, *, tenant: str | None = None
) -> LimitOwner:
    """What a limit shall be set on.

    Args:
        session: the caller's.
        scope: a tenant, a project or a key.
        name_or_id: of a tenant either, of a project its id (its name too where the tenant is given), of a key
            its public id; every key of one line of rotations is the same.
        tenant: name or id of the project's tenant.

    Raises:
        NotFound: there is none.
    """
    if scope is Scope.TENANT:
        found = await get_tenant(session, name_or_id)
        return LimitOwner(scope, found.id, found.name)
    if scope is Scope.PROJECT:
        owner = None if tenant is None else await get_tenant(session, tenant)
        project = await get_project(session, name_or_id, tenant=owner)
        return LimitOwner(scope, project.id, project.name)
    key = await get_key(session, name_or_id)
    first = key
    while first.rotated_from is not None:
        first = await get_key(session, first.rotated_from)
    return LimitOwner(scope, first.id, key.name)


async def set_limit(session: AsyncSession, owner: LimitOwner, bounds: Bounds, *, act: Act) -> LimitRecord:
    """Give it these bounds and no others. The same again changes nothing.

    Raises:
        InvalidRequest: there is no bound, or one is out of range.
        Conflict: somebody else set it at the same moment.
    """
    fields = bounds.checked()
    row = await _live(session, owner, for_change=True)
    if row is not None:
        await audit.write(session, act, "limit.update", row=row, changes=fields)
    else:
        row = RateLimit(
            id=new_id("lim_", act.at_ms),
            scope=owner.scope,
            scope_id=owner.id,
            name=owner.name,
            created_at_ms=act.at_ms,
            **fields,
        )
        said = f"Somebody else set a limit on this {owner.scope} at the same moment. Look again and repeat."
        await audit.write(session, act, "limit.create", row=row, conflict=said)
    return await _record(session, row)


async def end_limit(session: AsyncSession, owner: LimitOwner, *, act: Act) -> LimitRecord:
    """Take its limit away; twice keeps the first instant.

    Raises:
        NotFound: it never had one.
    """
    row = await _live(session, owner, for_change=True)
    if row is not None:
        await audit.write(session, act, "limit.end", row=row, changes={"ended_at_ms": act.at_ms})
        return await _record(session, row)
    statement = _limits().where(col(RateLimit.scope) == owner.scope, col(RateLimit.scope_id) == owner.id)
    newest = statement.order_by(col(RateLimit.ended_at_ms).desc(), col(RateLimit.id).desc()).limit(1)
    ended = (await session.execute(newest)).first()
    if ended is None:
        raise _none(owner)
    return LimitRecord(*ended)


async def get_limit(session: AsyncSession, owner: LimitOwner) -> LimitRecord:
    """Its limit.

    Raises:
        NotFound: it has none.
    """
    row = await _live(session, owner)
    if row is None:
        raise _none(owner)
    return await _record(session, row)


async def page_limits(
    session: AsyncSession, page: PageRequest, *, scope: Scope | None = None
) -> Page[LimitRecord]:
    """Limits that hold, of one kind or of all, the oldest first.

    Raises:
        InvalidRequest: the limit or the cursor is wrong.
    """
    statement = _limits().where(col(RateLimit.ended_at_ms).is_(None))
    if scope is not None:
        statement = statement.where(col(RateLimit.scope) == scope)
    statement = seek(statement, page, at=col(RateLimit.created_at_ms), row_id=col(RateLimit.id))
    records = [LimitRecord(*row) for row in await session.execute(statement)]
    return page_of(records, page, lambda record: (record.row.created_at_ms, record.row.id))


async def list_limits(session: AsyncSession) -> list[Limit]:
    """Every limit that holds, for those who hold it. Not one on what only a newer program knows."""
    rows = (await session.execute(select(RateLimit).where(col(RateLimit.ended_at_ms).is_(None)))).scalars()
    return [
        Limit(
            scope=Scope(row.scope),
            scope_id=row.scope_id,
            name=row.name,
            requests_per_minute=row.requests_per_minute,
            tokens_per_minute=row.tokens_per_minute,
            concurrent_requests=row.concurrent_requests,
        )
        for row in rows
        if row.scope in set(Scope)
    ]


async def _live(session: AsyncSession, owner: LimitOwner, *, for_change: bool = False) -> RateLimit | None:
    statement = select(RateLimit).where(
        col(RateLimit.scope) == owner.scope,
        col(RateLimit.scope_id) == owner.id,
        col(RateLimit.ended_at_ms).is_(None),
    )
    if for_change:
        statement = statement.with_for_update().execution_options(populate_existing=True)
    return (await session.execute(statement)).scalars().first()


async def _record(session: AsyncSession, row: RateLimit) -> LimitRecord:
    return LimitRecord(*(await session.execute(_limits().where(col(RateLimit.id) == row.id))).one())


def _limits() -> Select[RateLimit, str, str]:
    """Limits with what they are set on, which is in one of three tables, and with its tenant."""
    owner = aliased(Tenant)
    return (
        select(RateLimit, func.coalesce(Project.name, ApiKey.name, owner.name), owner.name)
        .outerjoin(
            Project,
            and_(col(RateLimit.scope) == Scope.PROJECT, col(Project.id) == col(RateLimit.scope_id)),
        )
        .outerjoin(ApiKey, and_(col(RateLimit.scope) == Scope.KEY, col(ApiKey.id) == col(RateLimit.scope_id)))
        .join(
            owner,
            col(owner.id) == func.coalesce(Project.tenant_id, ApiKey.tenant_id, col(RateLimit.scope_id)),
        )
    )


def _none(owner: LimitOwner) -> NotFound:
    return NotFound(
        f"The {owner.scope} {owner.name!r} has no limit; `tollgate limits list` shows those there are."
    )
