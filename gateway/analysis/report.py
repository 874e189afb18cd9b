"""What does a person read of a backtest? The same tables as HTML on one page, as Markdown, or on a terminal.

`tables` says what stands where; the rest is how it is written. The HTML holds its plots and its style, asks
for nothing from elsewhere and runs no script.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.analysis.plots import draw
from gateway.analysis.view import verdict

_MEASURES: Final = {
    "charge_usd": "charge, USD",
    "cost_usd": "engine cost, USD",
    "ttft_p50_s": "TTFT P50, s",
    "ttft_p95_s": "TTFT P95, s",
    "total_p50_s": "total P50, s",
    "total_p95_s": "total P95, s",
}
_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .7em;border-bottom:1px solid #d5d8dc;"
    "text-align:right}td:first-child,th:first-child{text-align:left}svg{width:100%;height:auto}"
    ".refused{color:#9b3d5a}"
)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a title."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def headline(view: Mapping[str, Any]) -> str:
    """The answer in a sentence or two."""
    whole = view["groups"][0]
    charge, cost = whole["change"]["charge_usd"], whole["change"]["cost_usd"]
    said = [f"{view['requests']:,} requests from {view['from']} to {view['to']}."]
    if "refused" in charge:
        said.append(f"What tenants would be charged is not claimed: {charge['refused']}.")
    else:
        word = verdict(charge, less="less", more="more")
        said.append(
            f"Tenants would be charged {_signed(charge['estimate'])} USD"
            f" ({_signed(charge['low'])} to {_signed(charge['high'])}): {word}."
        )
    if "refused" in cost:
        said.append(f"What engines would cost is not claimed: {cost['refused']}.")
    else:
        word = verdict(cost, less="less", more="more")
        said.append(
            f"Engine time would cost {_signed(cost['estimate'])} USD"
            f" ({_signed(cost['low'])} to {_signed(cost['high'])}): {word}."
        )
    return " ".join(said)


def tables(view: Mapping[str, Any]) -> Iterator[Table]:
    """Everything that is shown."""
    groups = view["groups"]
    yield _measures(groups[0], "All requests")
    yield _classes([each for each in groups if each["by"] == "class"])
    for by, title in (("tenant", "Who wins and who loses: tenants"), ("task", "The same by task")):
        yield _winners([each for each in groups if each["by"] == by], by, title)
    yield _pools(view["pools"])
    yield Table(
        "The simulator on the record itself: simulated over measured, before correction",
        ("pool", "requests", "engine time", "TTFT P50", "TTFT P95", "total P50", "total P95"),
        [
            (
                each["pool"],
                f"{each['requests']:,}",
                *(
                    f"{ratio:.3f}" if (ratio := each["simulated_over_measured"].get(name)) else "?"
                    for name in ("cost_usd_nanos", "ttft_p50_s", "ttft_p95_s", "total_p50_s", "total_p95_s")
                ),
            )
            for each in view["simulator"]
        ],
    )


def _measures(group: Mapping[str, Any], title: str) -> Table:
    rows: list[tuple[str, ...]] = []
    for name, words in _MEASURES.items():
        recorded = group["recorded"].get(name)
        rows.append(
            (
                words,
                "" if recorded is None else _plain(recorded),
                *(claim_text(group[side].get(name, {})) for side in ("baseline", "candidate")),
                claim_text(group["change"][name], is_signed=True),
            )
        )
    rows += [
        (words, *(str(_count(group[side], name)) for side in ("recorded", "baseline", "candidate")), "")
        for name, words in (("cache_hits", "cache hits"), ("refusals", "refusals"))
    ]
    return Table(title, ("", "recorded", "baseline", "candidate", "change"), rows)


def _classes(groups: Sequence[Mapping[str, Any]]) -> Table:
    rows: list[tuple[str, ...]] = []
    for each in groups:
        for name, words in list(_MEASURES.items())[2:]:
            recorded = each["recorded"].get(name)
            rows.append(
                (
                    f"{each['name']}: {words}",
                    "" if recorded is None else _plain(recorded),
                    *(claim_text(each[side].get(name, {})) for side in ("baseline", "candidate")),
                    verdict(each["change"][name], less="faster", more="slower"),
                )
            )
    return Table("By latency class", ("", "recorded", "baseline", "candidate", "change"), rows)


def _count(side: Mapping[str, Any], name: str) -> int:
    found = side[name]
    return sum(found.values()) if isinstance(found, dict) else int(found)


def _winners(groups: Sequence[Mapping[str, Any]], by: str, title: str) -> Table:
    rows = [
        (
            each["name"],
            f"{each['requests']:,}",
            f"{each['candidate']['moved']:,}",
            claim_text(each["change"]["charge_usd"], is_signed=True),
            verdict(each["change"]["charge_usd"], less="pays less", more="pays more"),
            claim_text(each["change"]["total_p95_s"], is_signed=True),
            verdict(each["change"]["total_p95_s"], less="faster", more="slower"),
        )
        for each in groups
    ]
    columns = (by, "requests", "moved", "charge, USD", "", "total P95, s", " ")
    return Table(title, columns, rows)


def _pools(pools: Sequence[Mapping[str, Any]]) -> Table:
    sides = ("recorded", "baseline", "candidate")
    rows: list[tuple[str, ...]] = [
        (
            each["pool"],
            *(
                "" if (load := each[side]) is None else f"{load['busy_ratio']:.1%} ({load['requests']:,})"
                for side in sides
            ),
            *("" if (load := each[side]) is None else load["idle_usd"] for side in sides[1:]),
        )
        for each in pools
    ]
    columns = ("pool", *sides, "idle USD, baseline", "idle USD, candidate")
    return Table("Load of the pools: share of time at work (requests)", columns, rows)


def claim_text(claim: Mapping[str, Any], *, is_signed: bool = False) -> str:
    """An estimate with its interval, or that there is none."""
    if "estimate" not in claim:
        return "not claimed" if "refused" in claim else ""
    show = _signed if is_signed else _plain
    text = f"{show(claim['estimate'])} ({show(claim['low'])} to {show(claim['high'])})"
    return text + (" *" if claim.get("rests_on") == "profiled" else "")


def _plain(value: str | float) -> str:
    return f"{float(value):,.4g}" if float(value) < 1000 else f"{float(value):,.2f}"  # noqa: PLR2004 - cents


def _signed(value: str | float) -> str:
    return f"{float(value):+,.3g}"


def notes(view: Mapping[str, Any]) -> list[str]:
    """What to know beside the figures."""
    record = view["record"]
    drawn = f"{view['draws']} worlds, seed {view['seed']}"
    said = [
        f"Estimates are followed by where the truth is 95 of 100 times ({drawn}).",
        f"The baseline decides {record['decided_alike_ratio']:.1%} of the recorded decisions as they were.",
        "* rests on the pool's own bench, not on the record.",
    ]
    if record["without_features"]:
        said.append(
            f"{record['without_features']:,} receipts are older than what a replay needs: the usual is"
            " assumed of them."
        )
    refused = record["refused_before_any_attempt"]
    if refused:
        codes = ", ".join(f"{code} {number:,}" for code, number in refused.items())
        said.append(
            f"Beside these, {sum(refused.values()):,} requests were refused before any attempt: {codes}."
        )
    return said + list(view["not_claimed"]) + list(view["assumed"])


def as_markdown(view: Mapping[str, Any]) -> str:
    """For a pull request."""
    lines = [
        f"# Backtest: {view['candidate']['policy']} against {view['baseline']['policy']}",
        "",
        headline(view),
        "",
    ]
    for table in tables(view):
        lines += [f"## {table.title}", "", _line(table.columns), _line(["---"] * len(table.columns))]
        lines += [_line([cell.replace("|", "\\|") for cell in row]) for row in table.rows] + [""]
    return "\n".join([*lines, *(f"- {note}" for note in notes(view)), ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def as_html(view: Mapping[str, Any]) -> str:
    """One page that needs nothing else."""
    title = html.escape(f"Backtest: {view['candidate']['policy']} against {view['baseline']['policy']}")
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>",
        f"<p>{html.escape(headline(view))}</p>",
        draw(view),
    ]
    for table in tables(view):
        parts.append(f"<h2>{html.escape(table.title)}</h2><table><thead><tr>")
        parts += [f"<th>{html.escape(column)}</th>" for column in table.columns]
        parts.append("</tr></thead><tbody>")
        for row in table.rows:
            parts.append("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>")
        parts.append("</tbody></table>")
    parts.append("<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in notes(view)) + "</ul>")
    return "".join([*parts, "</body></html>\n"])


def _cell(cell: str) -> str:
    kind = ' class="refused"' if cell == "not claimed" else ""
    return f"<td{kind}>{html.escape(cell)}</td>"
