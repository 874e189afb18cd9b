"""How does one process serve until it is told to stop?"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass

from backends.files import PoolFileError, load_pools
from gateway.app import create_app
from gateway.db import create_engine, session_factory
from gateway.dependencies import Runtime, build_routes
from gateway.errors import ConfigurationError
from gateway.policy_life import require_usable, supply_of
from gateway.schema import require_current
from gateway.server import Server, make_server
from gateway.settings import Settings

BIND_TIMEOUT_S = 180.0
"""Only for what hangs: a machine that is busy with other things takes its time."""
REPLICAS_TIMEOUT_S = 5.0
"""How long to wait for the first look at the replicas before saying that the gateway serves."""

OnServing = Callable[[str], None]
"""Is told the gateway's base URL once it answers."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One of several processes that serve the same port."""

    index: int
    listener: socket.socket


async def serve(
    settings: Settings, stop: asyncio.Event, on_serving: OnServing, *, worker: Worker | None = None
) -> None:
    """Serve until `stop` is set.

    Args:
        settings: everything that can be set.
        stop: answers under way end first.
        on_serving: is told the base URL.
        worker: which of several processes this is; None: the only one.

    Raises:
        ConfigurationError: a file or a setting is wrong, the database is not ready, or the address is taken.
    """
    app = create_app(settings, worker=None if worker is None else worker.index)
    await require_database(settings)
    build_routes(app)
    server = make_server(app, settings)
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(_run(server, settings, None if worker is None else worker.listener))
        stopping = group.create_task(stop.wait())
        announcing = group.create_task(_announce(server, settings, app.state.runtime, on_serving=on_serving))
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        announcing.cancel()
        stopping.cancel()


async def require_database(settings: Settings) -> None:
    """Look at the database first: what fails inside an app's lifespan is told as a server's traceback.

    Raises:
        ConfigurationError: it cannot be reached, its tables are not the newest, or the policy in force cannot
            be used here.
    """
    engine = create_engine(settings.effective_database_url)
    try:
        await require_current(engine)
        try:
            pools = load_pools(settings.pools)
        except PoolFileError as error:
            raise ConfigurationError(str(error)) from None
        async with session_factory(engine)() as session:
            await require_usable(session, settings, supply_of(settings, pools))
    finally:
        await engine.dispose()


async def _run(server: Server, settings: Settings, listener: socket.socket | None) -> None:
    try:
        await server.serve(None if listener is None else [listener])
    except SystemExit:
        # uvicorn's way to say that it could not bind or that the lifespan failed; both are in the log.
        raise ConfigurationError(
            f"the gateway could not start on {settings.host}:{settings.port}: see the lines above"
            " (is another program using the port? TOLLGATE_PORT chooses another)"
        ) from None


async def _announce(server: Server, settings: Settings, runtime: Runtime, *, on_serving: OnServing) -> None:
    """Say that it serves once a request would be answered, or once it has waited for that long enough."""
    try:
        async with asyncio.timeout(BIND_TIMEOUT_S):
            while not server.started:  # noqa: ASYNC110 - uvicorn has a flag, not an event
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise ConfigurationError(
            f"the gateway did not start within {BIND_TIMEOUT_S:.0f} s: see the log"
        ) from None
    with contextlib.suppress(TimeoutError):  # pools that are down are no reason to keep silent
        async with asyncio.timeout(REPLICAS_TIMEOUT_S):
            while not _is_every_pool_ready(runtime):  # noqa: ASYNC110 - the registry has no events
                await asyncio.sleep(0.05)
    on_serving(f"http://{settings.host}:{server.port}")


def _is_every_pool_ready(runtime: Runtime) -> bool:
    services = runtime.services
    return services is not None and all(pool.is_within_reach for pool in services.registry.snapshots())
