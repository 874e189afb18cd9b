"""How is the app served? One uvicorn process on uvloop and httptools, stopped by whoever started it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from gateway.settings import Settings

DRAIN_S = 30
"""How long answers under way may take to end after a stop was asked for."""


class Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: the command line owns the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield

    @property
    def port(self) -> int:
        """The port in use, also when a free one was asked for."""
        sockets = [socket for server in self.servers for socket in server.sockets]
        return int(sockets[0].getsockname()[1]) if sockets else self.config.port


def make_server(app: FastAPI, settings: Settings) -> Server:
    """A server for the app, not started."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
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
