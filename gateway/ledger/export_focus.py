"""How does the ledger become a FOCUS file, CSV or Parquet, demand or supply side?

One cost and usage dataset for each side: what tenants are charged, and what the fleet costs. Both stream, and
both are footed to the nano-USD: the demand side to the ledger's hourly sums, with what came late and what two
people agreed to credit or correct, the supply side to the bills of its pool-hours. Instants are text in
FOCUS's own form in both kinds of file.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.errors import InvalidRequest
from gateway.ledger.cuts import MS_PER_HOUR, Cut, moment_of, parse_filters
from gateway.ledger.export_csv import CsvSink
from gateway.ledger.export_parquet import ParquetSink
from gateway.ledger.export_rows import SinkMaker, control_amounts, write_pieces
from gateway.ledger.exports import About, Amounts, DoesNotFoot, Export, Footing, Names, Piece, Stage
from gateway.ledger.focus_adjustments import adjustment_pieces
from gateway.ledger.focus_columns import PICO_PER_NANO, RowMaker
from gateway.ledger.focus_demand import demand_pieces
from gateway.ledger.focus_supply import supply_pieces, supply_total
from gateway.ledger.frozen import closed_months
from gateway.ledger.report_facts import ReportFacts, read_facts
from gateway.ledger.reports import cut_of
from gateway.money import usd_text

_BY_READING = "by the specification's text; no machine rules of 1.4 were run"


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
    is_demand = terms.side == "demand"
    maker = RowMaker(
        terms, stage.high_water(facts), invoiced=await closed_months(session) if is_demand else frozenset()
    )
    pieces: AsyncIterator[Piece]
    if is_demand:
        control = await control_amounts(session, cut)
        pieces = _demand(session, cut, maker=maker, names=stage.names)
    else:
        if wanted.filters:
            raise InvalidRequest("The supply side has no filters: a pool-hour's lines add up to its bill.")
        bills = await supply_total(session, wanted.start_ms, wanted.end_ms)
        control = Amounts(platform_usd_nanos=bills)
        pieces = supply_pieces(session, wanted.start_ms, wanted.end_ms, maker=maker, names=stage.names)
    about = _about(wanted, stage, facts, control=control, maker=maker)
    stage.told_about(about)
    file = sink(stage.target, about, wanted.is_formula_safe)
    billing = _Billing(maker)
    footing = await write_pieces(billing.checked(pieces), file, stage, about=about)
    return msgspec.structs.replace(footing, residue_usd_picos=billing.residue_pico)


async def _demand(session: AsyncSession, cut: Cut, *, maker: RowMaker, names: Names) -> AsyncIterator[Piece]:
    async for piece in demand_pieces(session, cut, maker=maker, names=names):
        yield piece
    async for piece in adjustment_pieces(session, cut, maker=maker, names=names):
        yield piece


class _Billing:
    """What the column BilledCost comes to, apart from the amounts that rows were made of."""

    def __init__(self, maker: RowMaker) -> None:
        names = [column.name for column in maker.columns]
        self._billed_at, self._residue_at = names.index("BilledCost"), names.index("x_RoundingResidue")
        self.residue_pico = 0

    async def checked(self, pieces: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
        """The pieces as they come.

        Raises:
            DoesNotFoot: at the end, if the column does not come to the amounts.
        """
        billed_pico = total = 0
        async for rows, amounts in pieces:
            billed_pico += sum(row[self._billed_at] for row in rows)
            self.residue_pico += sum(row[self._residue_at] or 0 for row in rows)
            total += amounts.total_usd_nanos
            yield rows, amounts
        if billed_pico != total * PICO_PER_NANO:
            raise DoesNotFoot(
                f"The rows are billed {billed_pico} pico-USD and were made of {usd_text(total)} USD:"
                " nothing is exported."
            )


def _about(wanted: Export, stage: Stage, facts: ReportFacts, *, control: Amounts, maker: RowMaker) -> About:
    terms = wanted.focus
    return About(
        title=f"FOCUS {terms.version} cost and usage, {terms.side} side",
        start_ms=wanted.start_ms,
        end_ms=wanted.end_ms,
        generated_at_ms=stage.now_ms,
        group_by=(),
        filters=wanted.filters,
        row_count=None,
        amounts=control,
        high_water=stage.high_water(facts),
        price_versions=facts.price_versions,
        are_prices_used=facts.are_prices_used,
        period_state=stage.period_state,
        columns=maker.columns,
        basis="charge" if terms.side == "demand" else "allocation",
        notes=(("focus_version", terms.version),)
        + ((("focus_conformance", _BY_READING),) if terms.version == "1.4" else ()),
    )
