"""How does Alembic reach the database and learn of the tables?"""

from __future__ import annotations

import asyncio
import re
from typing import Literal

from alembic import context
from sqlalchemy import Connection
from sqlmodel import SQLModel

import gateway.alerts.tables
import gateway.audit
import gateway.forecasts.tables
import gateway.identity.tables
import gateway.jobs.backtest_tables
import gateway.jobs.tables
import gateway.ledger.period_tables
import gateway.ledger.supply_tables
import gateway.ledger.tables
import gateway.pricing.tables
import gateway.routing.tables  # noqa: F401 - importing the tables registers them
from gateway.db import EpochMs, create_engine
from gateway.settings import load_settings


def _url() -> str:
    given = context.config.attributes.get("url")
    if isinstance(given, str) and given:
        return given
    settings = load_settings()
    owner = settings.migration_database_url
    return owner.get_secret_value() if owner is not None else settings.effective_database_url


def _render(kind: str, item: object, autogen_context: object) -> str | Literal[False]:
    """Write our column types as plain ones: a migration must not change when the program does."""
    del autogen_context
    return "sa.BigInteger()" if kind == "type" and isinstance(item, EpochMs) else False


def _is_ours(name: str | None, kind: str, parents: object) -> bool:
    """Partitions are made by the months, not by migrations."""
    del parents
    return kind != "table" or re.fullmatch(r"(attempts|receipts)_(\d{4}_\d{2}|default)", name or "") is None


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
        render_item=_render,
        include_name=_is_ours,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


async def _migrate() -> None:
    engine = create_engine(_url())
    async with engine.connect() as connection:
        await connection.run_sync(_run)
        await connection.commit()
    await engine.dispose()


if context.is_offline_mode():
    raise SystemExit("Migrations run against a database: set TOLLGATE_DATABASE_URL.")
asyncio.run(_migrate())
