"""`tollgate policy canary …`: a candidate beside the active policy; how does it fare, what becomes of it?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.admin.canary_views import CanaryStatusView, CanaryView, canary_view, newest_canary
from gateway.admin.policy_views import outcome_view
from gateway.commands.policy_sources import KeysElsewhere, Message, policy_file, supply_here
from gateway.commands.terminal import (
    Json,
    act_of_the_user,
    all_rows,
    in_session,
    out,
    print_json,
    print_table,
)
from gateway.errors import NotFound
from gateway.policy_canary import (
    HOURS_DEFAULT,
    UNITS_DEFAULT,
    Order,
    promote_canary,
    start_canary,
    stop_canary,
)
from gateway.policy_life import Outcome, Proposal
from gateway.routing.canaries import Canary, How, page_canaries
from gateway.routing.split import Stickiness

canary = typer.Typer(
    help="A candidate beside the active policy: start, status, history, promote, stop.", no_args_is_help=True
)
_ROWS_DEFAULT = 20
Number = Annotated[int | None, typer.Option("--number", help="do nothing unless this canary is under way")]
