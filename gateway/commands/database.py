"""`tollgate migrate`: how does the database come up to date?"""

from __future__ import annotations

import asyncio

import typer

from gateway.commands.terminal import out
from gateway.db import create_engine
from gateway.schema import found_revision, head_revision
from gateway.settings import Settings, load_settings

database = typer.Typer()


@database.command(epilog="Example: `tollgate migrate`")
def migrate() -> None:
    """Bring the database up to date."""
    settings = load_settings()
    if settings.is_embedded:
        settings.state_dir.mkdir(parents=True, exist_ok=True)
    _migrate(settings)
    out.print("The database is up to date.")


def bring_up_to_date(settings: Settings) -> None:
    """Make or migrate an embedded database, unless it is up to date already.

    Raises:
        ConfigurationError: the database cannot be used.
    """
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    if not asyncio.run(_is_current(settings.effective_database_url)):
        _migrate(settings)


async def _is_current(url: str) -> bool:
    engine = create_engine(url)
    try:
        return await found_revision(engine) == head_revision()
    finally:
        await engine.dispose()


def _migrate(settings: Settings) -> None:
    """As the owner of the tables, if there is one."""
    from gateway.migrate import upgrade  # noqa: PLC0415 - Alembic is a fifth of a start that needs no migration

    owner = settings.migration_database_url
    serving = settings.effective_database_url
    upgrade(serving if owner is None else owner.get_secret_value(), serving_url=serving)
