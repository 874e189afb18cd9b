"""`tollgate statement`: a tenant's month as a PDF."""

from __future__ import annotations

import sys
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.clock import Clock
from gateway.commands.terminal import Json, in_session, out, print_json
from gateway.errors import ConfigurationError, InvalidRequest
from gateway.identity.store import get_tenant
from gateway.ledger.cuts import moment_of, month_of, next_start, period_bounds, previous_start
from gateway.ledger.invariants import take_snapshot
from gateway.ledger.statement import Statement, Subject, statement_of
from gateway.ledger.statement_reading import read_month
from gateway.spend_names import read_names

statements = typer.Typer()

PDF = "gateway.ledger.statement_pdf"
"""Loaded when a PDF is made: typst takes 30 MB."""


@statements.command(epilog="Example: `tollgate statement --tenant acme --month 2026-10 -o acme-2026-10.pdf`")
def statement(
    tenant: Annotated[str, typer.Option(help="name or id")],
    month: Annotated[str | None, typer.Option(help="such as 2026-10, UTC; default: the last month")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="a file, or - for standard output; default: statement-TENANT-MONTH.pdf"
        ),
    ] = None,
    fonts: Annotated[
        Path | None,
        typer.Option(help="a folder of fonts, for names in other scripts than Latin, Greek, Cyrillic"),
    ] = None,
    *,
    as_machine: Json = False,
) -> None:
    """What is due for a tenant's month: a PDF, its lines rounded so that they add up.

    Provisional until the month is closed; of a closed month it is the same file for ever.
    """
    clock = Clock()
    start, end = _bounds(month, clock)

    async def work(session: AsyncSession) -> Statement:
        await take_snapshot(session)
        of = await get_tenant(session, tenant)
        subject = Subject(of.id, of.name, start, end, clock.epoch_ms())
        return statement_of(subject, await read_month(session, subject, await read_names(session)))

    made = in_session(work)
    if as_machine:
        print_json(msgspec.to_builtins(made))
        if output is None:
            return
    document: bytes = _renderer().render(made, fonts=fonts)
    if output == Path("-"):
        sys.stdout.buffer.write(document)
        return
    path = output or Path(f"statement-{made.tenant_id}-{start:%Y-%m}.pdf")
    _write(path, document)
    if not as_machine:
        out.print(
            f"{made.tenant}, {made.month}: {made.due} USD due (exact {made.due_exact})"
            f"{', provisional' if made.provisional else ''} in {path}",
            highlight=False,
            markup=False,
        )


def _renderer() -> Any:
    return import_module(PDF)


def _bounds(month: str | None, clock: Clock) -> tuple[datetime, datetime]:
    if month is None:
        start = previous_start("month", month_of(clock.now())[0])
        return start, next_start("month", start)
    try:
        first, last = period_bounds("month", month)
    except InvalidRequest as error:
        raise InvalidRequest(error.caller_detail, param="--month") from None
    return moment_of(first), moment_of(last)


def _write(path: Path, document: bytes) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(document)
        part.replace(path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
