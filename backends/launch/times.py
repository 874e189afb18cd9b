"""How long does the process driver wait for what? Seconds; tests shorten them."""

from __future__ import annotations

from dataclasses import dataclass, field

from backends.liveness import HealthRule


@dataclass(frozen=True, slots=True)
class LaunchTimes:
    """All waits of the driver, in seconds."""

    start_up_budget_s: float = 600.0
    """For one replica; large models load for minutes."""
    stop_grace_s: float = 10.0
    """From SIGTERM to SIGKILL."""
    poll_interval_s: float = 1.0
    """Between two looks at a replica that starts."""
    look_interval_s: float = 5.0
    """Between two looks at one that serves; that its process has ended is known at once."""
    unresponsive_after_s: float = 60.0
    """A replica whose /health has not answered for so long is started again."""
    health: HealthRule = field(default_factory=HealthRule)
    """When an engine that answers /health is taken for hung."""
    backoff_first_s: float = 1.0
    backoff_max_s: float = 60.0
    settled_after_s: float = 60.0
    """After so long in service, a crash is a new story and the back-off begins anew."""
    crash_loop_after: int = 6
    """So many failures in a row are a crash loop."""
    crash_loop_pause_s: float = 600.0
    """Between two starts in a crash loop: what fails every time is not repaired by trying."""
    notice_s: float = 2.5
    """Until every gateway has read that a replica takes no more: they look every second."""
    drain_s: float = 30.0
    """For answers under way on a replica that is to be stopped."""
    still_s: float = 5.0
    """Answers under way on a replica that has not moved for so long are not waited for."""
    wish_interval_s: float = 0.2
    """Between two looks for a wish to wake what sleeps."""


def backoff_s(failures: int, times: LaunchTimes) -> float:
    """How long to wait before the next start, after `failures` crashes in a row before this one."""
    if failures + 1 >= times.crash_loop_after:
        return times.crash_loop_pause_s
    return min(times.backoff_max_s, times.backoff_first_s * 2.0 ** min(failures, 30))
