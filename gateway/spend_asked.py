"""How is a spend report made of what people ask for: names instead of ids, filters as they are written?

One way for the command line, the API and the console.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from gateway.ledger.cuts import parse_filters
from gateway.ledger.invariants import take_snapshot
from gateway.ledger.report_facts import read_facts
from gateway.ledger.reports import Shape, SpendReport, cut_of, spend_report
from gateway.spend_names import Names, read_names, with_ids


@dataclass(frozen=True, slots=True)
class Asked:
    """A report as people ask for it."""

    group_by: Sequence[str]
    start: datetime
    end: datetime
    filters: Sequence[str] = ()
    order: str = "charge"
    top: int | None = None
    is_compared: bool = False
    counts_end_users: bool = False


def shape_of(asked: Asked, names: Names) -> Shape:
    """Its rows, with ids instead of the names that people filter by.

    Raises:
        InvalidRequest: a filter is none.
        NotFound: a tenant, project or key of a filter does not exist.
    """
    return Shape(
        filters=with_ids(parse_filters(asked.filters), names),
        order=asked.order,
        top=asked.top,
        is_compared=asked.is_compared,
        counts_end_users=asked.counts_end_users,
    )


async def make_report(session: AsyncSession, asked: Asked) -> SpendReport:
    """The report, of one instant, with where its figures come from; the session is a fresh one.

    Raises:
        InvalidRequest: something that is asked for is not known, or makes no sense.
        NotFound: a tenant, project or key of a filter does not exist.
    """
    await take_snapshot(session)
    names = await read_names(session)
    shape = shape_of(asked, names)
    report = await spend_report(
        session, group_by=asked.group_by, start=asked.start, end=asked.end, names=names, shape=shape
    )
    cut = cut_of(asked.group_by, asked.start, asked.end, filters=shape.filters)
    return replace(report, facts=await read_facts(session, cut))
