"""What does a training run report, and what does the card say?

`figures_of` turns left-out predictions into figures, `write_documents` writes CARD.md and its pictures from
`figures.json` and the words in `card.md.jinja`, so that neither states a number that was not measured. A test
compares the committed files with what comes out here.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from gateway.inference import CREATIVE_TASKS
from gateway.routing.classifier.weights import SHIPPED, TASKS
from gateway.routing.training.pictures import draw_confusion, draw_curve, draw_reliability

CARD: Final = "CARD.md"
FIGURES: Final = "figures.json"
FOLDER: Final = Path(__file__).parent


class CardError(ValueError):
    """The card cannot be written; the text says why and what to do."""


def documents(folder: Path = SHIPPED.parent) -> dict[str, str]:
    """The card and its pictures by file name.

    Raises:
        CardError: a file is missing, or the figures are of other weights than those beside them.
    """
    try:
        figures: dict[str, Any] = json.loads((folder / FIGURES).read_text())
        sha256 = hashlib.sha256((folder / SHIPPED.name).read_bytes()).hexdigest()
    except OSError as error:
        raise CardError(f"{error.filename}: cannot be read; train: --prompts FILE") from error
    if figures["training"]["sha256"] != sha256:
        raise CardError(f"{folder}: the figures are of other weights than those beside them; train again")
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=select_autoescape(),
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    names = [str(task) for task in TASKS]
    return {
        CARD: environment.get_template("card.md.jinja").render(
            **figures, tasks=names, creative=sorted(str(task) for task in CREATIVE_TASKS)
        ),
        "confusion.svg": draw_confusion(names, figures["whole"]["confusion"]),
        "reliability.svg": draw_reliability(figures["calibration"]),
        "curve.svg": draw_curve(figures["curve"]),
    }


def write_documents(folder: Path) -> None:
    """Write the card and its pictures beside the weights."""
    for name, text in documents(folder).items():
        (folder / name).write_text(text, encoding="utf-8")
