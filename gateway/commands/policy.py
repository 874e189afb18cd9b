"""`tollgate policy`: is a routing policy right?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.commands.policy_backtest import backtest
from gateway.commands.terminal import load_pool_files, out
from gateway.pricing.catalog import cards_of
from gateway.routing.policy import load_policy
from gateway.settings import load_settings

policy = typer.Typer(help="Routing policies.", no_args_is_help=True)
policy.command(
    "backtest",
    short_help="Say what recorded requests would have cost under another policy.",
    epilog="Example: `tollgate policy backtest policies/cheaper.yaml --from 2026-11-20 --out report.html`",
)(backtest)


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
