"""What does a person see while the fleet starts, and once it serves?

On a terminal one line per replica that keeps changing; elsewhere (a log, CI) one line per change.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from backends.launch.process import ReplicaProgress
from backends.pool import ReplicaState

_STYLES = {
    ReplicaState.STARTING: "yellow",
    ReplicaState.READY: "green",
    ReplicaState.UNHEALTHY: "red",
    ReplicaState.DRAINING: "yellow",
    ReplicaState.SLEEPING: "blue",
    ReplicaState.WAKING: "yellow",
    ReplicaState.STOPPED: "dim",
}
REFRESH_PER_S = 4
LINE_EVERY_S = 10.0
"""Where no line can be changed, a replica that is still starting is mentioned this often."""


class FleetProgress:
    """Shows replicas until the gateway serves; afterwards only what changes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._replicas: dict[str, ReplicaProgress] = {}
        self._printed: dict[str, tuple[ReplicaState, float]] = {}
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._table, console=self._console, refresh_per_second=REFRESH_PER_S
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, error, trace
        self.settle()

    def settle(self) -> None:
        """No more changing lines: from here on each change is a line of its own."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def replica(self, progress: ReplicaProgress) -> None:
        """A replica's state or its log moved on."""
        self._replicas[progress.replica] = progress
        if self._live is None:
            self._print(progress)

    def _print(self, progress: ReplicaProgress) -> None:
        state, printed_s = self._printed.get(progress.replica, (None, 0.0))
        now_s = time.monotonic()
        if state is progress.state and (
            state is not ReplicaState.STARTING or now_s - printed_s < LINE_EVERY_S
        ):
            return
        self._printed[progress.replica] = (progress.state, now_s)
        self._console.out(
            f"  {progress.replica}: {progress.state.value} ({progress.elapsed_s:.0f} s)",
            _one_line(progress.detail),
            highlight=False,
        )

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for progress in self._replicas.values():
            table.add_row(
                f"  {progress.replica}",
                Text(progress.state.value, style=_STYLES[progress.state]),
                f"{progress.elapsed_s:4.0f} s",
                Text(_one_line(progress.detail), style="dim", overflow="ellipsis", no_wrap=True),
            )
        return table


def _one_line(text: str) -> str:
    return " ".join(text.split())
