"""What do the two figures of the gate look like beside each other?

One SVG, bars over a logarithmic axis, drawn by hand because the project has no library for it (like
`backends/reference/plot.py`); in pixels. The same records give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any, Final
from xml.etree import ElementTree as ET  # only written here, never parsed

from tests.load.peer_report import BY_NAME, Figure, measured, values
from tests.load.targets import OURS

WIDTH: Final = 900
_ROW: Final = 26
_TOP: Final = 78
_LABELS: Final = 190
_PANEL: Final = 300
_GAP: Final = 70
_INK: Final = "#222222"
_FAINT: Final = "#d5d8dc"
_OURS: Final = "#0a5c8f"
_OTHERS: Final = "#a9b0b8"
_SHOWN: Final = ("request", "chunk200")


def draw(records: Sequence[dict[str, Any]]) -> str | None:
    """The SVG as text; None if nothing was measured."""
    rounds = measured(records)
    if not rounds:
        return None
    titles = {one["target"]: one["title"] for one in rounds}
    figures = [BY_NAME[name] for name in _SHOWN]
    amounts = {
        name: [median(found) if (found := values(name, rounds, each.read)) else 0.0 for each in figures]
        for name in titles
    }
    names = sorted(titles, key=lambda name: amounts[name][0])
    height = _TOP + _ROW * len(names) + 30
    frame = {"viewBox": f"0 0 {WIDTH} {height}", "width": str(WIDTH), "height": str(height), "role": "img"}
    root = ET.Element(
        "svg", {"xmlns": "http://www.w3.org/2000/svg", **frame}, **{"font-family": "sans-serif"}
    )
    ET.SubElement(root, "title").text = "CPU of Tollgate, its peers and nginx, measured in one run"
    ET.SubElement(root, "rect", {"width": str(WIDTH), "height": str(height), "fill": "white"})
    _text(root, "CPU microseconds, logarithmic; less is better", (16, 24), weight="600")
    for row, name in enumerate(names):
        weight = "600" if name == OURS else "400"
        _text(root, titles[name], (_LABELS - 12, _TOP + _ROW * row + 15), anchor="end", weight=weight)
    for index, figure in enumerate(figures):
        _panel(
            root,
            figure,
            [(name, amounts[name][index]) for name in names],
            left=_LABELS + index * (_PANEL + _GAP),
        )
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _panel(root: ET.Element, figure: Figure, bars: Sequence[tuple[str, float]], *, left: int) -> None:
    known = [amount for _, amount in bars if amount > 0]
    low = 10 ** math.floor(math.log10(min(known, default=1)))
    decades = max(1, math.ceil(math.log10(max(known, default=10) / low) - 1e-9))
    _text(root, figure.title, (left, 54), weight="600")
    bottom = _TOP + _ROW * len(bars)
    for step in range(decades + 1):
        x = left + _PANEL * step / decades
        ends = {"x1": f"{x:g}", "y1": f"{_TOP - 6}", "x2": f"{x:g}", "y2": f"{bottom}"}
        ET.SubElement(root, "line", ends, stroke=_INK if step == 0 else _FAINT)
        _text(root, f"{low * 10**step:,g}", (x, bottom + 16), anchor="middle")
    for row, (name, amount) in enumerate(bars):
        if amount <= 0:
            continue
        width = _PANEL * math.log10(amount / low) / decades
        y = _TOP + _ROW * row
        box = {"x": f"{left}", "y": f"{y}", "width": f"{width:.1f}", "height": f"{_ROW - 8}"}
        ET.SubElement(root, "rect", box, fill=_OURS if name == OURS else _OTHERS)
        _text(root, f"{amount:,.1f}" if amount < 100 else f"{amount:,.0f}", (left + width + 5, y + 14))


def _text(
    root: ET.Element, words: str, at: tuple[float, float], *, anchor: str = "start", weight: str = "400"
) -> None:
    place = {"x": f"{at[0]:g}", "y": f"{at[1]:g}", "text-anchor": anchor, "font-weight": weight}
    ET.SubElement(root, "text", place, **{"font-size": "12", "fill": _INK}).text = words
