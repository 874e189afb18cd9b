"""`tollgate up` and `tollgate serve`: how is a gateway started by hand?"""

from __future__ import annotations

import sys
from pathlib import Path

import typer
from rich.markup import escape
from sqlalchemy.ext.asyncio import AsyncSession

from gateway.commands.database import bring_up_to_date
from gateway.commands.terminal import act_of_the_user, in_session, out
from gateway.demo import ensure_demo_key
from gateway.logs import set_up_logging
from gateway.policy_life import difference_from_file, is_the_files
from gateway.progress import FleetProgress
from gateway.routing.versions import read_active
from gateway.settings import Settings, load_settings
from gateway.stopping import run_until_stopped
from gateway.up import serve_until_stopped, up_until_stopped

running = typer.Typer()


@running.command(epilog="Example: `tollgate up`")
def up() -> None:
    """Start the fleet of this machine and the gateway; Ctrl-C stops both."""
    settings = load_settings()
    log_file = settings.state_dir / "logs" / "gateway.log"
    set_up_logging(log_file)
    key = _prepare_embedded(settings)
    _say_what_is_in_force(settings)
    out.print("Starting the fleet (every replica answers real requests before it counts as ready):")
    with FleetProgress(out) as progress:

        def serving(url: str) -> None:
            progress.settle()
            _welcome(url, settings, key, log_file)

        run_until_stopped(up_until_stopped(settings, on_progress=progress.replica, on_serving=serving))
    out.print("Stopped: the gateway and every replica have ended.")


@running.command(epilog="Example: `TOLLGATE_PORT=9000 tollgate serve`")
def serve() -> None:
    """Serve the gateway alone; the pools are run by `tollgate pools up` or by someone else."""
    settings = load_settings()
    set_up_logging(None)
    _prepare_embedded(settings)
    run_until_stopped(
        serve_until_stopped(settings, on_serving=lambda url: out.print(f"Tollgate serves on {url}"))
    )


def _prepare_embedded(settings: Settings) -> str | None:
    """On an embedded install the database is kept up to date by itself, and there is a demo key."""
    if not settings.is_embedded:
        return None
    bring_up_to_date(settings)

    async def demo_key(session: AsyncSession) -> str:
        return await ensure_demo_key(session, settings.state_dir, act_of_the_user())

    return in_session(demo_key, settings)


def _say_what_is_in_force(settings: Settings) -> None:
    """Whoever edits the policy's file and starts again must see that requests follow another one.

    The gateway logs the same, into a file.
    """

    async def look(session: AsyncSession) -> str | None:
        active = await read_active(session)
        if active is None or is_the_files(active, settings):
            return None
        return difference_from_file(active, settings)

    difference = in_session(look, settings)
    if difference is not None:
        out.print(f"[yellow]Note[/] {escape(difference)}\n", highlight=False, soft_wrap=True)


def _welcome(url: str, settings: Settings, key: str | None, log_file: Path) -> None:
    shown = key or "tg-…"
    body = (
        '{"model": "auto", "messages": [{"role": "user", "content": "Tell me a short story about a fox."}]}'
    )
    out.print()
    out.print(f"[bold green]Tollgate serves on {url}[/]")
    out.print(f"  API key   {shown}", highlight=False)
    out.print(f"  Console   {url}/console (log in with {settings.state_dir / 'admin-key'})", highlight=False)
    out.print(f"  Docs      {url}/docs", highlight=False)
    out.print(f"  Logs      {log_file.parent}", highlight=False)
    out.print("\nTry it (paste into another terminal):\n")
    sys.stdout.write(
        f"curl -i {url}/v1/chat/completions -H 'Authorization: Bearer {shown}' \\\n"
        f"  -H 'Content-Type: application/json' -d '{body}'\n\n"
    )
    out.print("What it cost: [bold].venv/bin/tollgate report --by tenant,pool,task[/]")
    out.print("Ctrl-C stops everything.")
    sys.stdout.flush()
