"""`tollgate pools`: are the pool files right, and how does this machine's fleet run by itself?"""

from __future__ import annotations

import typer

from gateway.commands.pools_bench import pools_bench
from gateway.commands.pools_check import EXAMPLE, pools_check
from gateway.commands.pools_learned import EXAMPLE as LEARNED_EXAMPLE
from gateway.commands.pools_learned import pools_learned
from gateway.commands.pools_status import pools_status
from gateway.commands.terminal import out
from gateway.fleet import fleet_until_stopped
from gateway.logs import set_up_logging
from gateway.progress import FleetProgress
from gateway.settings import load_settings
from gateway.stopping import run_until_stopped

pools = typer.Typer(help="vLLM pools.", no_args_is_help=True)
pools.command("bench", epilog="Example: `tollgate pools bench speculative --quick`")(pools_bench)
pools.command("check", epilog=EXAMPLE)(pools_check)
pools.command("learned", epilog=LEARNED_EXAMPLE)(pools_learned)
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
