"""What does the model card of the reference models say?

`python -m backends.reference.card` writes MODEL_CARD.md and figures.svg from `weights/training.json`,
`weights/figures.json`, the models' configurations and the words in `card.md.jinja`, so that neither states a
number that was not measured; a test compares the committed files with what comes out here. Figures that were
measured on other weights than those that lie beside them are refused. Knows no torch and no vLLM: it runs in
either environment.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from backends.reference.plot import draw
from backends.reference.speed import WEIGHTS, checksums, in_words

FOLDER: Final = Path(__file__).parent
CARD_NAME: Final = "MODEL_CARD.md"
PLOT_NAME: Final = "figures.svg"
MODELS: Final = ("target", "target-awq", "draft")
QUALITY: Final = {
    "has_keys_ratio": "JSON with exactly the asked keys",
    "is_exact_ratio": "all values exact",
    "exact_values_ratio": "single values exact",
    "english_sentences_ratio": "sentences that pass as English",
    "differing_ratio": "a second answer differs",
    "stopped_ratio": "ends by itself (`stop`)",
    "acceptance_ratio": "drafted tokens accepted",
    "tokens_per_step_mean": "tokens per step",
}
"""Rows of the table: key in the figures → words."""
_BUSY_LOAD_PER_CORE: Final = 0.3
_MEASURE: Final = (
    ".venv-vllm/bin/python -m backends.reference.speed --out backends/reference/weights/figures.json"
)


class CardError(ValueError):
    """The card cannot be written from these files; the text says why and what to do."""


def read(weights: Path) -> dict[str, Any]:
    """What the card is made from: `training`, `figures`, and the configurations of the `models`.

    Raises:
        CardError: a file is missing, or the figures were measured on other weights or judge no answers.
    """
    try:
        training = json.loads((weights / "training.json").read_text())
        figures = json.loads((weights / "figures.json").read_text())
        models = {name: json.loads((weights / name / "config.json").read_text()) for name in MODELS}
        present = checksums(weights)
    except OSError as error:
        raise CardError(f"{error.filename} cannot be read; to measure: {_MEASURE}") from error
    if figures["weights"] != present:
        raise CardError(
            f"the figures are of other weights than those in {weights}; measure again: {_MEASURE}"
        )
    if not figures["quality"]:
        raise CardError(f"the figures judge no answers; measure with --count above 0: {_MEASURE}")
    return {"training": training, "figures": figures, "models": models}


def _ratio(value: float | str | None) -> str:
    """Two digits; nothing where there is nothing to measure, which is not the same as a missing figure."""
    return "" if value is None or value == "" else f"{value:.2f}"


def _shape(config: Mapping[str, Any]) -> str:
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    parts = (
        f"Llama: hidden {config['hidden_size']}",
        f"{config['num_hidden_layers']} layers",
        f"{heads} heads of {size}",
        f"{config['num_key_value_heads']} key-value heads",
        f"MLP {config['intermediate_size']}",
        f"vocabulary {config['vocab_size']:,}",
    )
    return ", ".join((*parts, "tied") if config.get("tie_word_embeddings") else parts)


def _times(pool: Mapping[str, Any]) -> str:
    return "{ms_per_token:.2f} ({ms_per_token_least:.2f} to {ms_per_token_greatest:.2f})".format(**pool)


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("`", "'")


def render(source: Mapping[str, Any]) -> str:
    """The whole card as Markdown, from what `read` returned."""
    # A figure that is missing is an error, not a gap. HTML would be escaped, Markdown is not.
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=select_autoescape(),
    )
    environment.filters |= {
        "ratio": _ratio,
        "shape": _shape,
        "times": _times,
        "one_line": _one_line,
        "in_words": in_words,
        "kind": {"structured": "structured", "creative": "stories"}.__getitem__,
    }
    training, figures = source["training"], source["figures"]
    halves = [dict.fromkeys(QUALITY, "") | half for half in figures["quality"]["speculative"]]
    by_case = {(half["split"], half["kind"], half["temperature"]): half for half in halves}
    # Whatever else a training run noted about itself, such as its machine.
    noted = [
        f"{key.replace('_', ' ')} {value}"
        for key, value in training.items()
        if key not in {"minutes", "seed"} and isinstance(value, str | int | float)
    ]
    return environment.get_template("card.md.jinja").render(
        **source,
        halves=halves,
        plain=figures["quality"]["plain"],
        structured=by_case["held_out", "structured", 0.0],
        new_words=by_case["new_words", "structured", 0.0],
        stories=by_case["held_out", "creative", 1.0],
        noted=noted,
        quality=QUALITY,
        plot=PLOT_NAME,
        is_busy=figures["load_before"] > _BUSY_LOAD_PER_CORE * figures["cores"],
    )


def documents(weights: Path = WEIGHTS) -> dict[str, str]:
    """The card and its plot by file name, for what lies in this folder.

    Raises:
        CardError: as `read` does.
    """
    source = read(weights)
    return {CARD_NAME: render(source), PLOT_NAME: draw(source["figures"])}


def main() -> int:
    """Write the card and its plot; 1 when they cannot be written or, with --check, when they differ."""
    parser = argparse.ArgumentParser(
        prog="python -m backends.reference.card",
        description="Write MODEL_CARD.md and figures.svg from training.json and figures.json in weights/.",
        epilog="Example: .venv/bin/python -m backends.reference.card",
    )
    parser.add_argument("--check", action="store_true", help="write nothing, say whether they are current")
    options = parser.parse_args()
    try:
        rendered = documents()
    except CardError as error:
        print(error, file=sys.stderr)
        return 1
    differing = [name for name, text in rendered.items() if _present(name) != text]
    if options.check:
        print(f"out of date: {', '.join(differing)}" if differing else "up to date")
        return 1 if differing else 0
    for name in differing:
        (FOLDER / name).write_text(rendered[name], encoding="utf-8")
    print(f"wrote {', '.join(differing)}" if differing else "up to date")
    return 0


def _present(name: str) -> str | None:
    path = FOLDER / name
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
