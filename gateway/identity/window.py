"""How much has been counted in the last minute, how much may still come, and when is there room again?

Pure integer arithmetic on the **sliding window counter**

    used = this minute's count + last minute's count * (1 - share of this minute that is over)

over the minutes of the clock. It takes the last minute's count as spread evenly. Its error against an exact
window of 60 s: a count that fell wholly into the end of the last minute is let go too early, so that up to,
but never as much as, twice the limit can pass in some 60 s; one that fell into the beginning is held too
long, by less than a minute. In no minute of the clock more than the limit passes, so that in the long run
nobody gets more. GCRA was the alternative: it has the same bound (a burst, then the rate), but between
processes it needs a compare-and-set where counts of a minute are simply added up, and it cannot say "60 of
60".
"""

from __future__ import annotations

from typing import NamedTuple

MINUTE_MS = 60_000


class Window(NamedTuple):
    """One limit per minute at one instant."""

    limit: int
    now: int
    """Counted in this minute."""
    before: int
    """Counted in the last one."""
    elapsed_ms: int
    """Of this minute, 0 to 59999."""

    def has_room(self, more: int) -> bool:
        """Whether `more` may come now."""
        weighed = self.before * (MINUTE_MS - self.elapsed_ms)
        return (self.now + more - self.limit) * MINUTE_MS + weighed <= 0

    @property
    def remaining(self) -> int:
        """The most that may still come now."""
        weighed = -(-self.before * (MINUTE_MS - self.elapsed_ms) // MINUTE_MS)
        return max(0, self.limit - self.now - weighed)

    @property
    def reset_ms(self) -> int:
        """Until nothing is counted any more, if nothing comes."""
        if self.now > 0:
            return 2 * MINUTE_MS - self.elapsed_ms
        return MINUTE_MS - self.elapsed_ms if self.before > 0 else 0

    def wait_ms(self, more: int) -> int:
        """How long until `more` (at most the limit) may come, if nothing else does; 0: now."""
        room = self.limit - more - self.now
        if room >= 0:
            return max(0, _over_ms(self.before, room) - self.elapsed_ms)
        # Not in this minute: in the next one, this one's count is the last one's.
        return MINUTE_MS - self.elapsed_ms + _over_ms(self.now, self.limit - more)


def _over_ms(before: int, room: int) -> int:
    """How much of a minute must be over until the last one's count weighs no more than `room`."""
    return 0 if before <= room else -(-MINUTE_MS * (before - room) // before)
