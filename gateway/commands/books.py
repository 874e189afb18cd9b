"""`tollgate audit` and `tollgate audit days`: is every number right, and what if a day is not?"""

from __future__ import annotations

from typing import Annotated

import typer
from msgspec import structs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.audit_views import AuditRunView, InvariantView, audit_run_view
from gateway.admin.views import epoch_ms_of, instant
from gateway.audit_chain import BEGINNING, Head
from gateway.clock import Clock
from gateway.commands import day_sums
from gateway.commands.admins import audit
from gateway.commands.terminal import Json, in_session, out, print_json, print_table
from gateway.db import database_ms
from gateway.errors import InvalidRequest
from gateway.ledger.audit_checks import CHAINED, lost_head
from gateway.ledger.findings import EXAMPLES_MAX, Extent, Finding
from gateway.ledger.invariants import INVARIANTS, Report, examine, take_snapshot
from gateway.settings import Settings, load_settings

__all__ = ["audit"]

audit.command("days", epilog=day_sums.EXAMPLE)(day_sums.audit_days)


@audit.callback(
    invoke_without_command=True,
    epilog="Example: `tollgate audit --since 2026-11-01` (or `tollgate audit log`)",
)
def audit_books(
    context: typer.Context,
    since: Annotated[
        str | None, typer.Option(help="attempts and bookings from this instant on, UTC; default: all")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(metavar="NUMBER:HASH", help="of the audit's chain, as it was said earlier"),
    ] = None,
    *,
    as_machine: Json = False,
) -> None:
    """Look at every invariant of the books; status 1 if one is broken."""
    if context.invoked_subcommand is not None:
        if since is not None or head is not None or as_machine:
            raise InvalidRequest(f"Write the options after `{context.invoked_subcommand}`.")
        return
    settings = load_settings()
    noted = None if head is None else _head_of(head)
    since_ms = max(0, epoch_ms_of(instant(since, "--since"), "--since") or 0)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:

        async def work(session: AsyncSession) -> Report:
            return await _look(session, settings, since_ms, noted, progress=progress)

        view = audit_run_view(in_session(work, settings))
    print_json(view) if as_machine else _print_audit(view)
    if view.breaches:
        raise typer.Exit(1)


def _head_of(text: str) -> Head:
    """A chain's head as `tollgate audit` says it.

    Raises:
        InvalidRequest: it is none.
    """
    number, _, hashed = text.strip().partition(":")
    if not number.isdecimal() or len(hashed) != len(BEGINNING):
        raise InvalidRequest(f"--head takes NUMBER:HASH, as `tollgate audit` says it, not {text[:80]!r}.")
    return Head(int(number), hashed)


async def _look(
    session: AsyncSession, settings: Settings, since_ms: int, head: Head | None, *, progress: Progress
) -> Report:
    clock = Clock()
    started_s = clock.monotonic_s()
    await take_snapshot(session)
    now_ms = await database_ms(session, clock)
    extent = Extent(since_ms=since_ms, now_ms=now_ms, grace_ms=int(settings.budgets.slice_grace_s * 1000))
    task = progress.add_task("Auditing the books", total=len(INVARIANTS))
    findings: list[Finding] = []
    lost = None if head is None else await lost_head(session, head)
    async for finding in examine(session, extent):
        if lost is not None and finding.id == CHAINED:
            examples = [lost, *finding.examples][:EXAMPLES_MAX]
            finding = structs.replace(finding, breaches=finding.breaches + 1, examples=examples)  # noqa: PLW2901 - with what was asked for on top
        findings.append(finding)
        progress.advance(task)
    took_ms = int((clock.monotonic_s() - started_s) * 1000)
    return Report(at_ms=now_ms, since_ms=since_ms, took_ms=took_ms, findings=findings)


def _print_audit(view: AuditRunView) -> None:
    extent = "everything" if view.since is None else f"from {view.since:%Y-%m-%d %H:%M} UTC"
    out.print(
        f"The books at {view.at:%Y-%m-%d %H:%M:%S} UTC, {extent}, in {view.took_ms} ms", highlight=False
    )
    print_table(
        ("", "invariant", "what must hold", "looked at", "breaches"),
        [
            ("✗" if one.breaches else "✓", one.id, one.says, f"{one.looked_at:,}", f"{one.breaches:,}")
            for one in view.invariants
        ],
    )
    for one in view.invariants:
        if one.note:
            out.print(f"{one.id}: {one.note}", markup=False, highlight=False)
        if one.breaches:
            _print_examples(one)
        if any("day_start" in example for example in one.examples):
            out.print("`tollgate audit days` shows every such day and makes them again.", markup=False)
    if not view.breaches:
        out.print("Every number is right.")


def _print_examples(one: InvariantView) -> None:
    out.print(f"\n{one.id} is broken, for example:", markup=False, highlight=False)
    names = tuple(one.examples[0])
    print_table(
        tuple(name.replace("_", " ") for name in names),
        [tuple(example.get(name) for name in names) for example in one.examples],
    )
