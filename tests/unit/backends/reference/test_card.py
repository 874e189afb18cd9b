"""The card and its plot state what was measured, on the weights that lie beside them, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from jinja2 import UndefinedError

from backends.reference.card import FOLDER, CardError, documents, read, render
from backends.reference.plot import draw, scale_top
from backends.reference.speed import WEIGHTS

UPDATE = "run `python -m backends.reference.card` and commit what it writes"


@pytest.fixture
def source() -> dict[str, Any]:
    return read(WEIGHTS)


@pytest.mark.parametrize("name", ["MODEL_CARD.md", "figures.svg"])
def test_the_committed_file_is_what_the_figures_give(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == documents()[name], UPDATE


def test_a_number_that_changes_changes_the_card(source: dict[str, Any]) -> None:
    before = render(source)
    source["figures"]["quality"]["speculative"][0]["has_keys_ratio"] = 0.123
    assert "| 0.12 (" in render(source)
    assert render(source) != before


@pytest.mark.parametrize(
    "path", ["training.draft.tokens", "training.target.loss", "figures.vllm", "figures.load_before"]
)
def test_a_number_that_is_missing_is_an_error(source: dict[str, Any], path: str) -> None:
    *parents, key = path.split(".")
    inner = source
    for parent in parents:
        inner = inner[parent]
    del inner[key]
    with pytest.raises((UndefinedError, TypeError, KeyError)):
        render(source)


def test_what_training_noted_about_itself_is_told(source: dict[str, Any]) -> None:
    source["training"]["device"] = "two cores"
    assert "device two cores" in render(source)


def test_a_busy_machine_is_told(source: dict[str, Any]) -> None:
    source["figures"] |= {"load_before": 0.1, "cores": 2}
    assert "busy with something else" not in render(source)
    source["figures"]["load_before"] = 1.0
    assert "busy with something else: a load of 1.0" in render(source)


def test_a_pair_that_shows_the_opposite_is_not_praised(source: dict[str, Any]) -> None:
    halves = {
        (half["kind"], half["temperature"]): half
        for half in source["figures"]["quality"]["speculative"]
        if half["split"] == "held_out"
    }
    structured, stories = halves["structured", 0.0], halves["creative", 1.0]
    structured["acceptance_ratio"], stories["acceptance_ratio"] = 0.8, 0.4
    assert "more often on structured answers than on stories (0.80" in render(source)
    structured["acceptance_ratio"] = 0.3
    assert "do not demonstrate routing with these weights" in render(source)


def test_figures_of_other_weights_are_refused(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(WEIGHTS, weights)
    with (weights / "draft" / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CardError, match="of other weights"):
        documents(weights)


def test_figures_without_answers_are_refused(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(WEIGHTS, weights)
    path = weights / "figures.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quality": {}}))
    with pytest.raises(CardError, match="judge no answers"):
        documents(weights)
    path.unlink()
    with pytest.raises(CardError, match=r"figures\.json cannot be read"):
        documents(weights)


def test_the_plot_draws_every_figure_to_scale(source: dict[str, Any]) -> None:
    root = ET.fromstring(draw(source["figures"]))  # noqa: S314 - our own text
    space = "{http://www.w3.org/2000/svg}"
    bars = [rect for rect in root.iter(f"{space}rect") if rect.find(f"{space}title") is not None]
    assert len(bars) == 5 + 2 * 4
    heights = {str(bar.findtext(f"{space}title")): float(bar.attrib["height"]) for bar in bars}
    halves = source["figures"]["quality"]["speculative"]
    drawn = [height for words, height in heights.items() if "ms per token" not in words]
    for half, height in zip(halves, drawn, strict=True):
        assert height / drawn[0] == pytest.approx(
            half["acceptance_ratio"] / halves[0]["acceptance_ratio"], rel=0.01
        )
    row = source["figures"]["speed"][0]
    plain, speculative = (
        heights[f"structured, 1 at a time, {pool}: {row[pool]['ms_per_token']:.2f} ms per token"]
        for pool in ("plain", "speculative")
    )
    ratio = row["plain"]["ms_per_token"] / row["speculative"]["ms_per_token"]
    assert plain / speculative == pytest.approx(ratio, rel=0.02)


@pytest.mark.parametrize(
    ("value", "top"), [(0, 1), (0.9, 1), (1, 1), (1.2, 2), (2.1, 2.5), (26, 50), (51, 100)]
)
def test_an_axis_ends_at_a_round_number(value: float, top: float) -> None:
    assert scale_top(value) == top
