"""What do the measured figures look like?

One SVG of two panels, drawn from the JSON that `backends.reference.speed` writes: how many drafted tokens
are accepted by kind of work and temperature, and the time per token with and without the draft, with a line
from the least to the greatest round. Drawn by hand because the project has no library for it; in pixels.
The same figures give the same bytes, so that a test can compare. Colours differ in lightness too.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final
from xml.etree import ElementTree as ET  # only written here, never parsed

WIDTH: Final = 900
HEIGHT: Final = 400
_TOP: Final = 84
_BASE: Final = 290
_LEFT: Final = (70, 400)
_RIGHT: Final = (510, 870)
_INK: Final = "#222222"
_FAINT: Final = "#d5d8dc"
_COLOURS: Final = {
    "structured": "#0a5c8f",
    "creative": "#e39a3b",
    "plain": "#a9b0b8",
    "speculative": "#0a5c8f",
}
_NAMES: Final = {"structured": "structured", "creative": "stories"}
_SHORT_NAMES: Final = {"structured": "JSON", "creative": "stories"}
_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)


def scale_top(value: float) -> float:
    """The least of 1, 2, 2.5, 5 or 10 times a power of ten that is not below the value."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in _STEPS if step * power >= value * 0.999)


class Panel:
    """One pair of axes and what stands in it; `backends.bench.plot` draws its lines on them too."""

    def __init__(self, parent: ET.Element, between: tuple[int, int], *, title: str, top: float) -> None:
        self._group = ET.SubElement(parent, "g")
        self._left, self._right = between
        self._top = top
        self.text(title, self._left - 40, 50, weight="600", anchor="start")
        for quarter in range(5):
            value = top * quarter / 4
            y = self.height_of(value)
            self.line((self._left, y), (self._right, y), colour=_INK if quarter == 0 else _FAINT)
            self.text(f"{value:g}", self._left - 8, y + 4, anchor="end")

    def height_of(self, value: float) -> float:
        """Where a value of the vertical axis stands."""
        return _BASE - (_BASE - _TOP) * value / self._top

    @property
    def group(self) -> ET.Element:
        """What is drawn on these axes is appended here."""
        return self._group

    def slot(self, index: int, count: int) -> float:
        """The middle of one of so many equal slots along the axis."""
        return self._left + (self._right - self._left) * (index + 0.5) / count

    def bar(self, middle: float, value: float, *, width: float, colour: str, says: str) -> None:
        """A bar on the base line, and what a pointer over it is told."""
        y = self.height_of(value)
        box = {"x": middle - width / 2, "y": y, "width": width, "height": _BASE - y}
        bar = ET.SubElement(
            self._group, "rect", {key: f"{size:.1f}" for key, size in box.items()}, fill=colour
        )
        ET.SubElement(bar, "title").text = says

    def line(self, start: tuple[float, float], end: tuple[float, float], *, colour: str) -> None:
        """A straight line between two places."""
        ends = {"x1": start[0], "y1": start[1], "x2": end[0], "y2": end[1]}
        ET.SubElement(self._group, "line", {key: f"{at:.1f}" for key, at in ends.items()}, stroke=colour)

    def text(self, words: str, x: float, y: float, *, anchor: str = "middle", weight: str = "400") -> None:
        """Words at a place."""
        place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "font-weight": weight}
        ET.SubElement(self._group, "text", place).text = words


def _acceptance(parent: ET.Element, halves: Sequence[Mapping[str, Any]]) -> None:
    panel = Panel(parent, _LEFT, title="Drafted tokens that are accepted, share", top=1.0)
    for index, half in enumerate(halves):
        middle, ratio = panel.slot(index, len(halves)), half.get("acceptance_ratio", 0.0)
        name, below = _SHORT_NAMES[half["kind"]], f"T = {half['temperature']:g}"
        if half["split"] == "new_words":
            below = "new words"
        says = f"{name}, {below}: {ratio:.2f}"
        panel.bar(middle, ratio, width=46, colour=_COLOURS[half["kind"]], says=says)
        panel.text(f"{ratio:.2f}", middle, panel.height_of(ratio) - 6)
        panel.text(name, middle, _BASE + 20)
        panel.text(below, middle, _BASE + 37)


def _times(parent: ET.Element, rows: Sequence[Mapping[str, Any]]) -> None:
    greatest = max(row[pool]["ms_per_token_greatest"] for row in rows for pool in ("plain", "speculative"))
    panel = Panel(parent, _RIGHT, title="Milliseconds per token", top=scale_top(greatest))
    for index, row in enumerate(rows):
        middle = panel.slot(index, len(rows))
        for offset, pool in ((-18, "plain"), (18, "speculative")):
            found = row[pool]
            value = found["ms_per_token"]
            says = f"{_NAMES[row['kind']]}, {row['batch']} at a time, {pool}: {value:.2f} ms per token"
            panel.bar(middle + offset, value, width=32, colour=_COLOURS[pool], says=says)
            ends = [panel.height_of(found[key]) for key in ("ms_per_token_least", "ms_per_token_greatest")]
            panel.line((middle + offset, ends[0]), (middle + offset, ends[1]), colour=_INK)
            panel.text(f"{value:.1f}", middle + offset, ends[1] - 6)
        panel.text(_NAMES[row["kind"]], middle, _BASE + 20)
        panel.text(f"{row['batch']} at a time", middle, _BASE + 37)
        panel.text(row["verdict"], middle, _BASE + 56, weight="600")
        panel.text(f"{row['gain']:.2f} times", middle, _BASE + 73)
    panel.text("the draft", _RIGHT[0] - 12, _BASE + 56, anchor="end")
    for x, pool, words in (
        (_RIGHT[0], "plain", "without"),
        (_RIGHT[0] + 90, "speculative", "with the draft"),
    ):
        box = {"x": str(x), "y": "60", "width": "12", "height": "12"}
        ET.SubElement(parent, "rect", box, fill=_COLOURS[pool])
        panel.text(words, x + 18, 71, anchor="start")


def draw(figures: Mapping[str, Any]) -> str:
    """The SVG as text, for figures as `backends.reference.speed` writes them."""
    root = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {WIDTH} {HEIGHT}",
            "width": str(WIDTH),
            "height": str(HEIGHT),
            "role": "img",
            "font-family": "system-ui, sans-serif",
            "font-size": "13",
            "fill": _INK,
        },
    )
    ET.SubElement(root, "title").text = "What the draft does for the reference models"
    described = f"Measured {figures['date']} with vLLM {figures['vllm']} on {figures['processor']}"
    ET.SubElement(root, "desc").text = described
    # White, whatever the page is: the text is dark.
    ET.SubElement(root, "rect", width=str(WIDTH), height=str(HEIGHT), fill="#ffffff")
    _acceptance(root, figures["quality"]["speculative"])
    _times(root, figures["speed"])
    caption = {"x": "30", "y": str(HEIGHT - 10)}
    ET.SubElement(root, "text", caption).text = f"{described}, {figures['cores']} cores"
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"
