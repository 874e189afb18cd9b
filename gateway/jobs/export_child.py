"""What does the process do that exports for the one that serves? `python -m gateway.jobs.export_child`.

It reads one JSON object from standard input, so that the database's address stands in no list of processes.
Standard output is one line of JSON (`about`, or `error`), then the file itself; for a schedule one line alone
(`footing` or `error`). Status 0: everything is written; anything else: what was written is not whole.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from typing import BinaryIO

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.clock import Clock
from gateway.db import create_engine, session_factory
from gateway.errors import GatewayError
from gateway.jobs.export_targets import Delivery, deliver
from gateway.jobs.export_work import PIECE_BYTES, run_export
from gateway.ledger.exports import About, Export, Footing

NICENESS = 10
"""It yields to whatever serves."""


class Errand(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is asked to do."""

    database_url: str
    export: Export
    delivery: Delivery | None = None
    """Where to; None: to standard output."""


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """The line that the child says."""

    about: About | None = None
    footing: Footing | None = None
    error: str | None = None
    code: str | None = None
    status_code: int | None = None


def main() -> int:
    """Do it; returns the exit status."""
    os.nice(NICENESS)
    errand = msgspec.json.decode(sys.stdin.buffer.read(), type=Errand)
    try:
        asyncio.run(run_errand(errand, sys.stdout.buffer))
    except GatewayError as error:
        say(sys.stdout.buffer, Line(None, None, error.caller_detail, error.code, error.status_code))
        return 1
    return 0


async def run_errand(errand: Errand, output: BinaryIO) -> None:
    """Export to the output, or deliver.

    Raises:
        GatewayError: it cannot be done.
    """
    engine = create_engine(errand.database_url)
    try:
        async with session_factory(engine)() as session:
            now_ms = Clock().epoch_ms()
            if errand.delivery is not None:
                footing = await deliver(session, errand.export, errand.delivery, now_ms=now_ms)
                say(output, Line(footing=footing))
            elif errand.export.format == "csv":
                await _stream(session, errand.export, output, now_ms=now_ms)
            else:
                await _copy(session, errand.export, output, now_ms=now_ms)
    finally:
        await engine.dispose()


def say(output: BinaryIO, line: Line) -> None:
    """Write the line."""
    output.write(msgspec.json.encode(line) + b"\n")
    output.flush()


async def _stream(session: AsyncSession, wanted: Export, output: BinaryIO, *, now_ms: int) -> None:
    await run_export(
        session, wanted, output, now_ms=now_ms, told_about=lambda about: say(output, Line(about))
    )
    output.flush()


async def _copy(session: AsyncSession, wanted: Export, output: BinaryIO, *, now_ms: int) -> None:
    """Formats that go back in their file are whole before they are sent."""
    with tempfile.TemporaryFile() as file:
        await run_export(
            session, wanted, file, now_ms=now_ms, told_about=lambda about: say(output, Line(about))
        )
        file.seek(0)
        shutil.copyfileobj(file, output, PIECE_BYTES)
    output.flush()


if __name__ == "__main__":
    sys.exit(main())
