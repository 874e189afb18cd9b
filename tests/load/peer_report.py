"""What do the measured rounds say, and is the gate met?

Medians of the rounds with their extremes; a round in which the machine was more than a tenth faster or
slower than usual is marked and left out, unless none would remain. The gate is a ratio to nginx in the same
run, for microseconds belong to a machine. Everything is computed from the JSON lines, so that a table can
be made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from tests.load.phases import FULL_UTILISATION
from tests.load.targets import FLOOR, OURS

Record = Mapping[str, Any]
BUSY_CORES: Final = 0.3
"""More than this used by others is said at the top."""
OFF: Final = 0.10
"""Calibration further than this from the run's median marks a round."""
REQUEST_GATE: Final = 7.0
CHUNK_GATE: Final = 2.0
"""At most so many times nginx, per plain request and per chunk at 200 streams."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One column."""

    name: str
    title: str
    read: Callable[[Record], float | None]
    budget: float
    """Of Tollgate, on the machine of the first figures."""
    is_least: bool = False
    """The budget is what it has to reach, not what it may take."""
    decimals: int = 0


def _cpu(phase: str) -> Callable[[Record], float | None]:
    return lambda one: None if one[phase] is None else one[phase]["cpu_us"]


def _added(one: Record) -> float | None:
    latency, direct = one["single"]["latency_us"], one["single"]["direct_p50_us"]
    return None if latency is None or direct is None else latency["p50"] - direct


def _first_chunk(one: Record) -> float | None:
    found = one["streams32"]["first_chunk_us"]
    return None if found is None else found["p50"]


FIGURES: Final = (
    Figure("request", "CPU µs per request, 32 connections", _cpu("plain"), 100, decimals=1),
    Figure("chunk200", "CPU µs per chunk, 200 streams", _cpu("streams200"), 35, decimals=1),
    Figure("chunk32", "CPU µs per chunk, 32 streams", _cpu("streams32"), 50, decimals=1),
    Figure("paced", "CPU µs per request at 100/s", _cpu("paced"), 400),
    Figure("added", "added P50 µs, 1 connection", _added, 250),
    Figure("first", "first content chunk P50 µs, 32 streams", _first_chunk, 1000),
    Figure("most", "most requests/s, one core", lambda one: one["most"]["per_second"], 9000, is_least=True),
    Figure("memory", "MB after load", lambda one: one["memory_mb"], 160),
    Figure("start", "start s", lambda one: one["start_s"], 2, decimals=1),
)
BY_NAME: Final = {figure.name: figure for figure in FIGURES}


@dataclass(frozen=True, slots=True)
class Gate:
    """One ratio and what it may be."""

    title: str
    ratio: float
    most: float

    @property
    def is_met(self) -> bool:
        """Whether Tollgate is cheap enough."""
        return self.ratio <= self.most


# ----------------------------------------------------------------------------------------------- rounds
def measured(records: Iterable[Record]) -> list[Record]:
    """The rounds that came to their end."""
    return [one for one in records if one["kind"] == "round" and "error" not in one]


def is_off(one: Record, rounds: Sequence[Record]) -> bool:
    """Whether the machine was unusually fast or slow in this round."""
    usual: float = median(each["calibration_ms"] for each in rounds)
    return bool(abs(one["calibration_ms"] / usual - 1) > OFF)


def rounds_of(target: str, rounds: Sequence[Record]) -> list[Record]:
    """The rounds of a target that count."""
    own = [one for one in rounds if one["target"] == target]
    return [one for one in own if not is_off(one, rounds)] or own


def values(target: str, rounds: Sequence[Record], read: Callable[[Record], float | None]) -> list[float]:
    """One figure of a target, by round."""
    found = (read(one) for one in rounds_of(target, rounds))
    return [value for value in found if value is not None]


def gates(records: Iterable[Record]) -> list[Gate]:
    """Tollgate against nginx; empty if one of them was not measured."""
    rounds = measured(records)
    if not {FLOOR, OURS} <= {one["target"] for one in rounds}:
        return []

    def middle(target: str, phase: str) -> float:
        return median(values(target, rounds, _cpu(phase)))

    # The dearer one of both ways to know the task.
    ours = max(middle(OURS, "plain"), middle(OURS, "signals"))
    chunks = middle(OURS, "streams200") / middle(FLOOR, "streams200")
    return [
        Gate("CPU per request", ours / middle(FLOOR, "plain"), REQUEST_GATE),
        Gate("CPU per chunk, 200 streams", chunks, CHUNK_GATE),
    ]


def problems(records: Iterable[Record]) -> list[str]:
    """What is wrong beside the gate: failed answers, books that do not hold, a gateway that did not run."""
    found = []
    for one in records:
        if one["kind"] != "round":
            continue
        where = f"{one['title']}, round {one['round']}"
        if "error" in one:
            found.append(f"{where}: {one['error']}")
            continue
        found += [f"{where}: {text}" for text in one.get("books", {}).get("problems", ())]
        if one["failures"]:
            what = ", ".join(f"{count:,} {reason}" for reason, count in one["failures"].items())
            found.append(f"{where}: {what}; for example: {one['example'] or 'no answer at all'}")
    return found


# ----------------------------------------------------------------------------------------------- tables
def number(value: float, decimals: int) -> str:
    """A figure as people read it."""
    return f"{value:,.{decimals}f}"


def spread(found: Sequence[float], decimals: int) -> str:
    """Median, and the extremes of several rounds."""
    if not found:
        return "-"
    middle = number(median(found), decimals)
    if len(found) == 1:
        return middle
    return f"{middle} ({number(min(found), decimals)} to {number(max(found), decimals)})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _order(rounds: Sequence[Record]) -> list[str]:
    names = dict.fromkeys(one["target"] for one in rounds)
    return sorted(names, key=lambda name: median(values(name, rounds, _cpu("plain"))))


def figures_table(rounds: Sequence[Record]) -> str:
    """All figures of all targets, Tollgate's budget, and its ratios to the floor."""
    titles = {one["target"]: one["title"] for one in rounds}
    names = _order(rounds)
    rows = []
    for name in names:
        cells = [spread(values(name, rounds, figure.read), figure.decimals) for figure in FIGURES]
        used = values(name, rounds, lambda one: one["most"]["utilisation"])
        if median(used) < FULL_UTILISATION:
            cells[FIGURES.index(BY_NAME["most"])] += f" at {median(used):.2f} cores"
        title = f"**{titles[name]}**" if name == OURS else titles[name]
        rows.append([title, *cells])
    if OURS in names:
        rows.append(["*budget of Tollgate*", *map(_budget, FIGURES)])
    if {FLOOR, OURS} <= set(names):
        rows.append(["*Tollgate ÷ nginx*", *(_ratio(figure, rounds) for figure in FIGURES)])
        gate = {"request": f"≤ {REQUEST_GATE:g}", "chunk200": f"≤ {CHUNK_GATE:g}"}
        rows.append(["*gate*", *(gate.get(figure.name, "") for figure in FIGURES)])
    return table(["gateway", *(figure.title for figure in FIGURES)], rows)


def _budget(figure: Figure) -> str:
    return f"{'≥' if figure.is_least else '≤'} {figure.budget:,g}"


def _ratio(figure: Figure, rounds: Sequence[Record]) -> str:
    ours, floor = (values(name, rounds, figure.read) for name in (OURS, FLOOR))
    return f"{median(ours) / median(floor):.2f}" if ours and floor and median(floor) > 0 else "-"


_OURS_PHASES: Final = {
    "plain": "task declared by header",
    "signals": "task by signals",
    "uncached": "declared, cache not asked",
    "most": "declared, 64 connections",
    "paced": "declared, 100 requests/s",
    "streams200": "per chunk, 200 streams",
    "streams32": "per chunk, 32 streams",
}


def ours_table(rounds: Sequence[Record]) -> str:
    """Tollgate's own runs, and what its servers took on the other core."""
    own = rounds_of(OURS, rounds)
    who = dict.fromkeys(name for one in own for name in one["plain"]["apart_us"])
    rows = []
    for phase, title in _OURS_PHASES.items():
        found = [one[phase] for one in own]
        drains = [one["drain_s"] for one in found if one["drain_s"] is not None]
        rows.append(
            [
                title,
                spread([one["cpu_us"] for one in found], 1),
                spread([one["cpu_us_until_drained"] for one in found], 1),
                *(spread([one["apart_us"][name] for one in found], 0) for name in who),
                spread([one["per_second"] for one in found], 0),
                spread(drains, 2) if len(drains) == len(found) else "not in time",
                ", ".join(sorted({f"{status}" for one in found for status in one["cache"]})) or "-",
            ]
        )
    head = ["Tollgate", "CPU µs", "of it after the load", *(f"{name} µs" for name in who)]
    return table([*head, "answers/s", "spool empty after s", "cache"], rows)


def _phases(one: Record) -> list[Record]:
    return [phase for phase in one.values() if isinstance(phase, Mapping) and "foreign_cores" in phase]


def _foreign(one: Record) -> float:
    return max(float(phase["foreign_cores"]) for phase in _phases(one))


def conditions_table(rounds: Sequence[Record]) -> str:
    """What the machine did meanwhile, and what was counted."""
    rows = []
    for one in rounds:
        phases = _phases(one)
        books = one.get("books")
        counted = "none kept"
        if books is not None:
            counted = f"{books['attempts']:,} attempts, audit {'green' if books['audit_is_green'] else 'RED'}"
        rows.append(
            [
                f"{one['round']}{' *off*' if is_off(one, rounds) else ''}",
                one["title"],
                f"{one['calibration_ms']:.1f}",
                f"{_foreign(one):.2f}",
                f"{max(phase['stolen_cores'] for phase in phases):.2f}",
                f"{one['idle_cores'] * 100:.1f}",
                f"{one['answered']:,}",
                f"{sum(one['failures'].values()):,}",
                counted,
            ]
        )
    head = ["round", "gateway", "calibration ms", "most foreign cores", "stolen", "idle % of a core"]
    return table([*head, "answered rightly", "failed", "books"], rows)


def report(records: Sequence[Record]) -> str:
    """The whole Markdown page."""
    run = next(one for one in records if one["kind"] == "run")
    rounds = measured(records)
    machine = run["hardware"]
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB"
    busy = f"load average at the start {machine['load_average'][0]}"
    parts = ["# Tollgate, its peers and the floor, measured in one run\n"]
    parts.append(f"`{run['command']}`  \ncommit {run['commit']}, {run['date']}, Python {run['python']}  ")
    parts.append(f"{where}, {busy}; {run['setting']}\n")
    if rounds and (others := max(map(_foreign, rounds))) > BUSY_CORES:
        warning = "latencies and most requests/s mean little, and CPU is dearer than on a quiet machine"
        parts.append(f"**Others used up to {others:.2f} cores meanwhile: {warning}.**\n")
    if rounds:
        titles = {one["title"]: one["note"] for one in rounds}
        parts += [
            figures_table(rounds),
            "\nMedian (least to most) of the rounds. " + _legend(rounds),
            "\n".join(f"- {title}: {note}" for title, note in titles.items()),
        ]
    for gate in gates(records):
        said = "met" if gate.is_met else "MISSED"
        parts.append(f"\nGate, {gate.title}: {gate.ratio:.2f} times nginx, at most {gate.most:g}: **{said}**")
    if any(one["target"] == OURS for one in rounds):
        parts += ["\n## Tollgate, run by run\n", ours_table(rounds)]
    if rounds:
        parts += ["\n## Conditions\n", conditions_table(rounds)]
    if run["missing"]:
        lines = "\n".join(f"- {name}: not installed; `{command}`" for name, command in run["missing"].items())
        parts += ["\n## Not measured\n", lines]
    if wrong := problems(records):
        parts += ["\n## Wrong\n", "\n".join(f"- {line}" for line in wrong)]
    return "\n".join(parts) + "\n"


def _legend(rounds: Sequence[Record]) -> str:
    text = "“at n cores” by the most requests/s: the load's core or others on the machine were the limit."
    if not all(one["cpu_is_exact"] for one in rounds):
        text += " CPU is counted in ticks of 10 ms: no control group could be made."
    if any(is_off(one, rounds) for one in rounds):
        text += " Rounds marked *off* (calibration more than a tenth from the median) do not count."
    return text + "\n"
