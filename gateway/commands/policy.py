"""`tollgate policy`: is a routing policy right, and what would it do?"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from gateway.commands.policy_backtest import backtest
from gateway.commands.policy_explain import policy_explain
from gateway.commands.policy_test import policy_test
from gateway.commands.terminal import Json, load_pool_files, out, print_json
from gateway.errors import ConfigurationError
from gateway.pricing.catalog import cards_of
from gateway.routing.policy_check import Finding, Severity, check_policy
from gateway.routing.policy_schema import schema_text
from gateway.settings import load_settings

policy = typer.Typer(help="Routing policies.", no_args_is_help=True)
policy.command(
    "backtest",
    short_help="Say what recorded requests would have cost under another policy.",
    epilog="Example: `tollgate policy backtest policies/cheaper.yaml --from 2026-11-20 --out report.html`",
)(backtest)
_STYLES = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.OVERLAP: "dim"}


@policy.command("check", epilog="Example: `tollgate policy check policies/default.yaml`")
def policy_check(
    file: Annotated[Path | None, typer.Argument(help="default: the policy in use")] = None,
    *,
    overlaps: Annotated[
        bool, typer.Option("--overlaps", help="show which rules share calls, and who takes them")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say whether a policy file is right, and if not, what is wrong and where.

    Exit status 0: right, perhaps with warnings; 1: it has errors; 2: it cannot be read.
    """
    settings = load_settings()
    path = file or settings.policy
    pools = load_pool_files(settings)
    text = read_text(path)
    cards = cards_of(pools)
    prices = {name: card.price for name, card in cards.items() if card.price is not None}
    checked, found = check_policy(text, source=str(path), pools=pools, prices=prices)
    errors = [each for each in found if each.severity is Severity.ERROR]
    notes = [] if checked is None else checked.missing_keys(settings.external_keys)
    if as_json:
        print_json(
            {
                "file": str(path),
                "version": None if checked is None else checked.version,
                "valid": not errors,
                "findings": [{**asdict(each), "severity": each.severity.value} for each in found],
                "not_ready": notes,
            }
        )
    else:
        version = None if errors or checked is None else checked.version
        _print(path, found, version, with_overlaps=overlaps)
        for sentence in notes:
            out.print(f"{path}: not ready to serve: {sentence}", highlight=False)
    if errors:
        raise typer.Exit(1)


def _print(path: Path, found: list[Finding], version: str | None, *, with_overlaps: bool) -> None:
    shared = sum(each.severity is Severity.OVERLAP for each in found)
    for each in found:
        if each.severity is Severity.OVERLAP and not with_overlaps:
            continue
        line = Text(each.told(str(path)))
        line.highlight_words([f" {each.severity}: "], style=_STYLES[each.severity])
        out.print(line, soft_wrap=True)
    if shared and not with_overlaps:
        told = f"{path}: {shared} pairs of rules share calls; the first that matches decides (--overlaps)"
        out.print(Text(told, style="dim"), soft_wrap=True)
    if version is not None:
        out.print(f"{path}: valid, version {version}", soft_wrap=True)
        return
    count = sum(each.severity is Severity.ERROR for each in found)
    out.print(
        f"{path}: invalid, {count} {'error' if count == 1 else 'errors'}", soft_wrap=True, highlight=False
    )


def read_text(path: Path) -> str:
    """The text of a policy file.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: the policy cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: the policy cannot be read: not UTF-8 text") from None


@policy.command("schema", epilog="Example: `tollgate policy schema > policies/schema.json`")
def policy_schema() -> None:
    """Print the JSON schema of policy files, by which editors complete and check them."""
    sys.stdout.write(schema_text())


policy.command(
    "explain",
    epilog="Example: `tollgate policy explain request.json --tenant acme --given at=2026-11-20T23:00`",
)(policy_explain)
policy.command("test", epilog="Example: `tollgate policy test policies/cases/default.yaml`")(policy_test)
