"""Do the migrations make, on both databases, exactly the tables that the program expects?"""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection

from gateway.db import create_engine
from gateway.errors import ConfigurationError
from gateway.migrate import alembic_config, downgrade, upgrade
from gateway.schema import head_revision, require_current
from tests.integration.gateway.databases import new_database

TABLES = {
    "adjustment_proposals",
    "adjustments",
    "admin_keys",
    "alert_deliveries",
    "alert_messages",
    "anomalies",
    "api_keys",
    "attempts",
    "audit_chain",
    "audit_entries",
    "backtests",
    "budget_alerts",
    "budget_marks",
    "budget_postings",
    "budget_slices",
    "budget_windows",
    "budgets",
    "changes",
    "closed_periods",
    "export_files",
    "export_schedules",
    "job_leases",
    "journal_entries",
    "journal_transactions",
    "late_hours",
    "learned",
    "limits",
    "people",
    "policy_activations",
    "policy_canaries",
    "policy_canary_ends",
    "policy_canary_refusals",
    "policy_checks",
    "policy_shadow_ends",
    "policy_shadow_skips",
    "policy_shadows",
    "policy_versions",
    "pool_declarations",
    "price_entries",
    "price_versions",
    "projects",
    "receipts",
    "reconciliations",
    "refusal_hours",
    "replica_phases",
    "replica_runs",
    "spend_days",
    "spend_hours",
    "supply_hours",
    "supply_lines",
    "tenants",
}


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a database without tables."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'empty.db'}"
    else:
        with new_database(request.getfixturevalue("postgres")) as url:
            yield url


def _tables(url: str) -> set[str]:
    def names(connection: Connection) -> set[str]:
        found = inspect(connection).get_table_names()
        return {name for name in found if not re.fullmatch(r"\w+_(\d{4}_\d{2}|default)", name)}

    async def look() -> set[str]:
        engine = create_engine(url)
        async with engine.connect() as connection:
            found = await connection.run_sync(names)
        await engine.dispose()
        return found

    return asyncio.run(look())


def _execute(url: str, *statements: str) -> list[tuple[object, ...]]:
    async def run() -> list[tuple[object, ...]]:
        engine = create_engine(url)
        rows: list[tuple[object, ...]] = []
        async with engine.begin() as connection:
            for statement in statements:
                answer = await connection.execute(text(statement))
                rows = [tuple(row) for row in answer] if answer.returns_rows else rows
        await engine.dispose()
        return rows

    return asyncio.run(run())


def test_the_newest_revision_is_the_one_that_alembic_finds() -> None:
    assert head_revision() == ScriptDirectory.from_config(alembic_config("")).get_current_head()


def test_up_down_up(empty: str) -> None:
    upgrade(empty)
    assert _tables(empty) == TABLES | {"alembic_version"}
    _execute(empty, "INSERT INTO tenants (id, name, created_at_ms) VALUES ('ten_1', 'acme', 1)")
    downgrade(empty, revision="base")
    assert _tables(empty) == {"alembic_version"}
    upgrade(empty)
    assert _tables(empty) == TABLES | {"alembic_version"}
    assert _execute(empty, "SELECT * FROM tenants") == []


def test_the_control_plane_can_be_taken_back_while_there_are_tenants_projects_and_keys(empty: str) -> None:
    upgrade(empty)
    _execute(
        empty,
        "INSERT INTO tenants (id, name, created_at_ms) VALUES ('ten_1', 'acme', 1)",
        "INSERT INTO projects (id, tenant_id, name, created_at_ms) VALUES ('prj_1', 'ten_1', 'search', 1)",
        "INSERT INTO api_keys (id, secret_hash, tenant_id, project_id, name, created_at_ms)"
        " VALUES ('a', '00', 'ten_1', 'prj_1', 'ci', 1)",
        "INSERT INTO api_keys (id, secret_hash, tenant_id, project_id, name, created_at_ms, rotated_from)"
        " VALUES ('b', '01', 'ten_1', 'prj_1', 'ci', 2, 'a')",
    )
    downgrade(empty, revision="0001")
    upgrade(empty)
    keys = "SELECT id, tenant_id, project_id, rotated_from FROM api_keys ORDER BY id"
    assert _execute(empty, keys) == [("a", "ten_1", "prj_1", None), ("b", "ten_1", "prj_1", None)]
    allows = _execute(empty, "SELECT is_internal_only, caches_answers, retired_at_ms FROM tenants")
    assert allows == [(True, True, None)]


def test_files_that_schedules_have_written_are_kept_both_ways(empty: str) -> None:
    upgrade(empty, revision="0014")
    _execute(
        empty,
        "INSERT INTO export_schedules (id, name, every, format, wanted, target, delay_s, from_ms,"
        " created_at_ms) VALUES ('exp_1', 'finance', 'month', 'csv', '{}', '/srv', 0, 0, 1)",
        "INSERT INTO export_files (schedule_id, period_start_ms, place, rows, bytes, sha256,"
        " control_usd_nanos, at_ms) VALUES ('exp_1', 0, '/srv/a.csv', 1, 2, 'ab', 3, 4)",
    )
    upgrade(empty, revision="0017")
    read = "SELECT at_ms, rows, is_final, booked FROM export_files ORDER BY at_ms"
    assert _execute(empty, read) == [(4, 1, False, -1)]
    _execute(
        empty,
        "INSERT INTO export_files (schedule_id, period_start_ms, place, rows, bytes, sha256,"
        " control_usd_nanos, at_ms, is_final, booked)"
        " VALUES ('exp_1', 0, '/srv/a.csv', 5, 2, 'cd', 3, 9, true, 7)",
    )
    downgrade(empty, revision="0014")
    assert _execute(empty, "SELECT at_ms, rows FROM export_files") == [(9, 5)]
    upgrade(empty)
    assert _execute(empty, read) == [(9, 5, False, -1)]


def test_migrating_again_changes_nothing_and_keeps_the_rows(empty: str) -> None:
    upgrade(empty)
    _execute(empty, "INSERT INTO tenants (id, name, created_at_ms) VALUES ('ten_1', 'acme', 1)")
    upgrade(empty)
    assert _execute(empty, "SELECT name FROM tenants") == [("acme",)]


def test_the_tables_are_what_the_program_declares(empty: str) -> None:
    upgrade(empty)
    command.check(alembic_config(empty))  # raises where the two differ


def test_every_column_says_what_it_holds(postgres: str) -> None:
    with new_database(postgres) as url:
        upgrade(url)
        silent = _execute(
            url,
            "SELECT c.relname, a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
            " JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
            " AND a.attnum > 0"
            " AND c.relname <> 'alembic_version' AND col_description(c.oid, a.attnum) IS NULL",
        )
        assert silent == []


def test_a_database_without_tables_or_with_old_ones_is_refused_with_what_to_do(empty: str) -> None:
    async def require() -> None:
        engine = create_engine(empty)
        try:
            await require_current(engine)
        finally:
            await engine.dispose()

    with pytest.raises(ConfigurationError, match=r"no tables yet.*run `tollgate migrate` first"):
        asyncio.run(require())
    upgrade(empty)
    asyncio.run(require())
    _execute(empty, "UPDATE alembic_version SET version_num = '0000'")
    with pytest.raises(ConfigurationError, match=f"at revision 0000, this program needs {head_revision()}"):
        asyncio.run(require())
