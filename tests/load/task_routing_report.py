"""What do the runs of the comparison of routing rules come to: sums, ratios, a table, a picture?

A run's figures are of all its answers. A ratio is a rule's figure over round robin's under the same load in
the same repetition; shown are the median of the repetitions, and the least and the most. Times in
milliseconds, money in USD per million output tokens. Pure: the same runs give the same text.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final
from xml.etree import ElementTree as ET  # only written here, never parsed

from backends.bench.sweep import percentile
from backends.profile import GridPoint
from backends.reference.plot import Panel, scale_top
from tests.load.engine_counters import as_table
from tests.load.task_traffic import BASE, RULES, TASKS, Seen, duration_s

FIGURES: Final = {
    "output_tokens_per_s": "tokens/s",
    "ttft_p50_ms": "TTFT P50",
    "ttft_p95_ms": "TTFT P95",
    "tpot_p50_ms": "TPOT P50",
    "tpot_p95_ms": "TPOT P95",
    "total_p95_ms": "whole answer P95",
    "cost_wall_usd": "cost, wall",
    "cost_engine_usd": "cost, engine",
    "charge_usd": "charge",
}
"""Of a run, and what they are called. More is better of the first alone."""
_TITLES: Final = {rule.name: rule.title for rule in RULES}
_PLOTTED: Final = ("output_tokens_per_s", "total_p95_ms", "cost_engine_usd")
_COLOURS: Final = dict(
    zip(_TITLES, ("#a9b0b8", "#6b6b6b", "#e39a3b", "#7a5ea8", "#4fa3d1", "#0a5c8f"), strict=True)
)
_PANELS: Final = ((70, 440), (530, 900), (990, 1360))
_BASE_Y: Final = 290


def run_sums(
    answers: Sequence[Seen], worked: Mapping[str, tuple[float, float]], usd_per_hour: Mapping[str, float]
) -> dict[str, Any]:
    """What one run came to.

    Args:
        answers: all of them.
        worked: by pool, seconds that its engine ran, and that it was ready and had no core.
        usd_per_hour: by pool, of its one replica.
    """
    took_s, tokens = duration_s(answers), sum(one.output_tokens for one in answers)
    ttfts = [one.ttft_s * 1e3 for one in answers]
    tpots = [one.tpot_s * 1e3 for one in answers if one.tpot_s is not None]
    totals = [(one.last_s - one.start_s) * 1e3 for one in answers]
    per_million = 1e6 / tokens
    ran_s = {pool: ran for pool, (ran, _) in worked.items()}
    waited_s = sum(waited for _, waited in worked.values())
    return {
        "requests": len(answers),
        "output_tokens": tokens,
        "input_tokens": sum(one.input_tokens for one in answers),
        "duration_s": round(took_s, 3),
        "output_tokens_per_s": tokens / took_s,
        "ttft_p50_ms": statistics.median(ttfts),
        "ttft_p95_ms": percentile(ttfts, 0.95),
        "tpot_p50_ms": statistics.median(tpots),
        "tpot_p95_ms": percentile(tpots, 0.95),
        "total_p95_ms": percentile(totals, 0.95),
        "cost_wall_usd": sum(usd_per_hour.values()) * took_s / 3600 * per_million,
        "cost_engine_usd": sum(usd_per_hour[pool] * ran for pool, ran in ran_s.items()) / 3600 * per_million,
        "charge_usd": sum(one.charge_usd for one in answers) * per_million,
        "engine_ran_s": {pool: round(ran, 3) for pool, ran in ran_s.items()},
        "engine_waited_ratio": round(waited_s / max(1e-9, waited_s + sum(ran_s.values())), 3),
        "to_speculative": {
            task: _share([one.pool == "speculative" for one in answers if one.task == task]) for task in TASKS
        },
        "nature_found": _share([_is_found(one) for one in answers]),
    }


def _share(holds: Sequence[bool]) -> float:
    return round(sum(holds) / len(holds), 3) if holds else 0.0


_CREATIVE: Final = frozenset({"creative", "brainstorming", "chat"})


def _is_found(one: Seen) -> bool:
    """Whether the gateway took it for what it is: predictable or creative."""
    return (one.found_task in _CREATIVE) == (one.task == "creative")


def figures_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Load → rule → what its repetitions come to: ratios to round robin, and the figures themselves."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    bases = {(one["load"], one["run"]): one for one in runs if one["rule"] == BASE}
    for load in dict.fromkeys(one["load"] for one in runs):
        found[load] = {}
        for rule in _TITLES:
            mine = [one for one in runs if one["load"] == load and one["rule"] == rule]
            if not mine:
                continue
            found[load][rule] = {
                name: {
                    "median": round(statistics.median(one[name] for one in mine), 5),
                    "ratio": _spread([one[name] / bases[load, one["run"]][name] for one in mine]),
                }
                for name in FIGURES
            } | {
                "to_speculative": {
                    task: round(statistics.mean(one["to_speculative"][task] for one in mine), 2)
                    for task in TASKS
                },
                "engine_waited_ratio": round(
                    statistics.median(one["engine_waited_ratio"] for one in mine), 3
                ),
                "nature_found": round(statistics.mean(one["nature_found"] for one in mine), 3),
            }
    return found


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def crossover(speculative: Sequence[GridPoint], plain: Sequence[GridPoint], task: str) -> dict[str, Any]:
    """Where a profile's throughput with speculation falls below the one without, whole answers.

    Between two measured loads it is where the line of the ratio's logarithm over the load's crosses 0.
    """
    measured: dict[int, list[float]] = {}
    for grid in (speculative, plain):
        for point in grid:
            if point.task == task and not point.is_output_fixed:
                measured.setdefault(point.concurrency, []).append(point.output_tokens_per_s)
    ratios = {load: round(pair[0] / pair[1], 3) for load, pair in sorted(measured.items()) if len(pair) == 2}
    at: float | None = None
    ordered = list(ratios.items())
    for (load, ratio), (next_load, next_ratio) in pairwise(ordered):
        if ratio >= 1 > next_ratio:
            part = math.log(ratio) / math.log(ratio / next_ratio)
            at = round(load * (next_load / load) ** part, 1)
    return {
        "speculative_over_plain": ratios,
        "crosses_at": at,
        "pays_at_first": bool(ordered) and ordered[0][1] >= 1,
    }


# ------------------------------------------------------------------------------------------------- as text
def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    figures = result["figures"]
    lines = [
        "# Routing by task and by measured speculation, on real vLLM",
        "",
        _measured_where(result),
        "The bundled fleet, records to JSON at temperature 0 and stories at temperature 1, half and half, no",
        "task declared, everything through a gateway. Ratios to round robin in the same repetition: median",
        "(least-most). Cost per million output tokens: *wall* takes both pools' hours while the load lasted,",
        "*engine* what the engines' processors worked, at the pools' prices; *charge* is what tenants pay by",
        "the pools' rates. In an open loop the load's duration is given, so wall says little there.",
    ]
    for load, rules in figures["summary"].items():
        lines += [
            "",
            f"## {load}",
            "",
            f"| | {' | '.join(FIGURES.values())} | JSON, stories to speculative |",
        ]
        lines.append(f"|---|{'---:|' * (len(FIGURES) + 1)}")
        for rule, found in rules.items():
            lines.append(f"| {_TITLES[rule]} | {' | '.join(_cells(rule, found))} |")
    lines += ["", *_gates(figures["gates"]), "", *_predictions(figures["predicted_over_actual"])]
    lines += [
        "",
        "## Tokens in the ledger and at the engines",
        "",
        "All of these runs, warm-up included.",
        "",
    ]
    return "\n".join(lines) + "\n" + as_table(figures["tokens"])


def _measured_where(result: Mapping[str, Any]) -> str:
    hardware = result["hardware"]
    return (
        f"{result['date'][:10]}, commit {result['commit']}, {hardware['cpu']}, {hardware['cores']} cores,"
        f" load average {hardware['load_average'][0]}: `{result['command']}`."
    )


def _cells(rule: str, found: Mapping[str, Any]) -> list[str]:
    if rule == BASE:
        cells = [f"{found[name]['median']:.{_digits(name)}f}" for name in FIGURES]
    else:
        cells = [
            f"{one['median']:.2f} ({one['min']:.2f}-{one['max']:.2f})"
            for one in (found[name]["ratio"] for name in FIGURES)
        ]
    to = found["to_speculative"]
    return [*cells, " / ".join(f"{to[task]:.0%}" for task in TASKS)]


def _digits(name: str) -> int:
    return 3 if name.endswith("usd") else 1 if name.startswith("tpot") else 0


def _gates(gates: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Up to how many requests per replica speculation pays",
        "",
        "By the profiles' step model (95 of 100 by acceptance), by the throughput that their grids measured,",
        "and as the gateway had it at the end of these runs. ∞: as many as a replica takes; 0: never.",
        "",
        "| task | model: least, middle, most | grid crosses at | grid, ratio by load | learned by the end |",
        "|---|---|---:|---|---|",
    ]
    learned = {row["task"]: row for row in gates["learned"] if row["pool"] == "speculative"}
    for task, found in gates["profile"].items():
        grid = found["grid"]
        ratios = ", ".join(f"{load}: {ratio:.2f}" for load, ratio in grid["speculative_over_plain"].items())
        at = grid["crosses_at"]
        crosses = f"{at}" if at is not None else ("∞" if grid["pays_at_first"] else "0")
        own = learned.get(task, {}).get("gates") or []
        by_end = "; ".join(
            f"{_count(one['requests'])} ({_count(one['requests_least'])}-{_count(one['requests_most'])})"
            for one in own
        )
        model = ", ".join(_count(found["model"][name]) for name in ("least", "middle", "most"))
        lines.append(f"| {task} | {model} | {crosses} | {ratios} | {by_end or '-'} |")
    return lines


def _count(value: float | None) -> str:
    return "∞" if value is None else f"{value:.1f}"


def _predictions(errors: Mapping[str, Any]) -> list[str]:
    words = {"first_token_ms": "first token", "token_ms": "token", "total_ms": "whole answer"}
    told = [
        f"{words[name]} {errors[name]['median']:.2f} ({errors[name]['p10']:.2f}-{errors[name]['p90']:.2f})"
        for name in words
        if name in errors
    ]
    shown = ", ".join(told) or "none"
    return [
        "## Predicted over actual",
        "",
        f"{errors['requests']} receipts with economics, median (10 to 90 of 100): {shown}.",
    ]


# ------------------------------------------------------------------------------------------------ as picture
def draw(result: Mapping[str, Any]) -> str:
    """The SVG as text: ratios to round robin by load, a bar for each rule."""
    summary = result["figures"]["summary"]
    height = _BASE_Y + 90
    frame = {"viewBox": f"0 0 1390 {height}", "width": "1390", "height": str(height), "role": "img"}
    text = {"font-family": "system-ui, sans-serif", "font-size": "13", "fill": "#222222"}
    root = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **frame, **text})
    ET.SubElement(root, "title").text = "Routing rules on real vLLM, as ratios to round robin"
    ET.SubElement(root, "rect", width="1390", height=str(height), fill="#ffffff")
    heading = {"x": "30", "y": "24", "font-size": "15", "font-weight": "600"}
    ET.SubElement(
        root, "text", heading
    ).text = "Ratios to round robin, median and extremes of the repetitions"
    for between, name in zip(_PANELS, _PLOTTED, strict=True):
        _panel(root, between, name, summary)
    for index, (name, title) in enumerate(_TITLES.items()):
        x, y = 30 + (index % 3) * 430, _BASE_Y + 52 + (index // 3) * 22
        box = {"x": str(x), "y": str(y), "width": "12", "height": "12", "fill": _COLOURS[name]}
        ET.SubElement(root, "rect", box)
        ET.SubElement(root, "text", {"x": str(x + 18), "y": str(y + 11)}).text = title
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _panel(root: ET.Element, between: tuple[int, int], name: str, summary: Mapping[str, Any]) -> None:
    ratios = [found[name]["ratio"]["max"] for rules in summary.values() for found in rules.values()]
    better = "more" if name == "output_tokens_per_s" else "less"
    panel = Panel(
        root, between, title=f"{FIGURES[name]} ({better} is better)", top=scale_top(max(ratios, default=1.0))
    )
    for place, (load, rules) in enumerate(summary.items()):
        middle = panel.slot(place, len(summary))
        panel.text(load.replace(" at a time", "").replace(" a second", "/s"), middle, _BASE_Y + 20)
        width = 0.8 * (between[1] - between[0]) / len(summary) / len(_TITLES)
        for index, rule in enumerate(_TITLES):
            if rule not in rules:
                continue
            ratio = rules[rule][name]["ratio"]
            x = middle + (index - (len(_TITLES) - 1) / 2) * width
            says = f"{_TITLES[rule]}: {ratio['median']:.2f}"
            panel.bar(x, ratio["median"], width=width * 0.9, colour=_COLOURS[rule], says=says)
            ends = (panel.height_of(ratio["min"]), panel.height_of(ratio["max"]))
            panel.line((x, ends[0]), (x, ends[1]), colour="#222222")
