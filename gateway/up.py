"""How do the bundled fleet and the gateway run together until somebody stops them?

This process starts the replicas (each under a guard that ends it if this process dies), then serves, or has
several workers serve. Stop by Ctrl-C or SIGTERM: answers under way end first, then the replicas.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from backends.files import PoolFileError, load_pools
from backends.launch.process import ProcessFleet, ReplicaProgress
from gateway.errors import ConfigurationError
from gateway.serving import OnServing, serve, stopped_by_signals
from gateway.settings import Settings
from gateway.workers import serve_by_workers

VLLM_PYTHON = Path(".venv-vllm/bin/python").absolute()
OnProgress = Callable[[ReplicaProgress], None]


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
        async with _fleet(settings, stop, on_progress) as is_up:
            if is_up:
                await _serve(settings, stop, on_serving, log_folder=settings.state_dir / "logs")


async def fleet_until_stopped(
    settings: Settings, *, on_progress: OnProgress, on_up: Callable[[], None]
) -> None:
    """Start the fleet alone, and stop it; the same errors."""
    stop = asyncio.Event()
    with stopped_by_signals(stop):
        async with _fleet(settings, stop, on_progress) as is_up:
            if is_up:
                on_up()
                await stop.wait()


@contextlib.asynccontextmanager
async def _fleet(settings: Settings, stop: asyncio.Event, on_progress: OnProgress) -> AsyncIterator[bool]:
    """The running fleet; False if a stop was asked for before it was up."""
    try:
        pools = load_pools(settings.pools)
    except PoolFileError as error:
        raise ConfigurationError(str(error)) from None
    if any(spec.driver == "process" for spec in pools.values()) and not _is_vllm_installed():
        raise ConfigurationError(
            f"vLLM is not installed ({VLLM_PYTHON} is missing): run `make run`, or `make engine` first"
        )
    fleet = ProcessFleet(pools, state_dir=settings.state_dir, python=VLLM_PYTHON, on_progress=on_progress)
    async with asyncio.TaskGroup() as group:
        starting = group.create_task(fleet.start())
        stopping = group.create_task(stop.wait())
        supervising: asyncio.Task[None] | None = None
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                supervising = group.create_task(fleet.supervise())
            yield supervising is not None
        finally:
            for task in (starting, stopping, supervising):
                if task is not None:
                    task.cancel()
            await asyncio.wait({starting})
            await fleet.stop()


def _is_vllm_installed() -> bool:
    return VLLM_PYTHON.exists()


async def _serve(
    settings: Settings, stop: asyncio.Event, on_serving: OnServing, *, log_folder: Path | None = None
) -> None:
    if settings.workers == 1:
        await serve(settings, stop, on_serving)
    else:
        await serve_by_workers(settings, stop, on_serving, log_folder=log_folder)
