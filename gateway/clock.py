"""What time is it? Passed to whatever stores or compares times, so that tests can move it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instant_text(epoch_ms: int) -> str:
    """ISO 8601 in UTC, such as `2026-12-01T00:00:00Z`; milliseconds only where there are any."""
    moment = _EPOCH + timedelta(milliseconds=epoch_ms)
    spec = "milliseconds" if epoch_ms % 1000 else "seconds"
    return moment.isoformat(timespec=spec).replace("+00:00", "Z")


class Clock:
    """The machine's clocks, set by the database's where several processes share one."""

    def __init__(self) -> None:
        self.ahead_ms = 0
        """How far the machine's clock is ahead of the database's."""

    def now(self) -> datetime:
        """Aware UTC, for records."""
        return _EPOCH + timedelta(milliseconds=self.epoch_ms())

    def epoch_ms(self) -> int:
        """Milliseconds since 1970, for ids and stored instants."""
        return time.time_ns() // 1_000_000 - self.ahead_ms

    def machine_ms(self) -> int:
        """Milliseconds since 1970 as this machine believes."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Seconds that only grow, for durations."""
        return time.monotonic()
