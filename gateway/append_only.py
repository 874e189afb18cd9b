"""Which tables are only ever added to, and who sees to that?

The database itself: triggers refuse every UPDATE, DELETE and TRUNCATE, on SQLite and on PostgreSQL, whoever
asks. On PostgreSQL the role that serves may not even try, if migrations run as another role, the owner
(`TOLLGATE_MIGRATION_DATABASE_URL`). Both are put in force after every migration, so that no
migration can forget them.
"""

from __future__ import annotations

from sqlalchemy import Connection, inspect, text

APPEND_ONLY = (
    "adjustments",
    "alert_messages",
    "anomalies",
    "attempts",
    "audit_chain",
    "audit_entries",
    "budget_alerts",
    "budget_postings",
    "closed_periods",
    "export_files",
    "journal_entries",
    "journal_transactions",
    "late_hours",
    "policy_activations",
    "policy_canaries",
    "policy_canary_ends",
    "policy_canary_refusals",
    "policy_checks",
    "policy_shadow_ends",
    "policy_shadows",
    "policy_versions",
    "price_entries",
    "price_versions",
    "receipts",
    "reconciliations",
    "replica_phases",
    "supply_hours",
    "supply_lines",
)
_PREFIX = "tollgate_append_only"


def protect(connection: Connection, *, serving_role: str | None = None) -> None:
    """Put the rules in force; again and again without harm.

    Args:
        connection: the owner's.
        serving_role: whom PostgreSQL shall let serve; None: the owner serves too.
    """
    present = set(inspect(connection).get_table_names())
    tables = [table for table in APPEND_ONLY if table in present]
    if connection.dialect.name == "sqlite":
        for table in tables:
            for verb in ("UPDATE", "DELETE"):
                name = f"{_PREFIX}_{table}_{verb.lower()}"
                refuse = f"SELECT RAISE(ABORT, '{table} is append-only')"
                connection.execute(
                    text(f"CREATE TRIGGER IF NOT EXISTS {name} BEFORE {verb} ON {table} BEGIN {refuse}; END")
                )
        return
    connection.execute(text(_FUNCTION))
    for table in tables:
        for name, event, level in (
            (_PREFIX, "UPDATE OR DELETE", "ROW"),
            (f"{_PREFIX}_truncate", "TRUNCATE", "STATEMENT"),
        ):
            connection.execute(
                text(
                    f"CREATE OR REPLACE TRIGGER {name} BEFORE {event} ON {table}"
                    f" FOR EACH {level} EXECUTE FUNCTION {_PREFIX}()"
                )
            )
    if serving_role is not None:
        _grant(connection, connection.dialect.identifier_preparer.quote(serving_role), tables)


def unprotected(connection: Connection) -> list[str]:
    """The tables that should be append-only and have no trigger that says so."""
    present = set(inspect(connection).get_table_names())
    if connection.dialect.name == "sqlite":
        found = connection.execute(text("SELECT tbl_name FROM sqlite_master WHERE type = 'trigger'"))
        counts = [row[0] for row in found]
        return [table for table in APPEND_ONLY if table in present and counts.count(table) < len(("U", "D"))]
    found = connection.execute(
        text(
            "SELECT c.relname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
            " WHERE t.tgname = :name AND t.tgenabled <> 'D'"
        ),
        {"name": _PREFIX},
    )
    guarded = {row[0] for row in found}
    return [table for table in APPEND_ONLY if table in present and table not in guarded]


_FUNCTION = f"""
CREATE OR REPLACE FUNCTION {_PREFIX}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '% is append-only: book a reversal instead', TG_TABLE_NAME
    USING ERRCODE = 'restrict_violation';
END $$
"""


def _grant(connection: Connection, role: str, append_only: list[str]) -> None:
    names = ", ".join(append_only)
    for statement in (
        f"GRANT USAGE ON SCHEMA public TO {role}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}",
        f"REVOKE UPDATE, DELETE, TRUNCATE ON {names} FROM {role}",
        f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {role}",
        f"REVOKE ALL ON alembic_version FROM {role}",
        f"GRANT SELECT ON alembic_version TO {role}",
    ):
        connection.execute(text(statement))
