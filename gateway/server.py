"""How is the app served? One uvicorn process on uvloop and httptools, stopped by whoever started it.

Calls of the data plane go straight from their sockets to the edge (`api/direct.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import socket
from collections.abc import Iterator
from typing import cast

import uvicorn

from gateway.api.direct import DataPlaneProtocol
from gateway.api.edge import DIRECT
from gateway.app import Application
from gateway.settings import Settings

COLLECT_AFTER = (20_000, 20, 20)
"""Objects and generations after which the garbage collector looks for cycles; requests leave hardly any."""
DRAIN_S = 30
"""How long answers under way may take to end after a stop was asked for."""


class Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: the command line owns the signals."""

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
    protocol = functools.partial(DataPlaneProtocol, app.edge.serve, DIRECT)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=cast("type[asyncio.Protocol]", protocol),
        ws="none",
        lifespan="on",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        log_config=None,
        timeout_graceful_shutdown=DRAIN_S,
    )
    return Server(config)
