"""Mistakes in YAML are told with line, key path, what was meant and what is expected."""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from backends.yaml_source import YamlSourceError, dotted, explain, load_yaml_with_lines


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


class Circle(Strict):
    kind: Literal["circle"]
    radius_cm: float = Field(gt=0)


class Square(Strict):
    kind: Literal["square"]
    side_cm: float


class Box(Strict):
    lid: Circle | None = None
    colour: Colour = Colour.RED
    weight: int | list[int] = 1


class Drawing(Strict):
    title: str
    price: Decimal = Decimal(1)
    shapes: list[Annotated[Circle | Square, Field(discriminator="kind")]] = []
    boxes: dict[str, Box] = {}
    pair: tuple[Circle, ...] = ()

    @model_validator(mode="after")
    def _not_nameless(self) -> Drawing:
        if self.title == "nameless":
            raise ValueError("a drawing needs a better title")
        return self


def complaints(text: str) -> list[str]:
    value, lines = load_yaml_with_lines(text)
    with pytest.raises(ValidationError) as caught:
        Drawing.model_validate(value)
    return explain(caught.value, lines, Drawing, source="d.yaml")


def test_values_come_with_the_lines_of_their_keys() -> None:
    value, lines = load_yaml_with_lines("# a comment\na: 1\nb:\n  - x\n  - {c: yes, 7: null}\n\nd: 'text'\n")
    assert value == {"a": 1, "b": ["x", {"c": True, 7: None}], "d": "text"}
    assert lines == {
        (): 2,
        ("a",): 2,
        ("b",): 3,
        ("b", 0): 4,
        ("b", 1): 5,
        ("b", 1, "c"): 5,
        ("b", 1, 7): 5,
        ("d",): 7,
    }


def test_an_empty_document_is_none() -> None:
    assert load_yaml_with_lines("# nothing\n") == (None, {(): 1})


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", 5, r"duplicate key 'b\.c': on line 3 and on line 5"),
        ("a: 1\n1: x\na: 2\n", 3, "duplicate key 'a': on line 1 and on line 3"),
        ("a: &x 1\nb: *x\n", 1, "anchors and aliases are not supported"),
        ("a: 1\nb: *x\n", 2, "anchors and aliases are not supported"),
        ("a: 1\n<<: {b: 2}\n", 2, "a key must be a plain word"),
        ("[1]: 2\n", 1, "a key must be a plain word"),
        ("a: [1\nb: 2\n", 2, "not valid YAML"),
        ("a: 1\n---\nb: 2\n", 2, "not valid YAML"),
        ("a:\tb: 1\n", 1, "not valid YAML"),
        ("a: \x00", 1, "not valid YAML"),
        ("a: 1\nb: !shout x\n", 2, "not valid YAML: could not determine a constructor"),
        ("a: !!set {x}\n", 1, "the tag tag:yaml.org,2002:set is not supported"),
        ("a: 1\nb: 2024-13-45\n", 2, "'2024-13-45' is not a valid value"),
        ("a: " + 60 * "[", 1, "nested more than 50 levels deep"),
    ],
)
def test_what_is_not_accepted_is_told_with_its_line(text: str, line: int, message: str) -> None:
    with pytest.raises(YamlSourceError, match=message) as caught:
        load_yaml_with_lines(text)
    assert caught.value.line == line


def test_an_unknown_key_is_told_with_the_one_that_was_meant() -> None:
    assert complaints("title: t\nboxes:\n  first:\n    color: red\n") == [
        "d.yaml:4: boxes.first.color: unknown key; did you mean 'colour'?"
    ]


def test_an_unknown_key_like_no_other_is_told_with_all_that_are_known() -> None:
    assert complaints("title: t\nxyz: 1\n") == [
        "d.yaml:2: xyz: unknown key; known keys: boxes, pair, price, shapes, title"
    ]


def test_keys_are_known_inside_tagged_unions_lists_tuples_and_optionals() -> None:
    text = (
        "title: t\n"
        "shapes:\n"
        "  - {kind: square, side_cm: 1}\n"
        "  - kind: circle\n"
        "    radius_cm: 1\n"
        "    side: 2\n"
        "boxes:\n"
        "  a: {lid: {kind: circle, radius_cm: 1, radius: 2}}\n"
        "pair:\n"
        "  - {kind: circle, radius_cm: 1, radus_cm: 2}\n"
    )
    assert complaints(text) == [
        "d.yaml:6: shapes[1].side: unknown key; known keys: kind, radius_cm",
        "d.yaml:8: boxes.a.lid.radius: unknown key; did you mean 'radius_cm'?",
        "d.yaml:10: pair[0].radus_cm: unknown key; did you mean 'radius_cm'?",
    ]


def test_a_missing_key_is_told_where_it_should_stand() -> None:
    assert complaints("shapes:\n  - kind: circle\n") == [
        "d.yaml:1: missing key 'title'",
        "d.yaml:2: shapes[0]: missing key 'radius_cm'",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "title: t\nprice: dear\n",
            "d.yaml:2: price: expected a valid decimal, got 'dear'",
        ),
        (
            "title: t\nboxes: {a: {colour: gren}}\n",
            "d.yaml:2: boxes.a.colour: expected 'red' or 'green', got 'gren'; did you mean 'green'?",
        ),
        (
            "title: t\nshapes: [{kind: circle, radius_cm: -1}]\n",
            "d.yaml:2: shapes[0].radius_cm: expected greater than 0, got -1",
        ),
        (
            "title: t\nshapes: 3\n",
            "d.yaml:2: shapes: expected a valid list, got 3",
        ),
        (
            "title: {a: 1}\n",
            "d.yaml:1: title: expected a valid string, got a mapping",
        ),
        (
            "title:\n",
            "d.yaml:1: title: expected a valid string, got nothing",
        ),
        (
            "title: t\nboxes: {a: {weight: [1, [2]]}}\n",
            "d.yaml:2: boxes.a.weight[1]: expected a valid integer, got a list",
        ),
        ("title: nameless\n", "d.yaml:1: a drawing needs a better title"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_expected(text: str, sentence: str) -> None:
    assert sentence in complaints(text)


def test_the_branches_of_a_union_make_one_sentence() -> None:
    (sentence,) = complaints("title: t\nboxes: {a: {weight: heavy}}\n")
    assert sentence.startswith("d.yaml:2: boxes.a.weight: expected a valid integer")
    assert " or expected a valid list" in sentence


def test_long_values_are_shown_in_part() -> None:
    (sentence,) = complaints(f"title: t\nprice: {'x' * 500}\n")
    assert len(sentence) < 150
    assert sentence.endswith("…")


@pytest.mark.parametrize(
    ("path", "text"),
    [((), ""), (("a",), "a"), (("a", 0, "b"), "a[0].b"), ((0, "a"), "[0].a"), (("a", 0, 1), "a[0][1]")],
)
def test_paths_are_written_as_people_write_them(path: tuple[Any, ...], text: str) -> None:
    assert dotted(path) == text


def test_what_one_reader_does_to_a_text_no_other_one_sees() -> None:
    text = "a: {b: [1, 2]}"
    first, lines = load_yaml_with_lines(text)
    first["a"]["b"].append(3)
    lines.clear()
    again, where = load_yaml_with_lines(text)
    assert again == {"a": {"b": [1, 2]}}
    assert where["a", "b"] == 1
