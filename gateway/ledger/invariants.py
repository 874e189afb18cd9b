"""Is every number right? What must hold of the books at every moment, and whether it does.

Each invariant is looked at in SQL (the numbers are those of `README.md`, "Is every number right?"). All looks
of one report see the same instant, so that a busy system gives no false alarm, and change nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.append_only import APPEND_ONLY, unprotected
from gateway.ledger.audit_checks import AUDIT
from gateway.ledger.budget_checks import BUDGETS
from gateway.ledger.charge_checks import CHARGES
from gateway.ledger.findings import EXAMPLES_MAX, Example, Extent, Finding, Invariant, Seen, look_at
from gateway.ledger.journal_checks import ATTEMPTS, JOURNAL
from gateway.ledger.supply_checks import SUPPLY


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What one look at all invariants found."""

    at_ms: int
    since_ms: int
    """0: everything was looked at."""
    took_ms: int
    findings: list[Finding]

    @property
    def breaches(self) -> int:
        """Of all invariants together."""
        return sum(finding.breaches for finding in self.findings)


async def take_snapshot(session: AsyncSession) -> None:
    """Let a fresh session see one instant until it ends."""
    if session.get_bind().dialect.name == "sqlite":
        # Python's driver begins a transaction for writing only.
        await session.execute(text("BEGIN"))
        return
    await session.connection(
        execution_options={"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    )


async def examine(session: AsyncSession, extent: Extent) -> AsyncIterator[Finding]:
    """Whether each invariant holds, in the order of `INVARIANTS`."""
    for invariant in INVARIANTS:
        yield await look_at(session, invariant, extent)


async def _protected(session: AsyncSession, extent: Extent) -> Seen:
    del extent
    connection = await session.connection()
    return await connection.run_sync(_protection)


def _protection(connection: Connection) -> Seen:
    present = set(inspect(connection).get_table_names()) & set(APPEND_ONLY)
    open_tables = dict.fromkeys(unprotected(connection), "its trigger is missing or off")
    note = ""
    if connection.dialect.name == "postgresql":
        for table in connection.execute(text(_DISABLED)).scalars():
            open_tables.setdefault(table, "its trigger is off")
        rights = [row for row in connection.execute(text(_RIGHTS)) if row[0] in present]
        for table, is_owner, may_change in rights:
            if may_change and not is_owner:
                open_tables.setdefault(table, "the serving role may change its rows")
        if any(is_owner for _, is_owner, _ in rights):
            note = "This role owns the tables: triggers alone protect them (TOLLGATE_MIGRATION_DATABASE_URL)."
    examples: list[Example] = [
        {"table": table, "reason": reason} for table, reason in sorted(open_tables.items())
    ]
    return Seen(len(present), len(open_tables), tuple(examples[:EXAMPLES_MAX]), note)


# Of partitions too: each has the trigger of its table, and could lose it by itself.
_DISABLED = """
SELECT c.relname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
WHERE t.tgname = 'tollgate_append_only' AND t.tgenabled NOT IN ('O', 'A')
"""
_RIGHTS = """
SELECT c.relname, pg_has_role(c.relowner, 'USAGE'),
  has_table_privilege(c.oid, 'UPDATE') OR has_table_privilege(c.oid, 'DELETE')
    OR has_table_privilege(c.oid, 'TRUNCATE')
FROM pg_class c
WHERE c.relkind IN ('r', 'p') AND c.relnamespace = to_regnamespace(current_schema())
"""

PROTECTION = (Invariant("I-2", "what is only ever added to cannot be changed or deleted", (_protected,)),)
INVARIANTS: tuple[Invariant, ...] = (
    *JOURNAL,
    *PROTECTION,
    *ATTEMPTS,
    *CHARGES,
    *BUDGETS,
    *AUDIT,
    *SUPPLY,
)
