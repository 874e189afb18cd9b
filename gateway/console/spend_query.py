"""What does the address of a page about spend ask for, and what is the address of the next one?

Everything that one can choose there stands in the query string: a page can be shared, and going back works.
Exports take the same choices, in the admin API's words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from urllib.parse import urlencode

from starlette.datastructures import QueryParams

from gateway.console.navigation import HOME
from gateway.console.span import CUSTOM, Span, span_of
from gateway.errors import InvalidRequest
from gateway.ledger.cuts import PERIODS, TAG_PREFIX, is_tag, moment_of, period_bounds
from gateway.ledger.reports import NOT_SAID, UNTAGGED
from gateway.spend_asked import Asked

PATH = f"{HOME}/spend"
GROUPS_MAX = 3
TOP_DEFAULT = 50
DIMENSIONS = {
    "tenant": "Tenant",
    "project": "Project",
    "key": "Key",
    "end_user": "End user",
    "model": "Model",
    "pool": "Pool",
    "task": "Task",
    "policy": "Policy",
    "price": "Price version",
    "day": "Day",
    "week": "Week",
    "month": "Month",
}
"""What spend may be grouped by, beside tags, and what people call it."""
_RECEIPT_FILTERS = frozenset({"tenant", "model", "pool", "task"})
"""What the list of requests can be filtered by, one value each."""


@dataclass(frozen=True, slots=True)
class SpendQuery:
    """What is asked for."""

    span: Span
    by: tuple[str, ...]
    filters: tuple[str, ...] = ()
    """`dimension=value`, as people and the API write them."""
    order: str = "charge"
    top: int = TOP_DEFAULT
    is_compared: bool = False
    counts_end_users: bool = False
    path: str = PATH

    def asked(self) -> Asked:
        """For the report."""
        return Asked(
            group_by=self.by,
            start=self.span.start,
            end=self.span.end,
            filters=self.filters,
            order=self.order,
            top=self.top,
            is_compared=self.is_compared,
            counts_end_users=self.counts_end_users,
        )

    @property
    def has_order(self) -> bool:
        """Another one than rows have by themselves."""
        return self.order != _order_of(self.by)

    # -------------------------------------------------------------------------------------- addresses
    def address(self, path: str | None = None) -> str:
        """Of this view."""
        return f"{path or self.path}?{urlencode(self._pairs())}"

    def part(self) -> str:
        """Of the report alone, which follows a page that cannot wait for it."""
        return self.address(f"{PATH}/report")

    def ordered(self, order: str) -> str:
        """The same in another order."""
        return replace(self, order=order).address()

    def more(self) -> str:
        """The same with more rows."""
        return replace(self, top=self.top * 4).address()

    def without(self, text: str) -> str:
        """The same without a filter."""
        return replace(self, filters=tuple(each for each in self.filters if each != text)).address()

    def only(self, name: str, shown: str) -> str:
        """Only what has this value; of a day, week or month: only that time."""
        return self._narrowed({name: shown}).address()

    def group(self, values: Sequence[str]) -> str:
        """Only what is in one row, by what it is not grouped by yet."""
        narrowed = self._narrowed(dict(zip(self.by, values, strict=True)))
        rest = [name for name in ("tenant", "project", "model", "task") if name not in self.by]
        by = (rest[0] if rest else "pool",)
        return replace(narrowed, by=by, order=_order_of(by)).address()

    def receipts(self, values: Sequence[str] = ()) -> str | None:
        """Where the requests of a row are; None where they cannot be found by what is asked for."""
        narrowed = self._narrowed(dict(zip(self.by, values, strict=False)))
        pairs = [(name, value) for name, _, value in (each.partition("=") for each in narrowed.filters)]
        is_findable = all(name in _RECEIPT_FILTERS and value for name, value in pairs)
        if not is_findable or len({name for name, _ in pairs}) < len(pairs):
            return None
        bounds = [("from", narrowed.span.since), ("to", narrowed.span.until)]
        return f"{HOME}/traffic?{urlencode([*pairs, *bounds])}"

    def export(self, file_format: str) -> str:
        """The file of what is on the screen, by the admin API."""
        pairs = [
            ("format", file_format),
            ("group_by", ",".join(self.by)),
            ("from", self.span.start.isoformat()),
            ("to", self.span.end.isoformat()),
            *(("filter", each) for each in self.filters),
        ]
        return f"/admin/v1/exports?{urlencode(pairs)}"

    def _narrowed(self, values: Mapping[str, str]) -> SpendQuery:
        narrowed = self
        for name, shown in values.items():
            if name in PERIODS:
                first, last = (moment_of(at_ms) for at_ms in period_bounds(name, shown))
                start, end = max(first, narrowed.span.start), min(last, narrowed.span.end)
                narrowed = replace(narrowed, span=Span(CUSTOM, start, end, shown))
                continue
            value = "" if shown == (UNTAGGED if is_tag(name) else NOT_SAID) else shown
            text = f"{name}={value}"
            if text not in narrowed.filters:
                narrowed = replace(narrowed, filters=(*narrowed.filters, text))
        return narrowed

    def _pairs(self) -> list[tuple[str, str]]:
        pairs = [("period", self.span.name)]
        if self.span.name == CUSTOM:
            pairs += [("from", self.span.since), ("to", self.span.until)]
        pairs += [("by", name) for name in self.by] + [("filter", each) for each in self.filters]
        if self.has_order:
            pairs.append(("order", self.order))
        if self.top != TOP_DEFAULT:
            pairs.append(("top", str(self.top)))
        if self.is_compared:
            pairs.append(("compare", "previous"))
        if self.counts_end_users:
            pairs.append(("end_users", "1"))
        return pairs


def read_query(
    params: QueryParams, now: datetime, *, path: str = PATH, by: Sequence[str] = ("tenant",)
) -> SpendQuery:
    """What an address asks for.

    Args:
        params: its query.
        now: of the clock.
        path: of the page.
        by: what is grouped by where it does not say.

    Raises:
        InvalidRequest: something of it is unreadable.
    """
    groups = [name.strip() for text in params.getlist("by") for name in text.split(",") if name.strip()]
    if tag := params.get("tag", "").strip():
        groups.append(TAG_PREFIX + tag.removeprefix(TAG_PREFIX))
    groups = list(dict.fromkeys(groups))
    if len(groups) > GROUPS_MAX:
        raise InvalidRequest(f"Group by at most {GROUPS_MAX} things at once on this page.", param="by")
    top = params.get("top", "") or str(TOP_DEFAULT)
    if not top.isdecimal():
        raise InvalidRequest(f"`top` is a number of rows, not {top[:40]!r}.", param="top")
    chosen = tuple(groups or by)
    return SpendQuery(
        span=span_of(params.get("period", ""), params.get("from", ""), params.get("to", ""), now=now),
        by=chosen,
        filters=tuple(dict.fromkeys(each for each in params.getlist("filter") if each)),
        order=params.get("order", "") or _order_of(chosen),
        top=int(top[:6]),
        is_compared=bool(params.get("compare", "")),
        counts_end_users=bool(params.get("end_users", "")),
        path=path,
    )


def _order_of(by: Sequence[str]) -> str:
    """How rows stand where nothing is said: in the order of time, else the dearest first."""
    return "group" if by[0] in PERIODS else "charge"


def title_of(name: str) -> str:
    """What people call a dimension."""
    return f"Tag {name.removeprefix(TAG_PREFIX)}" if is_tag(name) else DIMENSIONS.get(name, name)
