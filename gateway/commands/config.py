"""`tollgate config`: which settings are in force?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from rich.table import Table

from gateway.commands.terminal import Json, out, print_json
from gateway.settings import load_settings, masked

settings = typer.Typer()


@settings.command(epilog="Example: `tollgate config --json`")
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


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
