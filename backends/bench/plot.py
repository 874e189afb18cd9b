"""What does a profile look like?

One SVG of three panels over the requests at a time: output tokens per second, time to the first token, time
per output token (medians; a thin line reaches to the 95th percentile). A line is one task at one pair of
lengths. Uses the axes of `backends.reference.plot`, so that all plots of the project look alike; the same
profile gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final
from xml.etree import ElementTree as ET  # only written here, never parsed

from backends.profile import GridPoint, Profile, Spread
from backends.reference.plot import Panel, scale_top

_WIDTH: Final = 1340
_HEIGHT: Final = 470
_PANELS: Final = ((70, 400), (510, 840), (950, 1280))
_INK: Final = "#222222"
_COLOURS: Final = ("#0a5c8f", "#e39a3b", "#3f7d4e", "#9b3d5a", "#6b6b6b", "#4fa3d1", "#b58b00", "#7a5ea8")
_BASE: Final = 290
_LEGEND_Y: Final = 352
_LEGEND_COLUMNS: Final = 3
Series = Mapping[str, Sequence[GridPoint]]
Value = Callable[[GridPoint], Spread | None]


def draw(profile: Profile) -> str:
    """The SVG as text; panels are empty where a profile has no grid."""
    root = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {_WIDTH} {_HEIGHT}",
            "width": str(_WIDTH),
            "height": str(_HEIGHT),
            "role": "img",
            "font-family": "system-ui, sans-serif",
            "font-size": "13",
            "fill": _INK,
        },
    )
    origin = profile.provenance
    by = f"{origin.kind} {origin.date}" + (f" with vLLM {origin.vllm_version}" if origin.vllm_version else "")
    ET.SubElement(root, "title").text = f"Pool {profile.pool} by requests at a time"
    ET.SubElement(root, "desc").text = f"{by} on {origin.hardware}"
    # White, whatever the page is: the text is dark.
    ET.SubElement(root, "rect", width=str(_WIDTH), height=str(_HEIGHT), fill="#ffffff")
    heading = {"x": "30", "y": "24", "font-size": "15", "font-weight": "600"}
    ET.SubElement(root, "text", heading).text = f"{profile.pool}: {profile.model}, {by} on {origin.hardware}"
    series = _series(profile.grid)
    for between, title, value in (
        (_PANELS[0], "Output tokens per second", lambda one: _flat(one.output_tokens_per_s)),
        (_PANELS[1], "Time to the first token, ms", lambda one: _ms(one.ttft_s)),
        (_PANELS[2], "Time per output token, ms", lambda one: _ms(one.tpot_s)),
    ):
        _panel(root, between, series=series, title=title, value=value)
    for index, name in enumerate(series):
        x = 30 + (index % _LEGEND_COLUMNS) * 430
        y = _LEGEND_Y + (index // _LEGEND_COLUMNS) * 22
        box = {"x": str(x), "y": str(y), "width": "12", "height": "12"}
        ET.SubElement(root, "rect", box, fill=_COLOURS[index % len(_COLOURS)])
        ET.SubElement(root, "text", {"x": str(x + 18), "y": str(y + 11)}).text = name
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _series(grid: Sequence[GridPoint]) -> Series:
    """Points by what a line says of itself, each line by concurrency; single first tokens have none."""
    found: dict[str, list[GridPoint]] = {}
    for point in grid:
        if point.tpot_s is not None:
            # Lengths are means and differ a little from cell to cell.
            size = "short input" if point.input_tokens < _SHORT_TOKENS else f"{_about(point.input_tokens)} in"
            out = f"{point.output_tokens:.0f} out" if point.is_output_fixed else "whole answers"
            found.setdefault(f"{point.task}, {size}, {out}", []).append(point)
    return {name: sorted(points, key=lambda one: one.concurrency) for name, points in found.items()}


_SHORT_TOKENS: Final = 100


def _about(tokens: float) -> str:
    step = 100 if tokens < 1000 else 1000  # noqa: PLR2004 - for a reader
    return f"about {round(tokens / step) * step:.0f}"


def _flat(value: float) -> Spread:
    return Spread(p50=value, p95=value)


def _ms(value: Spread | None) -> Spread | None:
    return Spread(p50=value.p50 * 1e3, p95=value.p95 * 1e3) if value else None


def _panel(root: ET.Element, between: tuple[int, int], *, series: Series, title: str, value: Value) -> None:
    levels = sorted({point.concurrency for points in series.values() for point in points})
    values = [found for points in series.values() for point in points if (found := value(point))]
    panel = Panel(root, between, title=title, top=scale_top(max((one.p95 for one in values), default=1.0)))
    for index, level in enumerate(levels):
        panel.text(str(level), panel.slot(index, len(levels)), _BASE + 20)
    panel.text("requests at a time", sum(between) / 2, _BASE + 40)
    for index, points in enumerate(series.values()):
        colour = _COLOURS[index % len(_COLOURS)]
        places = []
        for point in points:
            found = value(point)
            if found is None:
                continue
            x = panel.slot(levels.index(point.concurrency), len(levels))
            y = panel.height_of(found.p50)
            panel.line((x, y), (x, panel.height_of(found.p95)), colour=colour)
            dot = ET.SubElement(panel.group, "circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="3.5", fill=colour)
            ET.SubElement(dot, "title").text = f"{point.concurrency} at a time: {found.p50:.4g}"
            places.append(f"{x:.1f},{y:.1f}")
        line = {"points": " ".join(places), "fill": "none", "stroke": colour, "stroke-width": "2"}
        ET.SubElement(panel.group, "polyline", line)
