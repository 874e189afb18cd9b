"""Which time does a page look at? The period picker's words, in UTC and half-open.

`period` in the address is one of CHOICES, a month such as 2026-10, or `custom` with `from` and `to`. A new
address of a page that was shared keeps its meaning: relative words stay relative, days stay days.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from gateway.errors import InvalidRequest
from gateway.ledger.cuts import moment_of, month_of, next_start, period_bounds, previous_range, previous_start

CHOICES = {
    "this-month": "This month",
    "last-month": "Last month",
    "last-7": "Last 7 days",
    "last-30": "Last 30 days",
}
CUSTOM = "custom"
MONTHS_SHOWN = 14
_DAYS = {"last-7": 7, "last-30": 30}


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time."""

    name: str
    """As it stands in the address."""
    start: datetime
    end: datetime
    """First instant that does not count."""
    title: str

    @property
    def days(self) -> float:
        """Its length."""
        return (self.end - self.start) / timedelta(days=1)

    @property
    def since(self) -> str:
        """The first day, or instant, for an address."""
        return _written(self.start)

    @property
    def until(self) -> str:
        """The first day, or instant, after it."""
        return _written(self.end)

    @property
    def text(self) -> str:
        """For people."""
        return f"{self.since} to before {self.until}, UTC"

    @property
    def before(self) -> str:
        """What it is compared with, for people."""
        start, end = previous_range(self.start, self.end)
        return f"{_written(start)} to before {_written(end)}"


def span_of(name: str, since: str, until: str, *, now: datetime) -> Span:
    """What the address asks for.

    Raises:
        InvalidRequest: an unknown word, or an instant that is unreadable.
    """
    name = name or (CUSTOM if since or until else "this-month")
    month_start, month_end = month_of(now)
    if name == CUSTOM:
        start = _instant(since, "from") if since else month_start
        end = _instant(until, "to") if until else month_end
        if end <= start:
            raise InvalidRequest("The end of the period must be after its start.", param="to")
        return Span(CUSTOM, start, end, f"{_written(start)} to before {_written(end)}")
    if name == "this-month":
        return Span(name, month_start, month_end, f"{month_start:%B %Y}")
    if name == "last-month":
        start = previous_start("month", month_start)
        return Span(name, start, month_start, f"{start:%B %Y}")
    if name in _DAYS:
        end = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        return Span(name, end - timedelta(days=_DAYS[name]), end, CHOICES[name])
    try:
        first_ms, last_ms = period_bounds("month", name)
    except InvalidRequest:
        known = ", ".join(CHOICES)
        raise InvalidRequest(
            f"A period is one of {known}, a month such as 2026-10, or from and to; not {name[:40]!r}.",
            param="period",
        ) from None
    return Span(name, moment_of(first_ms), moment_of(last_ms), f"{moment_of(first_ms):%B %Y}")


def months_before(now: datetime) -> list[tuple[str, str]]:
    """The months before the last one, for the picker: as in the address, and for people."""
    start = previous_start("month", month_of(now)[0])
    months = []
    for _ in range(MONTHS_SHOWN):
        start = previous_start("month", start)
        months.append((f"{start:%Y-%m}", f"{start:%B %Y}"))
    return months


def days_of(span: Span, now: datetime) -> list[str]:
    """Its days as reports write them, until today."""
    day = span.start.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    days = []
    while day < span.end and day <= now:
        days.append(f"{day:%Y-%m-%d}")
        day = next_start("day", day)
    return days


def _instant(text: str, name: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(
            f"`{name}` must be a date or an instant such as 2026-11-01 or 2026-11-01T00:00:00Z,"
            f" not {text[:64]!r}.",
            param=name,
        ) from None
    return moment.astimezone(UTC) if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _written(moment: datetime) -> str:
    is_day = not (moment.hour or moment.minute or moment.second or moment.microsecond)
    return f"{moment:%Y-%m-%d}" if is_day else f"{moment:%Y-%m-%dT%H:%M:%SZ}"
