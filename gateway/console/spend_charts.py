"""How is a spend report drawn: its dearest rows as bars, and its course in time?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime

from gateway.console.charts import Chart, Series
from gateway.console.span import days_of
from gateway.console.spend_query import SpendQuery, title_of
from gateway.ledger.cuts import PERIODS
from gateway.ledger.reports import Group, SpendFigures, SpendReport

SERIES_MAX = 7
"""Colours of one chart; the others are added up."""
BARS_MAX = 12
CHARS_MAX = 28
"""Of a label."""
OTHERS = "others"


def bars_chart(report: SpendReport, query: SpendQuery) -> Chart:
    """The dearest groups; a click narrows the page to one."""
    charged = [row for row in report.rows if row[1].charge_usd_nanos] or list(report.rows)
    shown = sorted(charged, key=lambda row: -row[1].charge_usd_nanos)[:BARS_MAX]
    what = " and ".join(title_of(name).lower() for name in report.group_by)
    series = [
        Series("Charge", [figures.charge_usd_nanos for _, figures in shown], tone="accent"),
        *_before(report, [group for group, _ in shown]),
    ]
    return Chart(
        id="groups",
        title=f"Charge by {what}, USD, {query.span.title}",
        description=f"Bars of the charge by {what}, the dearest first; the table below has all figures.",
        across=" · ".join(title_of(name) for name in report.group_by),
        labels=[_label(group) for group, _ in shown],
        series=series,
        unit="usd",
        is_horizontal=True,
        is_tall=len(shown) > SERIES_MAX or len(series) > 1,
        links=[query.group(group) for group, _ in shown],
    )


def _before(report: SpendReport, groups: Sequence[Group]) -> list[Series]:
    if report.before is None:
        return []
    values = [report.previous[group].charge_usd_nanos if group in report.previous else 0 for group in groups]
    return [Series("The period before", values, tone="accent-soft")]


def course_chart(report: SpendReport, query: SpendQuery, *, now: datetime) -> Chart:
    """Day by day, week by week or month by month, stacked by whatever else it is grouped by."""
    at = next(index for index, name in enumerate(report.group_by) if name in PERIODS)
    step = report.group_by[at]
    found: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    for group, figures in report.rows:
        rest = tuple(value for index, value in enumerate(group) if index != at)
        found[_label(rest) or "Charge"][group[at]] += figures.charge_usd_nanos
    times = {group[at] for group, _ in report.rows}
    labels = days_of(query.span, now) if step == "day" else sorted(times)
    labels = sorted({*labels, *times})
    present = [name for name in found if any(found[name].values())] or list(found)
    order = sorted(present, key=lambda name: (-sum(found[name].values()), name))
    series = [Series(name, [found[name].get(label, 0) for label in labels]) for name in order[:SERIES_MAX]]
    if rest_names := order[SERIES_MAX:]:
        others = [sum(found[name].get(label, 0) for name in rest_names) for label in labels]
        series.append(Series(f"{len(rest_names)} {OTHERS}", others, tone="off"))
    return Chart(
        id="course",
        title=f"Charge by {step}, USD, UTC",
        description=f"Stacked bars of the charge by {step}; figures are in the table under it.",
        across=f"{title_of(step)} (UTC)",
        labels=labels,
        series=series,
        unit="usd",
        is_stacked=True,
        links=[query.only(step, label) for label in labels],
    )


def _label(group: Group) -> str:
    text = " · ".join(group)
    return text if len(text) <= CHARS_MAX else f"{text[: CHARS_MAX - 1]}…"


def share_of(figures: SpendFigures) -> float | None:
    """What part of the input tokens the engines' caches had; None: there were none."""
    return figures.cached_input_tokens / figures.input_tokens_all if figures.input_tokens_all else None
