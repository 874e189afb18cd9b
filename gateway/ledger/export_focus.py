"""How does the ledger become a FOCUS file, CSV or Parquet, demand or supply side?

One cost and usage dataset for each side: what tenants are charged, and what the fleet costs. Both stream, and
both are footed to the nano-USD: the demand side to the ledger's hourly sums, the supply side to the bills of
its pool-hours. Instants are text in FOCUS's own form in both kinds of file.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from gateway.errors import InvalidRequest
from gateway.ledger.cuts import MS_PER_HOUR, moment_of, parse_filters
from gateway.ledger.export_csv import CsvSink
from gateway.ledger.export_parquet import ParquetSink
from gateway.ledger.export_rows import SinkMaker
from gateway.ledger.exports import About, DoesNotFoot, Export, Footing, Stage, about_facts
from gateway.ledger.focus_columns import PICO_PER_NANO, RowMaker
from gateway.ledger.focus_demand import demand_pieces
from gateway.ledger.focus_supply import supply_pieces, supply_total
from gateway.ledger.report_facts import ReportFacts, read_facts
from gateway.ledger.reports import control_total, cut_of
from gateway.money import usd_text

_BY_READING = "by the specification's text; no machine rules of 1.4 were run"
_Pieces = AsyncIterator[tuple[list[tuple[Any, ...]], int, int]]


async def export_csv(session: AsyncSession, wanted: Export, stage: Stage) -> Footing:
    """An exporter of CSV."""
    return await _write(session, wanted, stage, sink=CsvSink)


async def export_parquet(session: AsyncSession, wanted: Export, stage: Stage) -> Footing:
    """An exporter of Parquet."""
    return await _write(session, wanted, stage, sink=ParquetSink)


async def _write(session: AsyncSession, wanted: Export, stage: Stage, *, sink: SinkMaker) -> Footing:
    """Write a FOCUS file.

    Raises:
        InvalidRequest: bounds that are no whole hours, or filters of the supply side.
        DoesNotFoot: the rows do not come to the control total.
    """
    if wanted.start_ms % MS_PER_HOUR or wanted.end_ms % MS_PER_HOUR:
        raise InvalidRequest("FOCUS's rows are hours: give whole hours for the start and the end.")
    terms = wanted.focus
    cut = cut_of(
        (), moment_of(wanted.start_ms), moment_of(wanted.end_ms), filters=parse_filters(wanted.filters)
    )
    facts = await read_facts(session, cut)
    maker = RowMaker(terms, facts.high_water)
    pieces: _Pieces
    if terms.side == "supply":
        if wanted.filters:
            raise InvalidRequest("The supply side has no filters: a pool-hour's lines add up to its bill.")
        control = (0, await supply_total(session, wanted.start_ms, wanted.end_ms))
        pieces = supply_pieces(session, wanted.start_ms, wanted.end_ms, maker=maker, names=stage.names)
    else:
        total = await control_total(session, cut)
        control = (total.charge_usd_nanos, total.platform_usd_nanos)
        pieces = demand_pieces(session, cut, maker=maker, names=stage.names)
    about = _about(wanted, stage, facts, control=control, maker=maker)
    stage.told_about(about)
    file = sink(stage.target, about, wanted.is_formula_safe)
    rows = charge = platform = billed_pico = residue_pico = 0
    names = [column.name for column in maker.columns]
    billed_at, residue_at = names.index("BilledCost"), names.index("x_RoundingResidue")
    async for piece, piece_charge, piece_platform in pieces:
        file.add(piece)
        rows += len(piece)
        charge += piece_charge
        platform += piece_platform
        billed_pico += sum(row[billed_at] for row in piece)
        residue_pico += sum(row[residue_at] or 0 for row in piece)
        stage.told_rows(rows)
    if (charge, platform) != control or billed_pico != sum(control) * PICO_PER_NANO:
        raise DoesNotFoot(
            f"The rows are billed {billed_pico} pico-USD, the books say {usd_text(control[0])} and"
            f" {usd_text(control[1])} USD: nothing is exported. `tollgate audit` says which book is wrong."
        )
    file.finish()
    return Footing(
        rows=rows,
        charge_usd_nanos=charge,
        platform_usd_nanos=platform,
        high_water=about.high_water,
        residue_usd_picos=residue_pico,
    )


def _about(
    wanted: Export, stage: Stage, facts: ReportFacts, *, control: tuple[int, int], maker: RowMaker
) -> About:
    terms = wanted.focus
    return About(
        title=f"FOCUS {terms.version} cost and usage, {terms.side} side",
        start_ms=wanted.start_ms,
        end_ms=wanted.end_ms,
        generated_at_ms=stage.now_ms,
        group_by=(),
        filters=wanted.filters,
        row_count=None,
        charge_usd_nanos=control[0],
        platform_usd_nanos=control[1],
        columns=maker.columns,
        basis="charge" if terms.side == "demand" else "allocation",
        notes=(("focus_version", terms.version),)
        + ((("focus_conformance", _BY_READING),) if terms.version == "1.4" else ()),
        **about_facts(facts),  # type: ignore[arg-type]  # its names are About's
    )
