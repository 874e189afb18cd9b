"""`tollgate pools`: are the pool files right, and how does this machine's fleet run by itself?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.commands.pools_status import pools_status
from gateway.commands.terminal import load_pool_files, out
from gateway.fleet import fleet_until_stopped
from gateway.logs import set_up_logging
from gateway.pricing.catalog import cards_of
from gateway.progress import FleetProgress
from gateway.settings import load_settings
from gateway.stopping import run_until_stopped

pools = typer.Typer(help="vLLM pools.", no_args_is_help=True)

pools.command("status", epilog="Example: `tollgate pools status --watch`")(pools_status)


@pools.command("up", epilog="Example: `tollgate pools up`")
def pools_up() -> None:
    """Start the fleet of this machine alone; Ctrl-C stops it."""
    settings = load_settings()
    set_up_logging(settings.state_dir / "logs" / "fleet.log")
    with FleetProgress(out) as progress:

        def ready() -> None:
            progress.settle()
            out.print("The fleet is up. Ctrl-C stops it.")

        run_until_stopped(fleet_until_stopped(settings, on_progress=progress.replica, on_up=ready))


@pools.command("check", epilog="Example: `tollgate pools check`")
def pools_check(
    folder: Annotated[Path | None, typer.Argument(help="default: the pools in use")] = None,
) -> None:
    """Say whether the pool files are right, and if not, what is wrong and where."""
    settings = load_settings()
    found = load_pool_files(settings, folder)
    cards_of(found)
    for name, spec in found.items():
        speculation = f", speculation by {spec.speculation.method}" if spec.speculation else ""
        out.print(f"{name}: valid (driver {spec.driver}, {spec.replicas} replica(s){speculation})")
