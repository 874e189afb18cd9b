"""Can anybody change what was booked? Not the tables' owner, and the role that serves may not even try."""

import asyncio
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from gateway.append_only import APPEND_ONLY, protect, unprotected
from gateway.db import create_engine
from gateway.ledger.findings import Extent
from gateway.ledger.invariants import examine, take_snapshot
from gateway.migrate import upgrade
from tests.integration.gateway.databases import new_database
from tests.integration.gateway.rig import Gateway, choose_stores, running, settings_for

CHANGES = (
    "UPDATE {table} SET {column} = {column}",
    "DELETE FROM {table}",
)
COLUMNS = {
    "attempts": "charge_usd_nanos",
    "audit_chain": "hash",
    "audit_entries": "action",
    "journal_entries": "amount_usd_nanos",
    "journal_transactions": "note",
    "policy_activations": "message",
    "policy_checks": "complaint",
    "policy_versions": "text",
    "price_versions": "input",
    "receipts": "body",
}
"""Tables that have rows after one request, and a column of each."""


async def test_nobody_changes_what_is_booked(gateway: Gateway) -> None:
    await gateway.chat("Hm")
    await gateway.rows(1)
    engine = create_engine(gateway.settings.effective_database_url)
    assert COLUMNS.keys() <= set(APPEND_ONLY)
    for table, column in COLUMNS.items():
        for change in CHANGES:
            async with engine.connect() as connection:
                with pytest.raises(DBAPIError, match=f"{table}.* is append-only"):
                    await connection.execute(text(change.format(table=table, column=column)))
    async with engine.begin() as connection:
        assert await connection.run_sync(unprotected) == []
    await engine.dispose()


async def _as_owner(server: str, *statements: str) -> None:
    engine = create_async_engine(server, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        for statement in statements:
            await connection.execute(text(statement))
    await engine.dispose()


@pytest.fixture
def two_roles(postgres: str, redis: str, home: Path) -> Iterator[tuple[Path, str]]:
    """A folder whose settings name a role that only serves, and the owner's address."""
    role = f"serving_{secrets.token_hex(4)}"
    asyncio.run(_as_owner(postgres, f"CREATE ROLE {role} LOGIN"))
    with new_database(postgres) as owner:
        serving = owner.replace("//postgres@", f"//{role}@")
        assert serving != owner
        upgrade(owner, serving_url=serving)
        upgrade(owner, serving_url=serving)  # granting again does no harm
        choose_stores(home, database_url=serving, redis_url=redis, migration_database_url=owner)
        yield home, owner
    asyncio.run(_as_owner(postgres, f"DROP ROLE {role}"))


@pytest.mark.parametrize("home", ["embedded"], indirect=True)
async def test_the_role_that_serves_has_no_right_to_change_what_is_booked(
    two_roles: tuple[Path, str], urls: dict[str, list[str]]
) -> None:
    folder, owner = two_roles
    settings = settings_for(folder, urls)
    async with running(settings) as gateway:
        answer = await gateway.chat("Hm")
        assert answer.status_code == 200
        await gateway.rows(1)
        assert (await gateway.client.get(f"/v1/receipts/{answer.headers['x-request-id']}")).status_code == 200
        engine = create_engine(settings.effective_database_url)
        for table, column in COLUMNS.items():
            for change in (*CHANGES, "TRUNCATE {table}"):
                async with engine.connect() as connection:
                    with pytest.raises(DBAPIError, match="permission denied"):
                        await connection.execute(text(change.format(table=table, column=column)))
        async with gateway.services.sessions() as session:
            await take_snapshot(session)
            extent = Extent(since_ms=0, now_ms=gateway.services.clock.epoch_ms(), grace_ms=0)
            found = {finding.id: finding async for finding in examine(session, extent)}
        assert not [finding for finding in found.values() if finding.breaches]
        await engine.dispose()
    owning = create_engine(owner)
    async with owning.begin() as connection:  # one table that anybody may change is noticed
        await connection.execute(text("DROP TRIGGER tollgate_append_only ON receipts"))
        assert await connection.run_sync(unprotected) == ["receipts"]
        await connection.run_sync(protect)
        assert await connection.run_sync(unprotected) == []
    await owning.dispose()
