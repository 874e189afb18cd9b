"""How is the app served? One uvicorn process on uvloop and httptools, stopped by whoever started it.

Calls of the data plane go straight from their sockets to the edge (`api/direct.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import resource
import socket
from collections.abc import Callable, Iterator
from typing import cast

import uvicorn

from gateway.api.direct import DataPlaneProtocol
from gateway.api.edge import DIRECT
from gateway.app import Application
from gateway.client_connection import ClientRule
from gateway.dependencies import Runtime
from gateway.settings import Settings

COLLECT_AFTER = (20_000, 20, 20)
"""Objects and generations after which the garbage collector looks for cycles; requests leave hardly any."""


class Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: the command line owns the signals."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let no new connection in, wait for answers under way, and cut them when their time is over."""
        self._on_stop()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and take what lives as long as the program out of the garbage collector's sight.

        Half a million objects of libraries would be walked through again and again, 50 ms each time.
        """
        await super().startup(sockets)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*COLLECT_AFTER)

    @property
    def port(self) -> int:
        """The port in use, also when a free one was asked for."""
        sockets = [socket for server in self.servers for socket in server.sockets]
        return int(sockets[0].getsockname()[1]) if sockets else self.config.port


def make_server(app: Application, settings: Settings) -> Server:
    """A server for the app, not started."""
    _take_all_descriptors()
    asked = settings.clients
    rule = ClientRule(
        head_bytes_max=asked.head_bytes_max,
        headers_max=asked.headers_max,
        request_timeout_s=asked.request_timeout_s,
        read_timeout_s=asked.read_timeout_s,
    )
    runtime: Runtime = app.state.runtime
    runtime.telemetry.count_each(
        "tollgate_connections_refused",
        "Connections closed for a head's size, a request's time, or an answer that nobody reads",
        label="reason",
        read=lambda: rule.refused,
    )
    protocol = functools.partial(DataPlaneProtocol, app.edge.serve, DIRECT, rule=rule)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        # uvicorn calls what it is given, and is typed for classes.
        http=cast("type[asyncio.Protocol]", protocol),
        ws="none",
        lifespan="on",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        log_config=None,
        timeout_keep_alive=asked.keep_alive_s,
        timeout_graceful_shutdown=settings.timeouts.drain_s,
    )

    def stop() -> None:
        if runtime.services is not None:
            runtime.services.pipeline.stop()

    return Server(config, stop)


def _take_all_descriptors() -> None:
    """A call under way is two connections, and many systems begin with 1,024 though they allow far more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
