"""Is a change behind the audit's back seen, is its order one for all, and are old entries in it?"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from gateway.append_only import APPEND_ONLY
from gateway.audit_chain import BEGINNING, Break, Head, breaks, count_links, hash_of, head_of, leads_to
from gateway.cli import app as program
from gateway.db import create_engine, session_factory
from gateway.identity import store
from gateway.migrate import upgrade
from tests.integration.gateway.rig import settings_for
from tests.integration.gateway.terminal import Terminal
from tests.support.factories import make_act

TENANTS = 6
EXAMPLE_HASH = "c0322df6c812a75640670b1e17ef9b8d232f5ac750c6c2c6d5ca0aef7f788cd8"


@pytest.fixture
async def engine(home: Path) -> Any:
    made = create_engine(settings_for(home, {}).effective_database_url)
    yield made
    await made.dispose()


async def _add(engine: AsyncEngine, name: str) -> None:
    async with session_factory(engine)() as session:
        await store.create_tenant(session, name, act=make_act())
        await session.commit()


async def _looked(engine: AsyncEngine, *, since_ms: int = 0) -> list[Break]:
    async with session_factory(engine)() as session:
        return [one async for one in breaks(session, since_ms=since_ms)]


async def _head(engine: AsyncEngine) -> Head:
    async with session_factory(engine)() as session:
        head = await head_of(session)
    assert head is not None
    return head


async def _behind_its_back(engine: AsyncEngine, *statements: str) -> None:
    """As somebody would who owns the tables."""
    async with engine.begin() as connection:
        for table in set(APPEND_ONLY) & {"audit_chain", "audit_entries"}:
            if engine.dialect.name == "sqlite":
                for verb in ("update", "delete"):
                    await connection.execute(
                        text(f"DROP TRIGGER IF EXISTS tollgate_append_only_{table}_{verb}")
                    )
            else:
                await connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
        for statement in statements:
            await connection.execute(text(statement))
        if engine.dialect.name != "sqlite":  # this database serves other tests, too
            for table in ("audit_chain", "audit_entries"):
                await connection.execute(text(f"ALTER TABLE {table} ENABLE TRIGGER USER"))


async def test_entries_of_many_at_once_are_one_chain(engine: AsyncEngine) -> None:
    await asyncio.gather(*(_add(engine, f"tenant {number}") for number in range(TENANTS)))
    async with session_factory(engine)() as session:
        assert await count_links(session) == TENANTS
        assert await count_links(session, since_ms=10**15) == 1  # the newest, at least
    assert await _looked(engine) == []
    assert (await _head(engine)).number == TENANTS


async def test_what_is_given_up_leaves_no_link(engine: AsyncEngine) -> None:
    async with session_factory(engine)() as session:
        await store.create_tenant(session, "given up", act=make_act())
        await session.rollback()
        await store.create_tenant(session, "kept", act=make_act())
        await session.commit()
    assert (await _head(engine)).number == 1
    assert await _looked(engine) == []


CHANGES: dict[str, tuple[str, str, Callable[[Break], bool]]] = {
    "changed": (
        (
            "UPDATE audit_entries SET actor_name = 'somebody'"
            " WHERE id = (SELECT entry_id FROM audit_chain WHERE number = 3)"
        ),
        "its content was changed",
        lambda one: one.number == 3,
    ),
    "removed": (
        "DELETE FROM audit_entries WHERE id = (SELECT entry_id FROM audit_chain WHERE number = 3)",
        "its entry was removed",
        lambda one: one.number == 3,
    ),
    "unlinked": (
        "DELETE FROM audit_chain WHERE number = 3",
        "those between were removed",
        lambda one: one.number == 4,
    ),
    "exchanged": (
        "UPDATE audit_chain SET hash = previous_hash WHERE number = 3",
        "its content was changed",
        lambda one: one.number == 3,
    ),
}


@pytest.mark.parametrize("how", CHANGES)
async def test_the_first_broken_entry_is_named(engine: AsyncEngine, how: str) -> None:
    for number in range(5):
        await _add(engine, f"tenant {number}")
    statement, reason, is_the_first = CHANGES[how]
    await _behind_its_back(engine, statement)
    found = await _looked(engine)
    assert reason in found[0].reason
    assert is_the_first(found[0])
    if how == "unlinked":
        assert found[-1].number is None
        assert "it has no link" in found[-1].reason


async def test_another_chain_does_not_lead_to_a_head_that_was_noted(engine: AsyncEngine) -> None:
    await _add(engine, "acme")
    noted = await _head(engine)
    async with session_factory(engine)() as session:
        assert await leads_to(session, noted)
    await _behind_its_back(engine, "DELETE FROM audit_chain", "DELETE FROM audit_entries")
    await _add(engine, "other")
    assert await _looked(engine) == []
    async with session_factory(engine)() as session:
        assert not await leads_to(session, noted)


@pytest.mark.parametrize("home", ["embedded"], indirect=True)
def test_the_command_says_what_is_broken_and_knows_a_head_again(home: Path) -> None:
    terminal = Terminal(home)
    ours = next(one for one in terminal.json("audit")["invariants"] if one["id"] == "I-21")
    assert (ours["looked_at"], ours["breaches"]) == (2, 0)
    head = ours["note"].split()[4].rstrip(".")
    assert "Every number is right." in terminal.text("audit", "--head", head)
    assert "--head takes NUMBER:HASH" in terminal.refused("audit", "--head", "7")

    outcome = terminal.runner.invoke(program, ["audit", "--head", f"1:{BEGINNING}"], env=terminal.environment)
    assert outcome.exit_code == 1
    assert "the chain does not lead to" in outcome.stdout


def test_the_canonical_form_stays_what_it_is() -> None:
    entry = {"id": "aud_1", "at_ms": 1, "before": None, "after": {"name": "é", "tags": {"b": 1, "a": None}}}
    assert hash_of(1, BEGINNING, entry) == hash_of(1, BEGINNING, {**entry, "a_later_column": None})
    assert hash_of(1, BEGINNING, entry) == EXAMPLE_HASH


@pytest.mark.parametrize("home", ["embedded"], indirect=True)
def test_entries_from_before_the_chain_are_chained_by_the_migration(tmp_path: Path, home: Path) -> None:
    del home
    url = f"sqlite+aiosqlite:///{tmp_path / 'old.db'}"
    upgrade(url, revision="0008")

    async def fill() -> None:
        engine = create_engine(url)
        async with engine.begin() as connection:
            for number in (2, 1):
                await connection.execute(text(_OLD), {"id": f"aud_{number}", "at": number})
        await engine.dispose()

    async def look() -> tuple[list[Break], list[str]]:
        engine = create_engine(url)
        async with AsyncSession(engine) as session:
            found = [one async for one in breaks(session)]
            order = (
                await session.execute(text("SELECT entry_id FROM audit_chain ORDER BY number"))
            ).scalars()
            result = found, list(order)
        await engine.dispose()
        return result

    asyncio.run(fill())
    upgrade(url)
    assert asyncio.run(look()) == ([], ["aud_1", "aud_2"])


_OLD = """
INSERT INTO audit_entries (id, at_ms, source, actor_kind, actor_id, actor_name, actor_role, action,
  object_kind, object_id, object_name, before, after)
VALUES (:id, :at, 'cli', 'cli', 'cli:root', 'root', 'admin', 'tenant.update', 'tenant', 'ten_1', 'Käse',
  '{"caches_answers": true, "x": [1, 2.5, null]}', '{"caches_answers": false}')
"""
