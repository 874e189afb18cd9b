"""Which people may log in to the console? Their SQL; flushes, never commits.

A person has a password, or comes from the company's own login (OpenID Connect), known there by issuer and
subject. Programs use administrators' keys instead.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col, select

from gateway import audit
from gateway.audit import Act
from gateway.errors import Conflict, NotFound
from gateway.identity.credentials import check_name
from gateway.identity.passwords import hash_password
from gateway.identity.roles import Role
from gateway.identity.tables import Person
from gateway.inference import new_id
from gateway.paging import Page, PageRequest, page_of, seek

PERSON_PREFIX = "per_"


@dataclass(frozen=True, slots=True)
class PersonRecord:
    """Somebody who may log in, while not retired."""

    id: str
    name: str
    role: Role
    password_hash: str | None
    subject: str | None
    """`issuer|sub` of OpenID Connect; None: logs in by password."""
    created_at_ms: int
    password_set_at_ms: int | None = None
    retired_at_ms: int | None = None


async def create_person(
    session: AsyncSession,
    name: str,
    role: Role,
    *,
    act: Act,
    password_hash: str | None = None,
    subject: str | None = None,
) -> PersonRecord:
    """A person, with a password or a subject.

    Raises:
        InvalidRequest: the name is none.
        Conflict: somebody has that name.
    """
    check_name(name)
    person = Person(
        id=new_id(PERSON_PREFIX, act.at_ms),
        name=name,
        role=role,
        password_hash=password_hash,
        password_set_at_ms=None if password_hash is None else act.at_ms,
        subject=subject,
        created_at_ms=act.at_ms,
    )
    await audit.write(
        session,
        act,
        "person.create",
        row=person,
        conflict=f"There is a person named {name!r} already: give another name, or retire that one.",
    )
    return _record(person)


async def set_password(session: AsyncSession, name_or_id: str, password: str, *, act: Act) -> PersonRecord:
    """Give a person another password; it ends the logins made with the old one.

    Raises:
        NotFound: nobody has that name or id.
        Conflict: the person is retired, or logs in elsewhere.
        InvalidRequest: it is no password for that person, however they were named.
    """
    person = await _for_change(session, name_or_id)
    _require_password(person)
    # Checked against the name that the row says: whoever asks may have given the id.
    password_hash = await asyncio.to_thread(hash_password, password, name=person.name)
    return await _take_over(session, person, password_hash, act=act)


async def change_own_password(
    session: AsyncSession, known: PersonRecord, password_hash: str, *, act: Act
) -> PersonRecord:
    """The same by the person, who has just given the password of `known`.

    The caller begins by `begin_writing` and commits.

    Raises:
        NotFound: there is no such person.
        Conflict: the person is retired, logs in elsewhere, or has another password meanwhile.
    """
    person = await _for_change(session, known.id)
    _require_password(person)
    if person.password_hash != known.password_hash:
        raise Conflict("Your password was changed at the same moment. Log in again.")
    return await _take_over(session, person, password_hash, act=act)


def _require_password(person: Person) -> None:
    if person.retired_at_ms is not None:
        raise Conflict(f"{person.name!r} is retired and cannot log in; create another person.")
    if person.subject is not None:
        raise Conflict(f"{person.name!r} logs in with the company's own login and has no password here.")


async def _take_over(session: AsyncSession, person: Person, password_hash: str, *, act: Act) -> PersonRecord:
    # Later than the one before, whatever the clock says: that is how the audit sees that it is another one.
    set_at_ms = max(act.at_ms, (person.password_set_at_ms or 0) + 1)
    changes = {"password_hash": password_hash, "password_set_at_ms": set_at_ms}
    await audit.write(session, act, "person.set_password", row=person, changes=changes)
    return _record(person)


async def change_role(session: AsyncSession, name_or_id: str, role: Role, *, act: Act) -> PersonRecord:
    """Let a person do more or less, from the next request on.

    Raises:
        NotFound: nobody has that name or id.
        Conflict: the person is retired.
    """
    person = await _for_change(session, name_or_id)
    if person.retired_at_ms is not None:
        raise Conflict(f"{person.name!r} is retired; create another person.")
    await audit.write(session, act, "person.change_role", row=person, changes={"role": role})
    return _record(person)


async def retire_person(session: AsyncSession, name_or_id: str, *, act: Act) -> PersonRecord:
    """Let a person in no more, logins under way included; twice keeps the first instant.

    Raises:
        NotFound: nobody has that name or id.
    """
    person = await _for_change(session, name_or_id)
    if person.retired_at_ms is None:
        await audit.write(session, act, "person.retire", row=person, changes={"retired_at_ms": act.at_ms})
    return _record(person)


async def get_person(session: AsyncSession, person_id: str) -> PersonRecord:
    """One of them, retired or not.

    Raises:
        NotFound: nobody has that id.
    """
    found = await session.execute(select(Person).where(col(Person.id) == person_id))
    person = found.scalar_one_or_none()
    if person is None:
        raise NotFound(f"There is no person {person_id[:64]!r}.")
    return _record(person)


async def list_people(session: AsyncSession) -> list[PersonRecord]:
    """Everybody, the oldest first."""
    statement = select(Person).order_by(col(Person.created_at_ms), col(Person.id))
    return [_record(person) for person in (await session.execute(statement)).scalars()]


async def page_people(session: AsyncSession, page: PageRequest) -> Page[PersonRecord]:
    """A page of everybody, the oldest first.

    Raises:
        InvalidRequest: the limit or the cursor is wrong.
    """
    statement = seek(select(Person), page, at=col(Person.created_at_ms), row_id=col(Person.id))
    rows = [_record(row) for row in (await session.execute(statement)).scalars()]
    return page_of(rows, page, lambda one: (one.created_at_ms, one.id))


async def _for_change(session: AsyncSession, name_or_id: str) -> Person:
    column = col(Person.id) if name_or_id.startswith(PERSON_PREFIX) else col(Person.name)
    statement = select(Person).where(column == name_or_id).order_by(col(Person.retired_at_ms).is_not(None))
    found = await session.execute(statement.with_for_update().execution_options(populate_existing=True))
    person = found.scalars().first()
    if person is None:
        raise NotFound(f"Nobody is named {name_or_id!r}: `tollgate people list` shows all.")
    return person


def _record(person: Person) -> PersonRecord:
    return PersonRecord(
        id=person.id,
        name=person.name,
        # A role that only a newer program knows: the least there is.
        role=Role(person.role) if person.role in set(Role) else Role.VIEWER,
        password_hash=person.password_hash,
        subject=person.subject,
        created_at_ms=person.created_at_ms,
        password_set_at_ms=person.password_set_at_ms,
        retired_at_ms=person.retired_at_ms,
    )
