"""How are policy versions, checks and activations kept? All SQL of the nouns; flushes, never commits.

What is stored is never changed. A version's state follows: active, if the newest activation is its; retired,
if an older one is; checked, if it fitted the fleet when somebody last looked; else a draft.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sqlalchemy import func, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from gateway import audit
from gateway.audit import Act
from gateway.db import begin_writing
from gateway.errors import Conflict, InvalidRequest, NotFound
from gateway.inference import new_id
from gateway.paging import Page, PageRequest, page_of, seek
from gateway.routing.policy import Policy
from gateway.routing.tables import MESSAGE_CHARS, PolicyActivation, PolicyCheck, PolicyVersion

HASH_CHARS_MIN: Final = 4
"""Of a version's hash, to name it by its beginning."""
_SHOWN: Final = 5
_LOCK: Final = 0x706F_6C69
"""PostgreSQL's advisory lock of whoever activates a version."""


class State(StrEnum):
    """How far a version got."""

    DRAFT = "draft"
    CHECKED = "checked"
    ACTIVE = "active"
    RETIRED = "retired"


class Origin(StrEnum):
    """Why a version came into force."""

    SEED = "seed"
    """A gateway started, and nobody had published anything yet."""
    PUBLISH = "publish"
    ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True)
class Version:
    """A stored version, and what became of it."""

    version: str
    name: str
    text: str
    state: State
    author: str | None
    message: str | None
    created_at_ms: int
    checked_at_ms: int | None
    """When somebody last looked whether it fits."""
    complaint: str | None
    """What was wrong then."""
    activated_at_ms: int | None
    """When it last came into force."""
    retired_at_ms: int | None
    """When another one last took its place."""


@dataclass(frozen=True, slots=True)
class Activation:
    """From an instant on requests followed this version."""

    number: int
    version: str
    previous: str | None
    origin: Origin
    at_ms: int
    actor: str
    message: str | None


async def lock_activations(session: AsyncSession) -> None:
    """Let nobody else activate anything until this transaction ends; what is read then is the newest."""
    await begin_writing(session)
    if session.get_bind().dialect.name == "postgresql":
        await session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


async def read_active(session: AsyncSession) -> Activation | None:
    """What is in force; None: nothing was ever activated."""
    newest = select(PolicyActivation).order_by(col(PolicyActivation.number).desc()).limit(1)
    row = (await session.execute(newest)).scalar_one_or_none()
    return None if row is None else _activation(row)


async def text_of(session: AsyncSession, version: str) -> str:
    """The YAML of a version, by its whole name.

    Raises:
        NotFound: there is none of that name.
    """
    found = await session.execute(select(PolicyVersion.text).where(col(PolicyVersion.version) == version))
    stored = found.scalar_one_or_none()
    if stored is None:
        raise NotFound(f"There is no policy version {version[:80]!r}.")
    return stored


async def find_version(session: AsyncSession, wanted: str) -> str:
    """The whole name of a version: `name@hash`, the hash, or the hash's beginning.

    Raises:
        NotFound: there is none; says how to see those that there are.
        InvalidRequest: several begin like this.
    """
    if await session.get(PolicyVersion, wanted) is not None:
        return wanted
    name, at, start = wanted.rpartition("@")
    statement = select(PolicyVersion.version).order_by(col(PolicyVersion.first_seen_at_ms).desc())
    if len(start) >= HASH_CHARS_MIN:
        begins = col(PolicyVersion.version).contains(f"@{start}", autoescape=True)
        found = (await session.execute(statement.where(begins))).scalars()
        hits = [one for one in found if _begins(one, name if at else None, start)]
        if len(hits) == 1:
            return hits[0]
        if hits:
            shown = ", ".join(hits[:_SHOWN])
            raise InvalidRequest(
                f"Several policy versions begin with {wanted[:80]!r}: {shown}. Say more of it."
            )
    raise NotFound(
        f"There is no policy version {wanted[:80]!r}. `tollgate policy list` shows all; a version is named by"
        f" name@hash or by at least {HASH_CHARS_MIN} characters of the hash."
    )


def _begins(version: str, name: str | None, start: str) -> bool:
    of, _, hashed = version.rpartition("@")
    return hashed.startswith(start) and name in {None, of}


async def show_version(session: AsyncSession, version: str) -> Version:
    """A version, by its whole name.

    Raises:
        NotFound: there is none of that name.
    """
    row = await session.get(PolicyVersion, version)
    if row is None:
        raise NotFound(f"There is no policy version {version[:80]!r}.")
    return (await _described(session, [row]))[0]


async def page_versions(session: AsyncSession, page: PageRequest) -> Page[Version]:
    """Stored versions, the newest first.

    Raises:
        InvalidRequest: the limit or the cursor is wrong.
    """
    statement = seek(
        select(PolicyVersion),
        page,
        at=col(PolicyVersion.first_seen_at_ms),
        row_id=col(PolicyVersion.version),
        newest_first=True,
    )
    rows = (await session.execute(statement)).scalars().all()
    return page_of(await _described(session, rows), page, lambda one: (one.created_at_ms, one.version))


async def page_activations(session: AsyncSession, page: PageRequest) -> Page[Activation]:
    """Activations, the newest first.

    Raises:
        InvalidRequest: the limit or the cursor is wrong.
    """
    statement = seek(
        select(PolicyActivation),
        page,
        at=col(PolicyActivation.number),
        row_id=col(PolicyActivation.version),
        newest_first=True,
    )
    rows = (await session.execute(statement)).scalars().all()
    return page_of([_activation(row) for row in rows], page, lambda one: (one.number, one.version))


# ------------------------------------------------------------------------------------------------ writing
async def store(
    session: AsyncSession, policy: Policy, *, act: Act, message: str | None, complaint: str | None
) -> None:
    """Write a version down, and whether it fits the fleet. What is stored keeps its text and its author.

    Args:
        session: the caller's.
        policy: the version.
        act: who stores it, and when.
        message: what it is for.
        complaint: what does not fit; None: everything does.

    Raises:
        InvalidRequest: the message is no message.
    """
    row = await _new_version(session, policy, act=act, message=message)
    check = await _new_check(session, policy.version, act=act, complaint=complaint)
    if row is not None:
        await audit.write(session, act, "policy.draft", row=row, along=[] if check is None else [check])
    elif check is not None:
        await audit.write(session, act, "policy.check", row=check)


async def record_check(session: AsyncSession, version: str, *, act: Act, complaint: str | None) -> None:
    """Write down whether a stored version fits the fleet, if that was not known or has changed.

    Args:
        session: the caller's.
        version: a stored one.
        act: who looked, and when.
        complaint: what is wrong; None: it fits.
    """
    check = await _new_check(session, version, act=act, complaint=complaint)
    if check is not None:
        await audit.write(session, act, "policy.check", row=check)


async def activate(
    session: AsyncSession,
    policy: Policy,
    *,
    after: Activation | None,
    origin: Origin,
    act: Act,
    message: str | None,
) -> Activation:
    """Put a version that fits the fleet into force; it is written down with that, if it is new.

    Args:
        session: the caller's, who holds the lock of activations.
        policy: what shall come into force.
        after: what is in force; None: nothing.
        origin: why.
        act: who does it, and when.
        message: why, in people's words.

    Raises:
        Conflict: somebody else activated one after that.
        InvalidRequest: the message is no message.
    """
    version = policy.version
    stored = await _new_version(session, policy, act=act, message=message)
    check = await _new_check(session, version, act=act, complaint=None)
    row = PolicyActivation(
        number=1 if after is None else after.number + 1,
        version=version,
        previous=None if after is None else after.version,
        origin=origin,
        at_ms=act.at_ms,
        actor_id=act.actor.id,
        actor_name=act.actor.name,
        message=message,
    )
    along = [each for each in (stored, check) if each is not None]
    await audit.write(session, act, f"policy.{origin}", row=row, along=along)
    return _activation(row)


async def _new_version(
    session: AsyncSession, policy: Policy, *, act: Act, message: str | None
) -> PolicyVersion | None:
    """The row of a version that was never seen before; None: it was."""
    if message is not None and not (0 < len(message) <= MESSAGE_CHARS and message.isprintable()):
        raise InvalidRequest(
            f"A message has 1 to {MESSAGE_CHARS} characters, and no line breaks.", param="message"
        )
    if await session.get(PolicyVersion, policy.version) is not None:
        return None
    return PolicyVersion(
        version=policy.version,
        name=policy.name,
        text=policy.text,
        first_seen_at_ms=act.at_ms,
        author_id=act.actor.id,
        author_name=act.actor.name,
        message=message,
    )


async def _new_check(
    session: AsyncSession, version: str, *, act: Act, complaint: str | None
) -> PolicyCheck | None:
    """The row of a check that found something else than the last one; None: it found the same."""
    last = await _last_checks(session, [version])
    if version in last and last[version].complaint == complaint:
        return None
    return PolicyCheck(
        id=new_id("chk_", act.at_ms),
        version=version,
        at_ms=act.at_ms,
        is_fit=complaint is None,
        complaint=complaint,
    )


def refuse_other(active: Activation | None, expected: str | None) -> None:
    """Insist that a version is in force.

    Raises:
        Conflict: another one is; names it.
    """
    if expected is not None and (active is None or active.version != expected):
        if active is None:
            raise Conflict(f"No policy is active, and {expected[:80]} was expected. Nothing was changed.")
        raise Conflict(
            f"The active policy is {active.version}, not {expected[:80]}: {active.actor} activated it"
            " meanwhile. Nothing was changed. Look at the difference and repeat."
        )


# ------------------------------------------------------------------------------------------------ reading
async def _described(session: AsyncSession, rows: Sequence[PolicyVersion]) -> list[Version]:
    names = [row.version for row in rows]
    checks = await _last_checks(session, names)
    last = await _last_activations(session, names)
    newest = (await session.execute(select(func.max(col(PolicyActivation.number))))).scalar_one()
    retired = await _instants(session, [one.number + 1 for one in last.values()])
    found = []
    for row in rows:
        check, activation = checks.get(row.version), last.get(row.version)
        if activation is not None:
            state = State.ACTIVE if activation.number == newest else State.RETIRED
        elif row.author_id is None:  # a start before activations were written down put it into force
            state = State.RETIRED
        else:
            state = State.CHECKED if check is not None and check.is_fit else State.DRAFT
        found.append(
            Version(
                version=row.version,
                name=row.name,
                text=row.text,
                state=state,
                author=row.author_name,
                message=row.message,
                created_at_ms=row.first_seen_at_ms,
                checked_at_ms=None if check is None else check.at_ms,
                complaint=None if check is None else check.complaint,
                activated_at_ms=None if activation is None else activation.at_ms,
                retired_at_ms=None if activation is None else retired.get(activation.number + 1),
            )
        )
    return found


async def _last_checks(session: AsyncSession, versions: Sequence[str]) -> dict[str, PolicyCheck]:
    statement = (
        select(PolicyCheck)
        .where(col(PolicyCheck.version).in_(versions))
        .order_by(col(PolicyCheck.at_ms), col(PolicyCheck.id))
    )
    return {row.version: row for row in (await session.execute(statement)).scalars()}


async def _last_activations(session: AsyncSession, versions: Sequence[str]) -> dict[str, PolicyActivation]:
    newest = (
        select(func.max(col(PolicyActivation.number)))
        .where(col(PolicyActivation.version).in_(versions))
        .group_by(col(PolicyActivation.version))
    )
    statement = select(PolicyActivation).where(col(PolicyActivation.number).in_(newest))
    return {row.version: row for row in (await session.execute(statement)).scalars()}


async def _instants(session: AsyncSession, numbers: Sequence[int]) -> dict[int, int]:
    statement = select(PolicyActivation).where(col(PolicyActivation.number).in_(numbers))
    return {row.number: row.at_ms for row in (await session.execute(statement)).scalars()}


def _activation(row: PolicyActivation) -> Activation:
    return Activation(
        number=row.number,
        version=row.version,
        previous=row.previous,
        origin=Origin(row.origin),
        at_ms=row.at_ms,
        actor=row.actor_name,
        message=row.message,
    )
