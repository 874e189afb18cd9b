"""The `tollgate` program: read arguments, call the rooms, print.

Exit status 0 done, 1 the answer is no, 2 the call or its input was wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.box import SIMPLE
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncSession

from backends.launch.process import LaunchError
from gateway.admin.usage import as_json, names_of, period
from gateway.clock import Clock
from gateway.commands.admins import admins, audit
from gateway.commands.keys import keys
from gateway.commands.limits import limits
from gateway.commands.prices import prices
from gateway.commands.tenants import projects, tenants
from gateway.commands.terminal import (
    Json,
    act_of_the_user,
    fail,
    in_session,
    load_pool_files,
    out,
    print_json,
)
from gateway.demo import ensure_demo_key
from gateway.errors import GatewayError
from gateway.identity.key_store import list_keys
from gateway.ledger.reports import SpendFigures, SpendReport, spend_report
from gateway.migrate import upgrade
from gateway.money import usd_text
from gateway.pricing.catalog import cards_of
from gateway.progress import FleetProgress
from gateway.routing.policy import load_policy
from gateway.server import set_up_logging
from gateway.settings import Settings, load_settings, masked
from gateway.up import fleet_until_stopped, serve_until_stopped, up_until_stopped

app = typer.Typer(
    name="tollgate",
    help="Tollgate: a cost-aware gateway for a company's own vLLM fleet.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
policy = typer.Typer(help="Routing policies.", no_args_is_help=True)
pools = typer.Typer(help="vLLM pools.", no_args_is_help=True)
app.add_typer(tenants, name="tenants")
app.add_typer(projects, name="projects")
app.add_typer(keys, name="keys")
app.add_typer(limits, name="limits")
app.add_typer(prices, name="prices")
app.add_typer(admins, name="admins")
app.add_typer(audit, name="audit")
app.add_typer(policy, name="policy")
app.add_typer(pools, name="pools")


def main() -> None:
    """Run the program."""
    try:
        app()
    except (GatewayError, LaunchError) as error:
        fail(str(error))


# ------------------------------------------------------------------------------------------- running


@app.command(epilog="Example: `tollgate up`")
def up() -> None:
    """Start the fleet of this machine and the gateway; Ctrl-C stops both."""
    settings = load_settings()
    log_file = settings.state_dir / "logs" / "gateway.log"
    set_up_logging(log_file)
    key = _prepare_embedded(settings)
    out.print("Starting the fleet (every replica must generate a token before it counts as ready):")
    with FleetProgress(out) as progress:

        def serving(url: str) -> None:
            progress.settle()
            _welcome(url, settings, key, log_file)

        _run(up_until_stopped(settings, on_progress=progress.replica, on_serving=serving))
    out.print("Stopped: the gateway and every replica have ended.")


@app.command(epilog="Example: `TOLLGATE_PORT=9000 tollgate serve`")
def serve() -> None:
    """Serve the gateway alone; the pools are run by `tollgate pools up` or by someone else."""
    settings = load_settings()
    set_up_logging(None)
    _prepare_embedded(settings)
    _run(serve_until_stopped(settings, on_serving=lambda url: out.print(f"Tollgate serves on {url}")))


@pools.command("up", epilog="Example: `tollgate pools up`")
def pools_up() -> None:
    """Start the fleet of this machine alone; Ctrl-C stops it."""
    settings = load_settings()
    set_up_logging(settings.state_dir / "logs" / "fleet.log")
    with FleetProgress(out) as progress:

        def ready() -> None:
            progress.settle()
            out.print("The fleet is up. Ctrl-C stops it.")

        _run(fleet_until_stopped(settings, on_progress=progress.replica, on_up=ready))


@app.command(epilog="Example: `tollgate migrate`")
def migrate() -> None:
    """Bring the database up to date."""
    settings = load_settings()
    _migrate(settings)
    out.print("The database is up to date.")


@app.command(epilog="Example: `tollgate config --json`")
def config(*, as_machine: Json = False) -> None:
    """Print the effective settings, secrets masked."""
    values = masked(load_settings())
    if as_machine:
        print_json(values)
        return
    table = Table("setting", "value", box=None)
    for name, value in _flat(values):
        table.add_row(name, str(value))
    out.print(table)


def _prepare_embedded(settings: Settings) -> str | None:
    """On an embedded install the database is kept up to date by itself, and there is a demo key."""
    if not settings.is_embedded:
        return None
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    _migrate(settings)

    async def demo_key(session: AsyncSession) -> str:
        return await ensure_demo_key(session, settings.state_dir, act_of_the_user())

    return in_session(demo_key, settings)


def _migrate(settings: Settings) -> None:
    if settings.is_embedded:
        settings.state_dir.mkdir(parents=True, exist_ok=True)
    owner = settings.migration_database_url
    serving = settings.effective_database_url
    upgrade(serving if owner is None else owner.get_secret_value(), serving_url=serving)


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


# -------------------------------------------------------------------------------------- files and spend


@policy.command("check", epilog="Example: `tollgate policy check policies/default.yaml`")
def policy_check(
    file: Annotated[Path | None, typer.Argument(help="default: the policy in use")] = None,
) -> None:
    """Say whether a policy file is right, and if not, what is wrong and where."""
    settings = load_settings()
    path = file or settings.policy
    pools = load_pool_files(settings)
    checked = load_policy(path, pools=pools)
    cards_of(pools, {name: target.rates for name, target in checked.external.items()})
    out.print(f"{path}: valid, version {checked.version}")
    for sentence in checked.missing_keys(settings.external_keys):
        out.print(f"{path}: not ready to serve: {sentence}", highlight=False)


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


@app.command(epilog="Example: `tollgate report --by tenant,pool,task --from 2026-11-01`")
def report(
    by: Annotated[
        str, typer.Option(help="comma list: tenant, project, key, model, pool, task, day, …")
    ] = "tenant",
    since: Annotated[
        str | None, typer.Option("--from", help="first instant, UTC; default: month start")
    ] = None,
    until: Annotated[str | None, typer.Option("--to", help="first instant that does not count")] = None,
    *,
    as_machine: Json = False,
) -> None:
    """What was spent, and on what."""
    start, end = period(since, until, Clock().now())

    async def work(session: AsyncSession) -> SpendReport:
        names = names_of(await list_keys(session))
        group_by = [name.strip() for name in by.split(",")]
        return await spend_report(session, group_by=group_by, start=start, end=end, names=names)

    made = in_session(work)
    if as_machine:
        print_json(as_json(made))
    else:
        _print_report(made)


def _print_report(made: SpendReport) -> None:
    table = Table(show_footer=True, box=SIMPLE, padding=(0, 0, 0, 1), pad_edge=False)
    for name in made.group_by:
        table.add_column(name, overflow="fold")
    for index, title in enumerate(("requests", "input", "cached", "output", "charge USD")):
        table.add_column(title, justify="right", no_wrap=True, footer=_cells(made.total)[index])
    if made.group_by:
        table.columns[0].footer = "total"
    for group, figures in made.rows:
        table.add_row(*group, *_cells(figures))
    out.print(f"Spend from {made.start:%Y-%m-%d %H:%M} to {made.end:%Y-%m-%d %H:%M} UTC")
    out.print(table)
    total = made.total
    if total.failed_attempts or total.platform_usd_nanos:
        out.print(
            f"Not charged to tenants: {total.failed_attempts} failed attempts,"
            f" {usd_text(total.platform_usd_nanos)} USD on the platform's account."
        )


def _cells(figures: SpendFigures) -> list[str]:
    output = figures.output_tokens + figures.reasoning_tokens
    tokens = (figures.input_tokens + figures.cache_write_tokens, figures.cached_input_tokens, output)
    return [f"{figures.requests:,}", *(f"{count:,}" for count in tokens), usd_text(figures.charge_usd_nanos)]


# ------------------------------------------------------------------------------------------- plumbing


def _run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run to the end; of several failures the first known one is told."""
    try:
        uvloop.run(coroutine)
    except BaseExceptionGroup as group:
        known, unknown = group.split((GatewayError, LaunchError))
        if unknown is not None or known is None:
            raise
        fail("; ".join(str(error) for error in _leaves(known)))


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
