"""Which handler answers which address below /console?

What changes something is not here: the pages call the admin API with the login, so that roles, checks and the
audit are those of the API.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter
from fastapi.responses import RedirectResponse, Response

from gateway.console import budgets, corrections, keys, me, outlook
from gateway.console.aside import Aside
from gateway.console.assets import static_file
from gateway.console.navigation import HOME
from gateway.console.operations import add_operations
from gateway.console.overview import Overview
from gateway.console.pages import STATIC, PageRoute
from gateway.console.periods import PeriodPages
from gateway.console.session import Door
from gateway.console.sign_on import CompanyDoor
from gateway.console.spend import SpendPages
from gateway.console.supply import SupplyPages
from gateway.errors import NotFound


def console_router() -> APIRouter:
    """The whole console, with a memory of its own for logins and figures."""
    router = APIRouter(route_class=PageRoute, include_in_schema=False)
    router.include_router(Door().router())
    router.include_router(CompanyDoor().router())
    Overview().routes(router)
    _add_finance(router, Aside())
    router.add_api_route(STATIC + "/{name}", static_file, methods=["GET"])
    add_operations(router)
    # Last: whatever has no page.
    router.add_api_route(HOME + "/{path:path}", _elsewhere, methods=["GET"])
    return router


def _add_finance(router: APIRouter, aside: Aside) -> None:
    """Pages of finance and of the teams that spend; fixed addresses come before those with a name in them."""
    spend, supply, periods = SpendPages(aside), SupplyPages(aside), PeriodPages(aside)
    handlers: dict[str, Callable[..., Awaitable[Response]]] = {
        "/spend": spend.show,
        "/spend/report": spend.show_report,
        "/spend/supply": supply.show,
        "/spend/supply/report": supply.show_report,
        "/spend/savings": supply.show_savings,
        "/spend/savings/report": supply.show_savings_report,
        "/spend/forecast": outlook.show_forecast,
        "/spend/forecast/report": outlook.show_forecast_report,
        "/spend/anomalies": outlook.show_anomalies,
        "/periods": periods.show_months,
        "/periods/adjustments": corrections.show_adjustments,
        "/periods/bills": corrections.show_bills,
        "/periods/bills/{reconciliation}": corrections.show_bill,
        "/periods/{period}": periods.show_month,
        "/periods/{period}/verification": periods.show_verification,
        "/budgets": budgets.show_budgets,
        "/budgets/{budget}": budgets.show_budget,
        "/keys": keys.show_keys,
        "/keys/tenants": keys.show_tenants,
        "/keys/tenants/{tenant}": keys.show_tenant,
        "/keys/{key}": keys.show_key,
        "/me": me.show_login,
    }
    for ending, handler in handlers.items():
        router.add_api_route(HOME + ending, handler, methods=["GET"])


async def _elsewhere(path: str) -> Response:
    """Any other address below the console.

    Raises:
        NotFound: there is no such page.
    """
    if not path:
        return RedirectResponse(HOME, 303)
    raise NotFound("There is no such page in the console.")
