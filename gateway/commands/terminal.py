"""How does a command reach the database, and how does it speak?"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import sys
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from backends.files import PoolFileError, load_pools
from backends.pool import PoolSpec
from gateway.audit import Act, Actor, ActorKind, Source
from gateway.clock import Clock
from gateway.db import create_engine, session_factory
from gateway.errors import ConfigurationError, InvalidRequest
from gateway.identity.roles import Role
from gateway.paging import ROWS_MAX, Page, PageRequest
from gateway.schema import require_current
from gateway.settings import Settings, load_settings

T = TypeVar("T")
Row = TypeVar("Row")

out = Console(emoji=False)  # what people write (`:key:`) is shown as it is
Json = Annotated[bool, typer.Option("--json", help="for machines")]


def act_of_the_user() -> Act:
    """A change by whoever has this process: the user of the machine, who may do everything anyway."""
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:  # a container's user without an entry
        user = f"uid-{uid}"
    actor = Actor(kind=ActorKind.CLI, id=f"cli:{user}", name=user, role=Role.ADMIN)
    return Act(actor=actor, source=Source.CLI, at_ms=Clock().epoch_ms())


def in_session(work: Callable[[AsyncSession], Coroutine[Any, Any, T]], settings: Settings | None = None) -> T:
    """Run a piece of work in one transaction of its own.

    Raises:
        ConfigurationError: the database cannot be used, or is not up to date.
    """
    url = (settings or load_settings()).effective_database_url

    async def run() -> T:
        engine = create_engine(url)
        try:
            await require_current(engine)
            async with session_factory(engine)() as session:
                result = await work(session)
                await session.commit()
                return result
        except (OperationalError, InterfaceError) as error:
            reason = str(error.orig).strip() or repr(error.orig)
            raise ConfigurationError(f"the database cannot be used: {reason}") from None
        finally:
            await engine.dispose()

    return asyncio.run(run())


async def all_rows(
    read: Callable[[PageRequest], Awaitable[Page[Row]]], *, at_most: int | None = None
) -> list[Row]:
    """Every row of a list that comes in pages, or the first so many."""
    rows: list[Row] = []
    cursor: str | None = None
    while True:
        left = ROWS_MAX if at_most is None else min(ROWS_MAX, at_most - len(rows))
        page = await read(PageRequest(limit=left, cursor=cursor))
        rows += page.rows
        cursor = page.next_cursor
        if cursor is None or len(rows) == at_most:
            return rows


def load_pool_files(settings: Settings, folder: Any = None) -> dict[str, PoolSpec]:
    """The pools in the folder of the settings, or in another.

    Raises:
        ConfigurationError: a file is wrong.
    """
    try:
        return load_pools(folder or settings.pools)
    except PoolFileError as error:
        raise ConfigurationError(str(error)) from None


def print_json(value: object) -> None:
    """For machines; views as the API shows them."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, default=str) + "\n")


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value


def print_table(titles: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """For people."""
    table = Table(*titles, box=None, show_header=any(titles))
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))  # as it is: a name may look like markup
    out.print(table, highlight=False)


def print_fields(view: BaseModel) -> None:
    """One thing, for people: a line for each field."""
    print_table(("", ""), [(name.replace("_", " "), value) for name, value in view])


def print_secret(sentence: str, secret: str) -> None:
    """A secret that is shown this once, on a line of its own."""
    out.print(sentence, highlight=False, markup=False)
    sys.stdout.write(f"{secret}\n")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M} UTC"
    if isinstance(value, list):
        return ", ".join(str(each) for each in value)
    if isinstance(value, dict):
        return ", ".join(f"{name}={each}" for name, each in value.items())
    return str(value)


Tags = Annotated[
    list[str] | None,
    typer.Option(
        "--tag",
        metavar="NAME=VALUE",
        help="a cost tag on all its calls, instead of those it has; several times",
    ),
]
NoTags = Annotated[bool, typer.Option("--no-tags", help="take all its cost tags away")]


def tags_of(pairs: list[str] | None) -> dict[str, str] | None:
    """Tags as people write them, `name=value`; None where none are given.

    Raises:
        InvalidRequest: one has no `=`, or two have the same name.
    """
    if not pairs:
        return None
    tags: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name in tags:
            why = "that name is there twice" if equals else "it has no ="
            raise InvalidRequest(f"--tag takes NAME=VALUE, such as feature=search, not {pair[:80]!r}: {why}.")
        tags[name] = value
    return tags
