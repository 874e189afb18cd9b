"""`tollgate export`: the ledger as a file, now or by the calendar."""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.spend import period
from gateway.clock import Clock
from gateway.commands.export_focus import FOCUS, Focus, terms_of_focus
from gateway.commands.export_schedules import schedules
from gateway.commands.options import with_options
from gateway.commands.report import Selection
from gateway.commands.terminal import Json, in_session, print_json
from gateway.errors import InvalidRequest
from gateway.jobs.export_work import PIECE_BYTES, run_export, write_file
from gateway.ledger.cuts import epoch_ms, moment_of, period_bounds
from gateway.ledger.export_csv import pico_text
from gateway.ledger.exports import FORMATS, Export, Footing
from gateway.money import usd_text

exports = typer.Typer(help="The ledger as files.")
exports.add_typer(schedules, name="schedule")

STDOUT = "-"
Format = Annotated[str, typer.Option("--format", help=f"one of {', '.join(FORMATS)}")]
Rows = Annotated[str, typer.Option(help="groups, or attempts: every attempt by itself")]
Raw = Annotated[
    bool, typer.Option("--raw", help="leave text as it is that a spreadsheet would take for a formula")
]
_err = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the file goes and how it looks."""

    output: Annotated[str, typer.Option("--output", "-o", help="a file, or - for standard output")] = STDOUT
    month: Annotated[str | None, typer.Option(help="a UTC month, 2026-10; not with --from, --to")] = None
    raw: Raw = False


@exports.callback(
    invoke_without_command=True,
    epilog="Example: `tollgate export --format xlsx --by tenant,model,day --from 2026-10-01 --to 2026-11-01"
    " -o october.xlsx` or `tollgate export --format focus --month 2026-10 -o october.csv`",
)
@with_options(selection=Selection, place=Place, focus=Focus)
def export(
    context: typer.Context,
    file_format: Format = "csv",
    rows: Rows = "groups",
    *,
    selection: Selection,
    place: Place,
    focus: Focus,
    as_machine: Json = False,
) -> None:
    """Write spend, or every attempt, as CSV, XLSX, Parquet or FOCUS; a file appears whole or not at all.

    FOCUS has its own rows: hour, tenant, project, model, pool, price and token class; --by and --rows do
    nothing there. `-o file.parquet` makes it Parquet. Names in it are the settings' group `finance`.
    """
    if context.invoked_subcommand is not None:
        return
    output = place.output
    if as_machine and output == STDOUT:
        raise InvalidRequest("--json says what was written: give the file with -o.")
    start, end = _span(selection, place.month)
    if file_format == FOCUS and output.endswith(".parquet"):
        file_format = f"{FOCUS}-parquet"
    wanted = Export(
        format=file_format,
        start_ms=epoch_ms(start),
        end_ms=epoch_ms(end),
        rows="attempts" if rows == "attempts" else "groups",
        group_by=tuple(selection.dimensions),
        filters=tuple(selection.where or ()),
        is_formula_safe=not place.raw,
        focus=terms_of_focus(focus, file_format),
    )
    if rows not in {"attempts", "groups"}:
        raise InvalidRequest(f"--rows is groups or attempts, not {rows[:40]!r}.")
    wanted.check()
    footing = _write(wanted, output)
    if as_machine:
        print_json(
            {
                "file": output,
                "rows": footing.rows,
                "bytes": footing.bytes,
                "sha256": footing.sha256,
                "charge_usd": usd_text(footing.amounts.charge_usd_nanos),
                "platform_usd": usd_text(footing.amounts.platform_usd_nanos),
                "adjustments_usd": usd_text(footing.amounts.adjustments_usd_nanos),
                "platform_adjustments_usd": usd_text(footing.amounts.platform_adjustments_usd_nanos),
                "total_usd": usd_text(footing.amounts.total_usd_nanos),
                "period_state": footing.period_state,
                "ledger_high_water": footing.high_water,
                **_residue(footing),
            }
        )
    else:
        _err.print(
            _said(footing) + ("" if output == STDOUT else f", in {output} and {output}.about.json"),
            highlight=False,
        )


def _said(footing: Footing) -> str:
    amounts = footing.amounts
    adjusted = amounts.adjustments_usd_nanos + amounts.platform_adjustments_usd_nanos
    said = (
        f"{footing.rows:,} rows, {usd_text(amounts.charge_usd_nanos)} USD charged and"
        f" {usd_text(amounts.platform_usd_nanos)} USD on the platform's account"
    )
    if adjusted:
        said += f", {usd_text(adjusted)} USD of credits and corrections"
        said += f", {usd_text(amounts.total_usd_nanos)} USD all together"
    return said


def _residue(footing: Footing) -> dict[str, str]:
    """Of FOCUS files: what was booked beyond unit price times quantity, USD."""
    if footing.residue_usd_picos is None:
        return {}
    return {"rounding_residue_usd": pico_text(footing.residue_usd_picos)}


def _span(selection: Selection, month: str | None) -> tuple[datetime, datetime]:
    if month is None:
        return period(selection.since, selection.until, Clock().now())
    if selection.since or selection.until:
        raise InvalidRequest("Give --month, or --from and --to.")
    start_ms, end_ms = period_bounds("month", month)
    return moment_of(start_ms), moment_of(end_ms)


def _write(wanted: Export, output: str) -> Footing:
    now_ms = Clock().epoch_ms()
    with Progress(
        SpinnerColumn(),
        TextColumn("Exporting"),
        TextColumn("{task.completed:,} rows"),
        TimeElapsedColumn(),
        console=_err,
        transient=True,
    ) as progress:
        task = progress.add_task("Exporting", total=None)

        def tell(rows: int) -> None:
            progress.update(task, completed=rows)

        async def work(session: AsyncSession) -> Footing:
            if output != STDOUT:
                return await write_file(session, wanted, Path(output), now_ms=now_ms, told_rows=tell)
            if wanted.format == "csv":
                return await run_export(session, wanted, sys.stdout.buffer, now_ms=now_ms, told_rows=tell)
            # Other formats go back in their file: it is whole before it is sent.
            with tempfile.TemporaryFile() as file:
                footing = await run_export(session, wanted, file, now_ms=now_ms, told_rows=tell)
                file.seek(0)
                shutil.copyfileobj(file, sys.stdout.buffer, PIECE_BYTES)
                return footing

        return in_session(work)
