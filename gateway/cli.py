"""The `tollgate` program: which commands are there?

Exit status 0 done, 1 the answer is no, 2 the call or its input was wrong.
"""

from __future__ import annotations

import gc
import sys
from typing import Final

from gateway.commands.lazy import Entry, lazy_group
from gateway.errors import GatewayError
from gateway.heap import share_one_heap

COLLECT_AFTER: Final = 50_000
"""New objects between two collections, instead of 700: a start spends a tenth of its time on looking for
rubbish that is not there."""

app = lazy_group(
    {
        "up": Entry(
            "gateway.commands.running:running.up",
            "Start the fleet of this machine and the gateway; Ctrl-C stops both.",
        ),
        "serve": Entry(
            "gateway.commands.running:running.serve",
            "Serve the gateway alone; the pools are run by `tollgate pools up` or by someone else.",
        ),
        "migrate": Entry("gateway.commands.database:database.migrate", "Bring the database up to date."),
        "config": Entry(
            "gateway.commands.config:settings.config", "Print the effective settings, secrets masked."
        ),
        "report": Entry("gateway.commands.anomalies:reports", "What was spent, and on what."),
        "export": Entry("gateway.commands.export:exports", "The ledger as files."),
        "statement": Entry(
            "gateway.commands.statement:statements.statement",
            "What is due for a tenant's month: a PDF, its lines rounded so that they add up.",
        ),
        "period": Entry("gateway.commands.adjustments:periods", "Months that are closed for ever."),
        "reconcile": Entry(
            "gateway.commands.reconcile:reconciling.reconcile",
            "Compare a bill with the ledger by day and pool, say why it differs, and propose adjustments.",
        ),
        "tenants": Entry("gateway.commands.tenants:tenants", "Who pays."),
        "projects": Entry("gateway.commands.tenants:projects", "Where spend is allocated."),
        "keys": Entry("gateway.commands.keys:keys", "API keys."),
        "limits": Entry("gateway.commands.limits:limits", "How fast tenants, projects and keys may call."),
        "budgets": Entry("gateway.commands.budgets:budgets", "Budgets: who may spend how much."),
        "alerts": Entry(
            "gateway.commands.alerts:alerts", "What people are told of budgets and unusual spend."
        ),
        "prices": Entry("gateway.commands.prices:prices", "What each target costs."),
        "admins": Entry(
            "gateway.commands.admins:admins",
            "Administrators' keys, for the control plane and the console.",
        ),
        "people": Entry(
            "gateway.commands.people:people", "People who log in to the console with a password."
        ),
        "audit": Entry("gateway.commands.books:audit", "What happened, and is it right?"),
        "policy": Entry("gateway.commands.policy_shadow:policy", "Routing policies."),
        "classify": Entry("gateway.commands.classify:tasks.classify", "Which tasks are these requests?"),
        "pools": Entry("gateway.commands.pools:pools", "vLLM pools."),
    },
    name="tollgate",
    help="Tollgate: a cost-aware gateway for a company's own vLLM fleet.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the program."""
    share_one_heap()  # before any thread has one of its own
    gc.set_threshold(COLLECT_AFTER)  # imports make hundreds of thousands of objects, and all of them stay
    try:
        app()
    except GatewayError as error:
        sys.stderr.write(f"tollgate: {error}\n")
        raise SystemExit(2) from None
