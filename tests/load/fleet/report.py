"""What does a person read of the simulated fleets? Markdown, and one SVG drawn by hand. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final
from xml.etree import ElementTree as ET  # only written here, never parsed

from tests.load.fleet.sustain import BLIND, CONVERTED, ORACLE, STATIC, TARGETS, TOLLGATE

WIDTH: Final = 1_000
_ROW, _BAR, _LABELS, _TOP = 84, 14, 330, 70
_INK, _FAINT = "#222222", "#d5d8dc"
_COLOURS: Final = {STATIC: "#c9b37e", TOLLGATE: "#0a5c8f", ORACLE: "#7aa37a", "best converted": "#a9b0b8"}


def _usd(value: float | None) -> str:
    return "not kept" if value is None else f"{value:.3f}"


def _percent(value: list[float | None], *, less_one: bool = True) -> str:
    middle, low, high = ((None if each is None else (each - 1 if less_one else each)) for each in value)
    if middle is None:
        return "none"
    shown = f"{middle:+.0%}" if less_one else f"{middle:.0%}"
    if low is None or high is None:
        return shown
    between = f"{low:+.0%} to {high:+.0%}" if less_one else f"{low:.0%} to {high:.0%}"
    return f"{shown} ({between})"


_INTRODUCTION: Final = (
    "{seeds} seeds, {requests} requests in each run. Nothing here was measured on a GPU: engines are"
    " `backends/simulator` with published figures, Tollgate is its own code. How it is done, and where every"
    " figure comes from, stands in the modules of `tests/load/fleet`."
)


def markdown(figures: dict[str, Any], *, picture_name: str) -> str:
    """The whole report."""
    lines = [
        "# Fleets of GPUs, simulated",
        "",
        _INTRODUCTION.format(seeds=len(figures["seeds"]), requests=figures["requests"]),
        "",
        f"![Cost against the best task-blind rule]({picture_name})",
    ]
    for target in TARGETS:
        lines += ["", f"## {target.load.capitalize()} load", "", _target_text(target), ""]
        lines += _cost_table(figures["cells"], target.load)
        lines += ["", *_gain_table(figures["cells"], target.load)]
    lines += ["", "## The same load for all rules", ""]
    lines += _load_table(figures["cells"])
    lines += ["", "### Where engines are nearly full", "", _FULL_TEXT]
    lines += ["", "## What arithmetic allows", "", _BOUND_TEXT, "", *_bound_table(figures["cells"]), ""]
    return "\n".join(lines)


def _target_text(target: Any) -> str:
    return (
        f"USD per million output tokens at the greatest load with the first token within {target.ttft_s:g} s"
        f" and further ones within {target.idle_steps:g} steps of an idle plain replica, 95 of 100 times."
    )


def _cost_table(cells: Sequence[dict[str, Any]], load: str) -> list[str]:
    rules = (*BLIND, STATIC, TOLLGATE, ORACLE, *CONVERTED)
    lines = [f"| fleet; traffic | {' | '.join(rules)} |", "|---|" + "---:|" * len(rules)]
    for cell in cells:
        found = cell["at_targets"][load]["usd_per_million_tokens"]
        shown = [_usd(found[rule]) if rule in found else "" for rule in rules]
        lines.append(f"| {cell['fleet']}; {cell['traffic']} | {' | '.join(shown)} |")
    return lines


_GAINS: Final = (
    "| fleet; traffic | best task-blind | static order | Tollgate | oracle | gap closed | Tollgate"
    " against the best converted fleet |"
)


def _gain_table(cells: Sequence[dict[str, Any]], load: str) -> list[str]:
    lines = [_GAINS, "|---|---|---:|---:|---:|---:|---:|"]
    for cell in cells:
        found = cell["at_targets"][load]
        nothing = [None, None, None]
        shown = [
            _percent(found.get(f"{rule} / best task-blind", nothing)) for rule in (STATIC, TOLLGATE, ORACLE)
        ]
        shown.append(_percent(found.get("gap closed", nothing), less_one=False))
        shown.append(_percent(found.get(f"{TOLLGATE} / best converted", nothing)))
        lines.append(f"| {cell['fleet']}; {cell['traffic']} | {found['best_blind']} | {' | '.join(shown)} |")
    return lines


def _load_table(cells: Sequence[dict[str, Any]]) -> list[str]:
    rules = ("round robin", "least loaded", STATIC, TOLLGATE, ORACLE)
    lines = [
        "P95 of first token / per token in ms; in brackets USD per million tokens, of stepping engines only.",
        "",
        f"| fleet; traffic | load | {' | '.join(rules)} |",
        "|---|---|" + "---:|" * len(rules),
    ]
    for cell in cells:
        for load, by_rule in cell["at_loads"].items():
            shown = [
                f"{found['ttft_p95_s'] * 1000:.0f} / {found['tpot_p95_s'] * 1000:.1f}"
                f" ({found['busy_usd_per_million']:.2f})"
                for found in (by_rule[rule] for rule in rules)
            ]
            lines.append(f"| {cell['fleet']}; {cell['traffic']} | {load} | {' | '.join(shown)} |")
    return lines


_FULL_TEXT: Final = (
    "At the high target a balancer that counts requests comes near Tollgate, and on a fleet where no task"
    " gains by speculation (EAGLE-3 in 16 bit beside 4-bit plain replicas) it may carry as much or a"
    " little more. All that there is to know there is that one pool is better for everything, and a pool"
    " that answers sooner has fewer requests in any case. A call goes where it takes least of everybody's"
    " time. That brings long prompts to the pool with fewer requests, where fewer wait until they are read"
    " (`prompt_tokens_by_pool` in the figures). The sum is less, but these few are slow, and the 95th"
    " percentile is made of them: the oracle, too, keeps such a target better when it counts nobody but"
    " the request itself (altruism 0) than with the others at 0.3."
)

_BOUND_TEXT: Final = (
    "Engine time by published acceptance, at equal batches, if a fleet had as many cards of either pool as it"
    " wanted: what sending each task to the pool where it is cheaper saves against the better pool for"
    " everything. No rule that only chooses pools can save more than that against a fleet converted to the"
    " right pool; what it saves against a balancer over two pools of which one is worse is a different thing."
)


_BOUNDS: Final = (
    "| fleet; traffic | batch | speculative over plain | prompts' share | better for everything | tasks that"
    " speculation pays for | routing by task saves |"
)


def _bound_table(cells: Sequence[dict[str, Any]]) -> list[str]:
    lines = [_BOUNDS, "|---|---:|---:|---:|---|---:|---:|"]
    for cell in cells:
        lines += [
            f"| {cell['fleet']}; {cell['traffic']} | {one['batch']} | {one['speculative_over_plain']:.2f} |"
            f" {one['prompts_ratio']:.0%} | {one['better_alone']} | {len(one['gains_by_speculation'])} of 12"
            f" | {one['routed_saves']:.1%} |"
            for one in cell["bound"]
        ]
    return lines


# ------------------------------------------------------------------------------------------------ the picture
def picture(cells: Sequence[dict[str, Any]]) -> str:
    """Costs at the moderate target over the best task-blind rule's; the same figures give the same bytes."""
    height = _TOP + _ROW * len(cells) + 40
    frame = {"viewBox": f"0 0 {WIDTH} {height}", "width": str(WIDTH), "height": str(height), "role": "img"}
    root = ET.Element(
        "svg", {"xmlns": "http://www.w3.org/2000/svg", **frame}, **{"font-family": "sans-serif"}
    )
    ET.SubElement(root, "title").text = "Cost per token against the best task-blind rule, simulated"
    ET.SubElement(root, "rect", {"width": str(WIDTH), "height": str(height), "fill": "white"})
    _text(root, "Cost of a token at the moderate target; 100 % is the best task-blind rule", (16, 24))
    _text(root, "simulated; less is better; whiskers: 95 % over seeds", (16, 44))
    scale = (WIDTH - _LABELS - 70) / 1.5
    for share in (0.0, 0.5, 1.0, 1.5):
        x = _LABELS + scale * share
        ends = {"x1": f"{x:g}", "x2": f"{x:g}", "y1": f"{_TOP - 8}", "y2": f"{height - 36}"}
        ET.SubElement(root, "line", ends, stroke=_INK if share == 1 else _FAINT)
        _text(root, f"{share:.0%}", (x, height - 18), anchor="middle")
    for place, cell in enumerate(cells):
        _bars(root, cell, top=_TOP + _ROW * place, scale=scale)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _bars(root: ET.Element, cell: dict[str, Any], *, top: int, scale: float) -> None:
    _text(root, cell["fleet"], (_LABELS - 100, top + 20), anchor="end")
    _text(
        root, f"{cell['traffic']}, {cell['usd_per_hour']:.2f} USD/h", (_LABELS - 100, top + 38), anchor="end"
    )
    found = cell["at_targets"]["moderate"]
    ratios = {rule: found.get(f"{rule} / best task-blind") for rule in (STATIC, TOLLGATE, ORACLE)}
    ours, against = ratios[TOLLGATE], found.get(f"{TOLLGATE} / best converted")
    if ours and against and ours[0] and against[0]:
        ratios["best converted"] = [ours[0] / against[0], None, None]
    for row, (rule, ratio) in enumerate(ratios.items()):
        y = top + (_BAR + 3) * row
        _text(root, rule, (_LABELS - 6, y + 11), anchor="end", size=10)
        if ratio is None or ratio[0] is None or not math.isfinite(ratio[0]):
            _text(root, "not kept", (_LABELS + 6, y + 11), size=10)
            continue
        width = scale * min(1.5, ratio[0])
        box = {"x": f"{_LABELS}", "y": f"{y}", "width": f"{width:.1f}", "height": f"{_BAR}"}
        ET.SubElement(root, "rect", box, fill=_COLOURS[rule])
        if ratio[1] is not None and ratio[2] is not None:
            ends = {f"x{n}": f"{_LABELS + scale * min(1.5, ratio[n]):.1f}" for n in (1, 2)}
            middle = f"{y + _BAR / 2:g}"
            ET.SubElement(root, "line", {**ends, "y1": middle, "y2": middle}, stroke=_INK)
        _text(root, f"{ratio[0]:.0%}", (_LABELS + width + 8, y + 11), size=10)


def _text(
    root: ET.Element, words: str, at: tuple[float, float], *, anchor: str = "start", size: int = 12
) -> None:
    place = {"x": f"{at[0]:g}", "y": f"{at[1]:g}", "text-anchor": anchor, "font-size": str(size)}
    ET.SubElement(root, "text", place, fill=_INK).text = words
