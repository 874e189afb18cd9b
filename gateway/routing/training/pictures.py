"""What do the classifier's figures look like?

Three SVGs, drawn by hand because the project has no library for it: the confusion matrix, the reliability of
its confidence before and after calibration, and the score against the number of training families. The same
figures give the same bytes, so that a test can compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from xml.etree import ElementTree as ET  # only written here, never parsed

_INK: Final = "#222222"
_FAINT: Final = "#d5d8dc"
_BLUE: Final = "#0a5c8f"
_ORANGE: Final = "#b8650a"
_DARK_SHARE: Final = 0.55
"""Above it a cell is dark, and its number white."""


class _Drawing:
    def __init__(self, width: int, height: int, title: str) -> None:
        self._root = ET.Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "viewBox": f"0 0 {width} {height}",
                "width": str(width),
                "height": str(height),
                "role": "img",
                "font-family": "system-ui, sans-serif",
                "font-size": "12",
                "fill": _INK,
            },
        )
        ET.SubElement(self._root, "title").text = title
        # White, whatever the page is: the text is dark.
        ET.SubElement(self._root, "rect", width=str(width), height=str(height), fill="#ffffff")
        self.text(title, 20, 28, anchor="start", weight="600")

    def text(self, words: str, x: float, y: float, *, anchor: str = "middle", **more: str) -> None:
        place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor}
        if "weight" in more:
            place["font-weight"] = more["weight"]
        if "fill" in more:
            place["fill"] = more["fill"]
        if "turned" in more:
            place["transform"] = f"rotate({more['turned']} {x:.1f} {y:.1f})"
        ET.SubElement(self._root, "text", place).text = words

    def box(self, x: float, y: float, size: tuple[float, float], *, fill: str, says: str) -> None:
        place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{size[0]:.1f}", "height": f"{size[1]:.1f}"}
        ET.SubElement(ET.SubElement(self._root, "rect", place, fill=fill), "title").text = says

    def line(self, points: Sequence[tuple[float, float]], colour: str, *, dashes: str = "") -> None:
        shape = {"points": " ".join(f"{x:.1f},{y:.1f}" for x, y in points), "fill": "none", "stroke": colour}
        if dashes:
            shape["stroke-dasharray"] = dashes
        ET.SubElement(self._root, "polyline", shape)

    def dot(self, x: float, y: float, *, colour: str, says: str) -> None:
        place = {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "4", "fill": colour}
        ET.SubElement(ET.SubElement(self._root, "circle", place), "title").text = says

    def done(self) -> str:
        ET.indent(self._root)
        return ET.tostring(self._root, encoding="unicode") + "\n"


def draw_confusion(tasks: Sequence[str], matrix: Sequence[Sequence[int]]) -> str:
    """The confusion matrix: a row for each true task, its shares in the columns, its counts in the cells."""
    cell, left, top = 46, 130, 130
    size = cell * len(tasks)
    drawing = _Drawing(left + size + 30, top + size + 40, "True task (rows) and predicted task (columns)")
    for row, (task, counts) in enumerate(zip(tasks, matrix, strict=True)):
        middle = top + cell * row + cell / 2 + 4
        drawing.text(task, left - 8, middle, anchor="end")
        across = left + cell * row + cell / 2
        drawing.text(task, across + 4, top - 8, anchor="start", turned="-45")
        for column, count in enumerate(counts):
            share = count / max(sum(counts), 1)
            shade = round(255 - 200 * share)
            says = f"{task} taken for {tasks[column]}: {count}, {share:.0%}"
            x = left + cell * column
            fill = f"rgb({shade},{min(255, shade + 20)},{min(255, shade + 40)})"
            drawing.box(x, top + cell * row, (cell - 1, cell - 1), fill=fill, says=says)
            if count:
                ink = "#ffffff" if share > _DARK_SHARE else _INK
                drawing.text(str(count), x + cell / 2, middle, fill=ink)
    drawing.text(
        "Each model had never seen the family that it is judged on.", 20, top + size + 26, anchor="start"
    )
    return drawing.done()


def draw_reliability(calibration: Mapping[str, Any]) -> str:
    """How many of the predictions with a confidence are right, before and after the temperature."""
    left, top, size = 70, 60, 360
    drawing = _Drawing(left + size + 40, top + size + 70, "Confidence and how often it is right")

    def at(confidence: float, right: float) -> tuple[float, float]:
        return left + size * confidence, top + size * (1 - right)

    for tenth in range(0, 11, 2):
        share = tenth / 10
        drawing.line([at(0, share), at(1, share)], _FAINT)
        drawing.text(f"{share:.1f}", left - 8, at(0, share)[1] + 4, anchor="end")
        drawing.text(f"{share:.1f}", at(share, 0)[0], top + size + 18)
    drawing.line([at(0, 0), at(1, 1)], _INK, dashes="4 4")
    for when, colour in (("before", _ORANGE), ("after", _BLUE)):
        bins = calibration[f"bins_{when}"]
        drawing.line([at(each["confidence"], each["right"]) for each in bins], colour)
        for each in bins:
            says = f"{when}: said {each['confidence']:.2f}, right {each['right']:.2f} of {each['rows']}"
            drawing.dot(*at(each["confidence"], each["right"]), colour=colour, says=says)
        y = top + size + (40 if when == "before" else 58)
        words = f"{when} calibration: expected error {calibration[f'error_{when}']:.3f}"
        drawing.text(words, left, y, anchor="start", fill=colour)
    return drawing.done()


def draw_curve(points: Sequence[Mapping[str, Any]]) -> str:
    """The score against the number of families that trained, besides requests of our own."""
    left, top, width, height = 70, 60, 420, 300
    most = max(point["families"] for point in points) or 1
    drawing = _Drawing(left + width + 40, top + height + 70, "Score by number of training families")

    def at(families: float, score: float) -> tuple[float, float]:
        return left + width * families / most, top + height * (1 - score)

    for tenth in range(0, 11, 2):
        share = tenth / 10
        drawing.line([at(0, share), at(most, share)], _FAINT)
        drawing.text(f"{share:.1f}", left - 8, at(0, share)[1] + 4, anchor="end")
    for point in points:
        drawing.text(str(point["families"]), at(point["families"], 0)[0], top + height + 18)
    for key, words, colour, y in (
        ("macro_f1", "macro-F1 over the tasks", _BLUE, 40),
        ("nature_accuracy", "predictable or creative, accuracy", _ORANGE, 58),
    ):
        drawing.line([at(point["families"], point[key]) for point in points], colour)
        for point in points:
            says = f"{point['families']} families: {point[key]:.3f}"
            drawing.dot(*at(point["families"], point[key]), colour=colour, says=says)
        drawing.text(words, left, top + height + y, anchor="start", fill=colour)
    return drawing.done()
