"""How do the bundled fleet and the gateway run together until somebody stops them?

One process: it starts the replicas (each under a guard that ends it if this process dies), then serves. Stop
by Ctrl-C or SIGTERM: answers under way end first, then the replicas.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from backends.files import PoolFileError, load_pools
from backends.launch.process import ProcessFleet, ReplicaProgress
from gateway.app import create_app
from gateway.db import create_engine
from gateway.dependencies import Runtime
from gateway.errors import ConfigurationError
from gateway.migrate import require_current
from gateway.server import Server, make_server
from gateway.settings import Settings

VLLM_PYTHON = Path(".venv-vllm/bin/python").absolute()
BIND_TIMEOUT_S = 30.0
REPLICAS_TIMEOUT_S = 5.0
"""How long to wait for the first look at the replicas before saying that the gateway serves."""

OnProgress = Callable[[ReplicaProgress], None]
OnServing = Callable[[str], None]
"""Is told the gateway's base URL once it answers."""


async def serve_until_stopped(settings: Settings, *, on_serving: OnServing) -> None:
    """Serve without a fleet of our own.

    Raises:
        ConfigurationError: something is wrong with settings, files or the database; nothing is left running.
    """
    stop = asyncio.Event()
    with _signals(stop):
        await _serve(settings, stop, on_serving)


async def up_until_stopped(settings: Settings, *, on_progress: OnProgress, on_serving: OnServing) -> None:
    """Start the fleet, serve, and stop both.

    Raises:
        ConfigurationError: as above, or vLLM is not installed.
        LaunchError: a replica did not come up; its log's end is in the message.
    """
    stop = asyncio.Event()
    with _signals(stop):
        async with _fleet(settings, stop, on_progress) as is_up:
            if is_up:
                await _serve(settings, stop, on_serving)


async def fleet_until_stopped(
    settings: Settings, *, on_progress: OnProgress, on_up: Callable[[], None]
) -> None:
    """Start the fleet alone, and stop it; the same errors."""
    stop = asyncio.Event()
    with _signals(stop):
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


async def _serve(settings: Settings, stop: asyncio.Event, on_serving: OnServing) -> None:
    app = create_app(settings)
    # The app looks too, but what fails inside its lifespan is told as a server's traceback.
    await _require_database(settings)
    server = make_server(app, settings)
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(_run(server, settings))
        stopping = group.create_task(stop.wait())
        announcing = group.create_task(_announce(server, settings, app.state.runtime, on_serving=on_serving))
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        announcing.cancel()
        stopping.cancel()


async def _require_database(settings: Settings) -> None:
    engine = create_engine(settings.effective_database_url)
    try:
        await require_current(engine)
    finally:
        await engine.dispose()


async def _run(server: Server, settings: Settings) -> None:
    try:
        await server.serve()
    except SystemExit:
        # uvicorn's way to say that it could not bind or that the lifespan failed; both are in the log.
        raise ConfigurationError(
            f"the gateway could not start on {settings.host}:{settings.port}: see the lines above"
            " (is another program using the port? TOLLGATE_PORT chooses another)"
        ) from None


async def _announce(server: Server, settings: Settings, runtime: Runtime, *, on_serving: OnServing) -> None:
    """Say that it serves once a request would be answered, or once it has waited for that long enough."""
    async with asyncio.timeout(BIND_TIMEOUT_S):
        while not server.started:  # noqa: ASYNC110 - uvicorn has a flag, not an event
            await asyncio.sleep(0.02)
    with contextlib.suppress(TimeoutError):  # pools that are down are no reason to keep silent
        async with asyncio.timeout(REPLICAS_TIMEOUT_S):
            while not _is_every_pool_ready(runtime):  # noqa: ASYNC110 - the registry has no events
                await asyncio.sleep(0.05)
    on_serving(f"http://{settings.host}:{server.port}")


def _is_every_pool_ready(runtime: Runtime) -> bool:
    services = runtime.services
    return services is not None and all(pool.ready_count for pool in services.registry.snapshots())


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
