"""A clock that stands still until a test moves it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from gateway.clock import Clock

START = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


class MovableClock(Clock):
    """Stands at `START`; all three of its faces move together."""

    def __init__(self, moment: datetime = START) -> None:
        super().__init__()
        self._moment = moment
        self._monotonic_s = 1_000.0

    def now(self) -> datetime:
        """Where it stands."""
        return self._moment

    def epoch_ms(self) -> int:
        """The same in milliseconds since 1970."""
        return (self._moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)

    def monotonic_s(self) -> float:
        """Seconds that only grow."""
        return self._monotonic_s

    def move(self, seconds: float) -> None:
        """Let time pass."""
        self._moment += timedelta(seconds=seconds)
        self._monotonic_s += seconds


class ShiftedClock(Clock):
    """Goes on as the machine's does, ahead of it or behind, and leaps when a test says so."""

    def __init__(self, shift_s: float = 0.0) -> None:
        super().__init__()
        self._shift_s = shift_s
        self._leapt_s = 0.0

    def epoch_ms(self) -> int:
        """As the database has set it."""
        return self.machine_ms() - self.ahead_ms

    def machine_ms(self) -> int:
        """Wrong by the shift."""
        return super().machine_ms() + int((self._shift_s + self._leapt_s) * 1000)

    def monotonic_s(self) -> float:
        """Seconds that only grow."""
        return super().monotonic_s() + self._leapt_s

    def leap(self, seconds: float) -> None:
        """Let time pass at once."""
        self._leapt_s += seconds
