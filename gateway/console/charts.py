"""What does a chart show, and what does it say to whoever cannot see it?

A chart is data: labels and series with a unit. The browser draws it (Chart.js, through `static/console.js`);
the page holds the same figures as a table, written exactly. Money is nano-USD here and becomes a float only
for the drawing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gateway.console.display import count, percent, usd_short
from gateway.money import NANOS_PER_USD

Unit = Literal["usd", "count", "ms", "s", "ratio", "tokens/s"]
Number = int | float


@dataclass(frozen=True, slots=True)
class Series:
    """One row of values, one for each label; None where nothing is known."""

    label: str
    values: Sequence[Number | None]
    """In the chart's unit; nano-USD where that is `usd`."""
    kind: Literal["bar", "line", "band"] = "bar"
    """A band fills from this line down to the series before it."""
    is_dashed: bool = False
    tone: Literal["", "accent", "accent-soft", "good", "wait", "bad", "off"] = ""
    """A colour with a meaning; empty: the next of the palette."""


@dataclass(frozen=True, slots=True)
class Chart:
    """What `parts.html`'s macro `chart` takes."""

    id: str
    title: str
    """Says unit and time zone, too."""
    description: str
    """A sentence with what one would see in it."""
    across: str
    """What the labels are: `Day (UTC)`."""
    labels: Sequence[str]
    series: Sequence[Series]
    unit: Unit
    is_stacked: bool = False
    is_horizontal: bool = False
    is_logarithmic: bool = False
    is_tall: bool = False
    links: Sequence[str] | None = None
    """Where a click on a label's bar leads."""

    def for_script(self) -> dict[str, Any]:
        """For `console.js`."""
        return {
            "labels": list(self.labels),
            "unit": self.unit,
            "across": self.across,
            "stacked": self.is_stacked,
            "horizontal": self.is_horizontal,
            "logarithmic": self.is_logarithmic,
            "links": None if self.links is None else list(self.links),
            "series": [
                {
                    "label": one.label,
                    "kind": one.kind,
                    "dashed": one.is_dashed,
                    "tone": one.tone,
                    "values": [self._drawn(value) for value in one.values],
                }
                for one in self.series
            ],
        }

    def rows(self) -> list[tuple[str, list[str]]]:
        """The table: each label with its values as text."""
        write = _WRITERS.get(self.unit, _plain)
        return [
            (label, ["–" if value is None else write(value) for value in values])  # noqa: RUF001 - the dash that stands for unknown on all pages
            for label, *values in zip(self.labels, *(one.values for one in self.series), strict=True)
        ]

    def _drawn(self, value: Number | None) -> Number | None:
        return value / NANOS_PER_USD if self.unit == "usd" and value is not None else value


def _plain(value: Number) -> str:
    return count(value) if isinstance(value, int) else f"{value:,.1f}"


_WRITERS: dict[str, Callable[[Any], str]] = {"usd": lambda nanos: usd_short(round(nanos)), "ratio": percent}
