"""`tollgate report anomalies`: what stood out, and why?"""

from __future__ import annotations

from typing import Annotated

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.alert_views import AnomaliesView, AnomalyView, anomaly_view
from gateway.admin.spend import period
from gateway.clock import Clock
from gateway.commands.forecast import reports
from gateway.commands.terminal import Json, in_session, out, print_json, print_table
from gateway.db import database_ms
from gateway.errors import InvalidRequest
from gateway.forecasts.anomaly_search import search
from gateway.forecasts.anomaly_store import anomalies_between
from gateway.forecasts.tables import Anomaly
from gateway.ledger.cuts import epoch_ms
from gateway.money import NANOS_PER_USD
from gateway.settings import load_settings
from gateway.spend_names import read_names

__all__ = ["reports"]


@reports.command(epilog="Example: `tollgate report anomalies --from 2026-11-01`")
def anomalies(
    since: Annotated[str | None, typer.Option("--from", help="first day, UTC; default: month start")] = None,
    until: Annotated[str | None, typer.Option("--to", help="first day that does not count")] = None,
    *,
    now: Annotated[
        bool, typer.Option("--now", help="look at the last whole hour instead; tells and keeps nothing")
    ] = False,
    as_machine: Json = False,
) -> None:
    """Spend that stood out, and what explains it."""
    settings, clock = load_settings(), Clock()
    start, end = period(since, until, clock.now())
    if end <= start:
        raise InvalidRequest("The end of the report must be after its start.", param="to")

    async def work(session: AsyncSession) -> list[AnomalyView]:
        if now:
            now_ms = await database_ms(session, clock)
            await session.rollback()  # what is searched is of one instant, which begins with the search
            floor = round(settings.alerts.anomaly_floor_usd * NANOS_PER_USD)
            found = await search(session, now_ms=now_ms, floor_usd_nanos=floor)
            rows = [Anomaly.model_validate(each.row(now_ms)) for each in found]
        else:
            rows = await anomalies_between(session, start_ms=epoch_ms(start), end_ms=epoch_ms(end))
        names = await read_names(session)
        return [anomaly_view(row, names) for row in rows]

    views = in_session(work, settings)
    if as_machine:
        bounds = {"period_start": start.isoformat(), "period_end": end.isoformat()}
        print_json(AnomaliesView(**bounds, time_zone="UTC", currency="USD", anomalies=views))
        return
    _print(views)


def _print(views: list[AnomalyView]) -> None:
    if not views:
        out.print("Nothing stood out.")
        return
    print_table(
        ("what", "name", "from", "to", "charged USD", "usual USD", "deviations", "mostly"),
        [
            (
                view.dimension,
                view.name,
                view.since,
                view.until,
                f"{float(view.charged_usd):,.2f}",
                f"{float(view.usual_usd):,.2f}",
                f"{view.deviations:.1f}",
                "" if view.cause is None else _cause(view),
            )
            for view in views
        ],
    )


def _cause(view: AnomalyView) -> str:
    return f"{view.cause_dimension} {view.cause} ({view.cause_share_ratio or 0:.0%})"
