"""How does this machine's fleet run until somebody stops it?

This process starts the replicas, each under a guard that ends it if this process dies.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from backends.files import PoolFileError, load_pools
from backends.launch.process import LaunchTimes, ProcessFleet, ReplicaProgress
from gateway.errors import ConfigurationError
from gateway.settings import Settings
from gateway.stopping import stopped_by_signals

VLLM_PYTHON = Path(".venv-vllm/bin/python").absolute()
_LOOKS_TO_NOTICE = 2.5
"""After so many intervals every gateway has read that a replica takes no more."""
OnProgress = Callable[[ReplicaProgress], None]


async def fleet_until_stopped(
    settings: Settings, *, on_progress: OnProgress, on_up: Callable[[], None]
) -> None:
    """Start the fleet alone, and stop it; the same errors."""
    stop = asyncio.Event()
    with stopped_by_signals(stop):
        async with running_fleet(settings, stop, on_progress) as is_up:
            if is_up:
                on_up()
                await stop.wait()


@contextlib.asynccontextmanager
async def running_fleet(
    settings: Settings, stop: asyncio.Event, on_progress: OnProgress
) -> AsyncIterator[bool]:
    """The running fleet; False if a stop was asked for before it was up."""
    try:
        pools = load_pools(settings.pools)
    except PoolFileError as error:
        raise ConfigurationError(str(error)) from None
    if any(spec.driver == "process" for spec in pools.values()) and not _is_vllm_installed():
        raise ConfigurationError(
            f"vLLM is not installed ({VLLM_PYTHON} is missing): run `make run`, or `make engine` first"
        )
    fleet = ProcessFleet(
        pools,
        state_dir=settings.state_dir,
        python=VLLM_PYTHON,
        on_progress=on_progress,
        times=LaunchTimes(
            health=settings.health.rule,
            drain_s=settings.timeouts.drain_s,
            notice_s=_LOOKS_TO_NOTICE * settings.health.poll_interval_s,
        ),
    )
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
