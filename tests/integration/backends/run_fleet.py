"""A program that runs a fleet of stand-ins as `tollgate up` runs the real one: `run_fleet.py STATE_DIR`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

from backends.launch.process import ProcessFleet
from tests.integration.backends.conftest import TIMES, pool_named, tiny_argv


async def main(state_dir: Path) -> None:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    fleet = ProcessFleet(
        {"plain": pool_named("plain", replicas=2)},
        state_dir=state_dir,
        python=Path(sys.executable),
        on_progress=lambda _: None,
        times=TIMES,
        argv_for=tiny_argv(),
    )
    try:
        await fleet.start()
        await fleet.supervise()
    finally:
        await fleet.stop()


if __name__ == "__main__":
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(main(Path(sys.argv[1])))
