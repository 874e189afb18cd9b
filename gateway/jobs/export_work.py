"""How is an export made from start to end, whoever asked: the command line, the API's child or a schedule?

One snapshot for names, facts and rows. A file appears under its name whole or not at all: it is written
beside it, flushed to the disk, and renamed; what the rows are of goes into `NAME.about.json`, first.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.errors import ConfigurationError
from gateway.ledger.closed_report import nanos_of
from gateway.ledger.cuts import parse_filters
from gateway.ledger.exports import About, Amounts, Export, Footing, Stage, format_of
from gateway.ledger.frozen import closed_around, frozen_in
from gateway.ledger.invariants import take_snapshot
from gateway.spend_names import read_names, with_ids

PART = ".part"
BESIDE = ".about.json"
PIECE_BYTES = 1 << 20


def _ignore(value: object) -> None:
    del value


async def run_export(
    session: AsyncSession,
    wanted: Export,
    target: BinaryIO,
    *,
    now_ms: int,
    told_about: Callable[[About], None] = _ignore,
    told_rows: Callable[[int], None] = _ignore,
) -> Footing:
    """Write an export to an open target, which stays open.

    Args:
        session: a fresh one.
        wanted: what.
        target: where to; one that can seek, but for CSV.
        now_ms: when it is made, epoch ms.
        told_about: called before the first row.
        told_rows: called with the rows so far.

    Raises:
        InvalidRequest, NotFound: what is wanted is not known.
        DoesNotFoot: the rows do not come to what the ledger has.
    """
    wanted.check()
    exporter = format_of(wanted.format).exporter()
    await take_snapshot(session)
    names = await read_names(session)
    filters = with_ids(parse_filters(wanted.filters), names)
    by_id = tuple(f"{each.name}={value}" for each in filters for value in each.values)
    period = await closed_around(session, wanted.end_ms)
    if period is not None:
        names |= frozen_in(period).names
    stage = Stage(
        target, names=names, period=period, now_ms=now_ms, told_about=told_about, told_rows=told_rows
    )
    return await exporter(session, msgspec.structs.replace(wanted, filters=by_id), stage)


async def write_file(
    session: AsyncSession,
    wanted: Export,
    path: Path,
    *,
    now_ms: int,
    told_rows: Callable[[int], None] = _ignore,
) -> Footing:
    """Write an export to a file and what it is of beside it.

    Raises:
        InvalidRequest, NotFound, DoesNotFoot: as `run_export`; the file is then as it was before.
        ConfigurationError: the file cannot be written there.
    """
    told: list[About] = []
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        with part.open("wb") as target:
            footing = await run_export(
                session, wanted, target, now_ms=now_ms, told_about=told.append, told_rows=told_rows
            )
            target.flush()
            os.fsync(target.fileno())
        footing = msgspec.structs.replace(
            footing, bytes=part.stat().st_size, sha256=sha256_of(part), place=str(path)
        )
        _write_whole(beside(path), about_json(told[0], footing))
        part.replace(path)
        return footing
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)


def beside(path: Path) -> Path:
    """Where it is said what a file is of."""
    return path.with_name(f"{path.name}{BESIDE}")


def about_json(about: About, footing: Footing) -> bytes:
    """What a file is of, for people and programs."""
    columns = {column.name: column.says for column in about.columns}
    found: dict[str, object] = {**dict(about.lines()), "row_count": footing.rows, "bytes": footing.bytes}
    found |= {"sha256": footing.sha256, "columns": columns}
    return msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n"


class _Said(msgspec.Struct, frozen=True):
    """What stands beside a file, as far as it is read again."""

    period_state: Literal["open", "closed"]
    row_count: int
    bytes: int
    sha256: str
    control_total_charge_usd: str
    control_total_platform_usd: str
    control_total_adjustments_usd: str
    control_total_platform_adjustments_usd: str
    ledger_high_water: str


def footing_said(content: bytes) -> Footing | None:
    """What was written, by what stands beside it; None: an older version wrote that, or somebody else."""
    try:
        said = msgspec.json.decode(content, type=_Said)
        amounts = Amounts(
            charge_usd_nanos=nanos_of(said.control_total_charge_usd),
            platform_usd_nanos=nanos_of(said.control_total_platform_usd),
            adjustments_usd_nanos=nanos_of(said.control_total_adjustments_usd),
            platform_adjustments_usd_nanos=nanos_of(said.control_total_platform_adjustments_usd),
        )
    except (msgspec.DecodeError, ValueError):
        return None
    return Footing(
        rows=said.row_count,
        amounts=amounts,
        high_water=None if said.ledger_high_water == "none" else said.ledger_high_water,
        period_state=said.period_state,
        bytes=said.bytes,
        sha256=said.sha256,
    )


def sha256_of(path: Path) -> str:
    """The hash of a file, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_whole(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
