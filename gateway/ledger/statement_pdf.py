"""How does a statement become a PDF? By Typst 0.15, with its own fonts, so that every machine makes the same.

The same statement gives the same bytes: no clock, no font of the machine. Names are data to the template and
never markup. Typst's fonts know Latin, Greek and Cyrillic letters; for others a folder of fonts can be given,
and the bytes then depend on it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import typst

from gateway.errors import ConfigurationError
from gateway.ledger.statement import Statement

TEMPLATE = Path(__file__).with_name("statement.typ")


def render(statement: Statement, *, fonts: Path | None = None) -> bytes:
    """The PDF.

    Raises:
        ConfigurationError: the folder of fonts is none.
    """
    if fonts is not None and not fonts.is_dir():
        raise ConfigurationError(f"{fonts} is no folder of fonts")
    return typst.compile(
        TEMPLATE,
        format="pdf",
        sys_inputs={"statement": msgspec.json.encode(statement).decode()},
        ignore_system_fonts=True,
        font_paths=[] if fonts is None else [fonts],
    )
