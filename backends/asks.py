"""What do gateways ask of the process driver of their machine?

Two things: to wake a replica of a pool that sleeps, and to look at a replica that they took out for hanging
or for lying. The gateway may be the driver's own process, one of its children, or started by somebody else;
what they share is the state folder, where the driver publishes its fleet and gateways leave asks: one small
file for each subject in `<state>/asks`, whose modification time is the ask. Asking twice is asking once more,
and only the driver acts, so that nothing can be woken twice at the same time.
"""

from __future__ import annotations

import logging
from pathlib import Path

FOLDER = "asks"
_TEXT_BYTES_MAX = 500

_LOG = logging.getLogger(__name__)


class Asks:
    """The folder, from either side."""

    def __init__(self, state_dir: Path) -> None:
        """Only remembers; the folder is made at the first ask.

        Args:
            state_dir: that of the driver's fleet.
        """
        self._folder = state_dir / FOLDER

    def wake(self, pool: str) -> None:
        """A request waits for a replica of this pool, or would have liked one."""
        self._write(f"{pool}.wake", "")

    def examine(self, replica: str, why: str) -> None:
        """A gateway has taken this replica out."""
        self._write(f"{replica}.examine", why)

    def woken_at(self, pool: str) -> int:
        """When a replica of the pool was asked for last, ns of the machine's clock; 0: never."""
        return self._asked_at(f"{pool}.wake")

    def examined_at(self, replica: str) -> int:
        """When it was asked to look at this replica last, likewise."""
        return self._asked_at(f"{replica}.examine")

    def why(self, replica: str) -> str:
        """What was said then."""
        try:
            return (self._folder / f"{replica}.examine").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def forget(self) -> None:
        """A new fleet owes nothing of what was asked of the last one."""
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                path.unlink(missing_ok=True)

    def _write(self, name: str, text: str) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._folder / name).write_text(text[:_TEXT_BYTES_MAX], encoding="utf-8")
        except OSError as error:  # a full disk must not fail the request that would have liked a replica
            _LOG.warning("the driver cannot be asked (%s): %s", name, error)

    def _asked_at(self, name: str) -> int:
        try:
            return (self._folder / name).stat().st_mtime_ns
        except OSError:
            return 0
