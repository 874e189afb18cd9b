"""`tollgate report forecast`: what will be spent, and how wrong was that before?"""

from __future__ import annotations

from typing import Annotated

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.forecast_views import (
    BackTestView,
    EstimateView,
    ForecastLineView,
    ForecastView,
    forecast_view,
)
from gateway.clock import Clock
from gateway.commands.savings import reports
from gateway.commands.terminal import Json, in_session, out, print_json, print_table
from gateway.db import database_ms
from gateway.forecasts.forecast import NAIVE
from gateway.forecasts.outlook import TOP, SpendOutlook, spend_outlook
from gateway.settings import load_settings
from gateway.spend_names import read_names

__all__ = ["reports"]


@reports.command(epilog="Example: `tollgate report forecast --by pool --month`")
def forecast(
    by: Annotated[str, typer.Option(help="tenant or pool")] = "tenant",
    top: Annotated[int, typer.Option(help="rows; the others are forecast together")] = TOP,
    *,
    month: Annotated[bool, typer.Option("--month", help="only to the month's end")] = False,
    as_machine: Json = False,
) -> None:
    """What tenants will be charged, with intervals and the error of a back-test.

    Status 1 if nothing could be forecast.
    """
    clock = Clock()

    async def work(session: AsyncSession) -> SpendOutlook:
        now_ms = await database_ms(session, clock)
        names = await read_names(session)
        return await spend_outlook(session, by=by, now_ms=now_ms, names=names, top=top)

    made = in_session(work, load_settings())
    view = forecast_view(made)
    if as_machine:
        print_json(view)
    else:
        _print(view, is_month=month)
    if not any(line.method for line in view.lines):
        raise typer.Exit(1)


def _print(view: ForecastView, *, is_month: bool) -> None:
    out.print(
        f"Charges forecast by {view.by} from {view.first_day[:10]} (UTC) on; the month ends with"
        f" {view.month_end[:10]}. In brackets: {view.level:.0%} intervals.",
        highlight=False,
        markup=False,
    )
    titles = (view.by, "booked", "whole month USD", *(() if is_month else ("30 days USD",)), "method")
    print_table(
        (*titles, "error", "naive's", "tested"),
        [_row(line, is_month=is_month) for line in view.lines],
    )
    out.print(
        "error: what the sum over the tested days was off by, as a share of it, mean of the back-tests;"
        " naive's: the same of seasonal-naive, the same as a week before. The total is forecast by itself.",
        highlight=False,
        style="dim",
    )
    if view.note:
        out.print(view.note, highlight=False, markup=False)


def _row(line: ForecastLineView, *, is_month: bool) -> tuple[str, ...]:
    booked = _short(line.booked_usd)
    if line.method is None:
        blank = ("",) if is_month else ("", "")
        return (line.name, booked, *blank, f"none: {line.why}", "", "", "")
    tests = {each.method: each for each in line.back_tests}
    amounts = (_range(line.month), *(() if is_month else (_range(line.next_30_days),)))
    return (
        line.name,
        booked,
        *amounts,
        line.method,
        _error(tests[line.method]),
        _error(tests[NAIVE]),
        f"{line.back_test_origins} x {line.back_test_days} days",
    )


def _error(test: BackTestView) -> str:
    return "-" if test.sum_error_ratio is None else f"{test.sum_error_ratio:.1%}"


def _range(made: EstimateView | None) -> str:
    if made is None:
        return ""
    if made.low_usd is None or made.high_usd is None:
        return f"{_short(made.usd)} [not known]"
    return f"{_short(made.usd)} [{_short(made.low_usd)} to {_short(made.high_usd)}]"


def _short(usd: str) -> str:
    return f"{float(usd):,.2f}"
