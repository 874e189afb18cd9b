"""How do the bundled fleet and the gateway run together until somebody stops them?

This process starts the replicas (each under a guard that ends it if this process dies), then serves, or has
several workers serve. Stop by Ctrl-C or SIGTERM: answers under way end first, then the replicas.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.fleet import OnProgress, running_fleet
from gateway.serving import OnServing, serve
from gateway.settings import Settings
from gateway.stopping import stopped_by_signals
from gateway.workers import serve_by_workers


async def serve_until_stopped(settings: Settings, *, on_serving: OnServing) -> None:
    """Serve without a fleet of our own.

    Raises:
        ConfigurationError: something is wrong with settings, files or the database; nothing is left running.
    """
    stop = asyncio.Event()
    with stopped_by_signals(stop):
        await _serve(settings, stop, on_serving)


async def up_until_stopped(settings: Settings, *, on_progress: OnProgress, on_serving: OnServing) -> None:
    """Start the fleet, serve, and stop both.

    Raises:
        ConfigurationError: as above, or vLLM is not installed.
        LaunchError: a replica did not come up; its log's end is in the message.
    """
    stop = asyncio.Event()
    with stopped_by_signals(stop):
        async with running_fleet(settings, stop, on_progress) as is_up:
            if is_up:
                await _serve(settings, stop, on_serving, log_folder=settings.state_dir / "logs")


async def _serve(
    settings: Settings, stop: asyncio.Event, on_serving: OnServing, *, log_folder: Path | None = None
) -> None:
    if settings.workers == 1:
        await serve(settings, stop, on_serving)
    else:
        await serve_by_workers(settings, stop, on_serving, log_folder=log_folder)
