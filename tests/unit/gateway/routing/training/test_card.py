"""Does the card say what was measured, of the weights that are shipped?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gateway.routing.classifier.weights import SHIPPED
from gateway.routing.training.money import pool_prices
from gateway.routing.training.report import CardError, documents

NAMES = ("CARD.md", "confusion.svg", "reliability.svg", "curve.svg")


def test_the_committed_card_and_pictures_are_what_the_figures_say() -> None:
    for name, text in documents().items():
        assert SHIPPED.with_name(name).read_text(encoding="utf-8") == text, name
        assert len(text) < 150_000
    assert set(documents()) == set(NAMES)


def test_the_money_is_of_the_pools_and_figures_that_are_bundled_now() -> None:
    told = json.loads(SHIPPED.with_name("figures.json").read_text())["money"]
    assert {key: told[key] for key in pool_prices()} == pool_prices()


def test_every_source_that_trained_is_in_the_notice() -> None:
    sources = json.loads(SHIPPED.with_name("figures.json").read_text())["training"]["sources"]
    card = SHIPPED.with_name("CARD.md").read_text(encoding="utf-8")
    assert len(sources) >= 10
    for source, licence in sources:
        assert f"| {source} | {licence} |" in card
        assert "noncommercial" not in licence.lower()
        assert "-NC" not in licence


def test_figures_of_other_weights_are_refused(tmp_path: Path) -> None:
    for name in ("figures.json", SHIPPED.name):
        shutil.copy(SHIPPED.with_name(name), tmp_path / name)
    with (tmp_path / SHIPPED.name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(CardError, match="of other weights"):
        documents(tmp_path)
    (tmp_path / "figures.json").unlink()
    with pytest.raises(CardError, match="cannot be read"):
        documents(tmp_path)
