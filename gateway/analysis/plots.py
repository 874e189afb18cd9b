"""What does a backtest look like? One SVG of three panels: cost, times by class, load of the pools.

Bars are estimates, the thin line over each is its interval; what was recorded stands beside them. Uses the
axes of `backends.reference.plot`, so that all plots of the project look alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from xml.etree import ElementTree as ET  # only written here, never parsed

from backends.reference.plot import Panel, scale_top

_WIDTH: Final = 1340
_HEIGHT: Final = 400
_PANELS: Final = ((80, 400), (510, 860), (960, 1300))
_INK: Final = "#222222"
_COLOURS: Final = {"recorded": "#a9b0b8", "baseline": "#0a5c8f", "candidate": "#e39a3b"}
_BASE: Final = 290
_LEGEND_Y: Final = 380
_SIDES: Final = ("recorded", "baseline", "candidate")


def draw(view: Mapping[str, Any]) -> str:
    """The SVG as text, from `view.as_json`."""
    root = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {_WIDTH} {_HEIGHT}",
            "role": "img",
            "font-family": "system-ui, sans-serif",
            "font-size": "13",
            "fill": _INK,
        },
    )
    ET.SubElement(root, "title").text = "Cost, times and load under both policies"
    ET.SubElement(root, "rect", width=str(_WIDTH), height=str(_HEIGHT), fill="#ffffff")
    groups = view["groups"]
    whole = [each for each in groups if each["by"] == "all"]
    classes = [each for each in groups if each["by"] == "class"]
    _money(root, whole[0] if whole else {})
    _times(root, classes)
    _loads(root, view["pools"])
    for index, side in enumerate(_SIDES):
        x = 80 + 160 * index
        ET.SubElement(
            root, "rect", x=str(x), y=str(_LEGEND_Y - 11), width="12", height="12", fill=_COLOURS[side]
        )
        ET.SubElement(root, "text", x=str(x + 18), y=str(_LEGEND_Y)).text = side
    return ET.tostring(root, encoding="unicode")


def _money(root: ET.Element, whole: Mapping[str, Any]) -> None:
    rows: list[tuple[str, list[Mapping[str, Any] | None]]] = []
    if whole:
        recorded = {"estimate": whole["recorded"]["charge_usd"]}
        sides = [whole["baseline"], whole["candidate"]]
        rows.append(("charge", [recorded, *(side.get("charge_usd") for side in sides)]))
        rows.append(("engine cost", [None, *(side.get("cost_usd") for side in sides)]))
    _panel(root, _PANELS[0], title="USD", rows=rows)


def _times(root: ET.Element, classes: Sequence[Mapping[str, Any]]) -> None:
    rows = []
    for each in classes:
        for name, words in (("ttft_p95_s", "TTFT"), ("total_p95_s", "total")):
            recorded = each["recorded"].get(name)
            rows.append(
                (
                    f"{each['name']} {words}",
                    [
                        None if recorded is None else {"estimate": recorded},
                        each["baseline"].get(name),
                        each["candidate"].get(name),
                    ],
                )
            )
    _panel(root, _PANELS[1], title="95th percentile, seconds", rows=rows)


def _loads(root: ET.Element, pools: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        (
            each["pool"],
            [None if each[side] is None else {"estimate": each[side]["busy_ratio"]} for side in _SIDES],
        )
        for each in pools
    ]
    _panel(root, _PANELS[2], title="Share of the time in which engines work", rows=rows)


def _panel(
    root: ET.Element,
    between: tuple[int, int],
    *,
    title: str,
    rows: Sequence[tuple[str, Sequence[Mapping[str, Any] | None]]],
) -> None:
    known = [
        float(each.get("high", each["estimate"]))
        for _, sides in rows
        for each in sides
        if each is not None and "estimate" in each
    ]
    panel = Panel(root, between, title=title, top=scale_top(max(known, default=0.0)))
    width = (between[1] - between[0]) / max(1, len(rows)) / 4
    for index, (words, sides) in enumerate(rows):
        middle = panel.slot(index, len(rows))
        panel.text(words, middle, _BASE + 18 + 16 * (index % 2))
        for place, (side, found) in enumerate(zip(_SIDES, sides, strict=True)):
            if found is None or "estimate" not in found:
                continue
            x, value = middle + (place - 1) * width, float(found["estimate"])
            says = f"{words}, {side}: {value:.6g}"
            if "low" in found:
                says += f" ({float(found['low']):.6g} to {float(found['high']):.6g})"
            panel.bar(x, value, width=width * 0.86, colour=_COLOURS[side], says=says)
            if "low" in found:
                low, high = panel.height_of(float(found["low"])), panel.height_of(float(found["high"]))
                panel.line((x, low), (x, high), colour=_INK)
