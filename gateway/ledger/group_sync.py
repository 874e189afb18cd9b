"""How do the spool's records survive a power loss? One fsync for all that was written within an interval.

A thread of its own, which sleeps between two of them and wakes nobody: an fsync that is handed to a pool of
threads wakes the event loop when it is over. While nothing is written it waits, and costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading

from gateway.ledger.spool import Spool

_log = logging.getLogger(__name__)


class GroupSync:
    """Syncs one spool."""

    def __init__(self, spool: Spool, *, interval_s: float) -> None:
        """Not running yet.

        Args:
            spool: what is synced.
            interval_s: how long a record may wait for it.
        """
        self._spool = spool
        self._interval_s = interval_s
        self._written = threading.Event()
        """Something was, since the last look."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="group fsync", daemon=True)
        spool.on_dirty = self._written.set

    def start(self) -> None:
        """Begin."""
        self._written.set()  # for what was written before
        self._thread.start()

    async def stop(self) -> None:
        """End; what is under way is waited for."""
        self._stopping.set()
        self._written.set()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._written.clear()
            try:
                descriptor = self._spool.file_to_sync()
                if descriptor is None:
                    self._written.wait()
                else:
                    fsync_and_close(descriptor)
            except OSError as error:  # no descriptor left, a full disk: no reason to stop serving
                _log.warning("the spool could not be synced (will try again): %s", error)
                self._spool.sync_failed()
            self._stopping.wait(self._interval_s)


def fsync_and_close(descriptor: int | None) -> None:
    """Put a file on the disk, by a descriptor that is not needed after that; None: there is nothing to do."""
    if descriptor is None:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
