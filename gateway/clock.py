"""What time is it? Passed to whatever stores or compares times, so that tests can move it."""

from __future__ import annotations

import time
from datetime import UTC, datetime


class Clock:
    """The machine's clocks."""

    def now(self) -> datetime:
        """Aware UTC, for records."""
        return datetime.now(UTC)  # noqa: TID251 - this is the clock

    def epoch_ms(self) -> int:
        """Milliseconds since 1970, for ids and stored instants."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Seconds that only grow, for durations."""
        return time.monotonic()
