"""`tollgate people`: who may log in to the console with a password?"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.people_views import PersonView, person_view
from gateway.commands.terminal import (
    Json,
    act_of_the_user,
    all_rows,
    in_session,
    out,
    print_json,
    print_table,
)
from gateway.errors import InvalidRequest
from gateway.identity import people_store
from gateway.identity.passwords import hash_password
from gateway.identity.roles import Role

people = typer.Typer(help="People who log in to the console with a password.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="what the person logs in with, or the id")]
FromInput = Annotated[
    bool, typer.Option("--password-stdin", help="read the password from standard input, for scripts")
]


@people.command("create", epilog="Example: `tollgate people create ada@acme.example --role finance`")
def people_create(
    name: Annotated[str, typer.Argument(help="what the person logs in with")],
    role: Annotated[Role, typer.Option(help="what the person may do")],
    *,
    from_input: FromInput = False,
    as_machine: Json = False,
) -> None:
    """Let a person log in to the console. The password is asked for and kept as an argon2id hash."""
    act = act_of_the_user()
    password_hash = hash_password(_password(from_input=from_input), name=name)

    async def work(session: AsyncSession) -> PersonView:
        return person_view(
            await people_store.create_person(session, name, role, act=act, password_hash=password_hash)
        )

    _tell(in_session(work), "may log in to the console", as_machine=as_machine)


@people.command("list", epilog="Example: `tollgate people list`")
def people_list(*, as_machine: Json = False) -> None:
    """Show who may log in to the console by name, the retired ones too."""

    async def work(session: AsyncSession) -> list[PersonView]:
        rows = await all_rows(lambda page: people_store.page_people(session, page))
        return [person_view(record) for record in rows]

    found = in_session(work)
    if as_machine:
        print_json(found)
        return
    print_table(
        ("id", "name", "role", "logs in by", "created", "retired"),
        [(one.id, one.name, one.role, one.logs_in_by, one.created_at, one.retired_at) for one in found],
    )


@people.command("password", epilog="Example: `tollgate people password ada@acme.example`")
def people_password(name: Name, *, from_input: FromInput = False, as_machine: Json = False) -> None:
    """Give a person another password; it ends the logins made with the old one."""
    act = act_of_the_user()
    password = _password(from_input=from_input)

    async def work(session: AsyncSession) -> PersonView:
        return person_view(await people_store.set_password(session, name, password, act=act))

    _tell(in_session(work), "has another password", as_machine=as_machine)


@people.command("role", epilog="Example: `tollgate people role ada@acme.example operator`")
def people_role(
    name: Name, role: Annotated[Role, typer.Argument(help="from now on")], *, as_machine: Json = False
) -> None:
    """Let a person do more or less, logins under way included."""
    act = act_of_the_user()

    async def work(session: AsyncSession) -> PersonView:
        return person_view(await people_store.change_role(session, name, role, act=act))

    _tell(in_session(work), f"has the role {role.value}", as_machine=as_machine)


@people.command("retire", epilog="Example: `tollgate people retire ada@acme.example`")
def people_retire(name: Name, *, as_machine: Json = False) -> None:
    """Let a person in no more; logins under way end within two seconds."""
    act = act_of_the_user()

    async def work(session: AsyncSession) -> PersonView:
        return person_view(await people_store.retire_person(session, name, act=act))

    _tell(in_session(work), "may not log in any more", as_machine=as_machine)


def _password(*, from_input: bool) -> str:
    if from_input:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise InvalidRequest(
            "There is no terminal to ask for the password: give it on standard input with --password-stdin."
        )
    password: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    return password


def _tell(person: PersonView, what: str, *, as_machine: bool) -> None:
    if as_machine:
        print_json(person)
    else:
        out.print(f"{person.name} ({person.role}) {what}.", markup=False)
