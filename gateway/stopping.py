"""How does a program that serves run until it is told to stop?"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine, Iterator
from typing import Any

import uvloop

from backends.launch.replica import LaunchError
from gateway.errors import ConfigurationError, GatewayError


@contextlib.contextmanager
def stopped_by_signals(stop: asyncio.Event) -> Iterator[None]:
    """Set `stop` on Ctrl-C and on SIGTERM, as long as the block lasts."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def run_until_stopped(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run to the end.

    Raises:
        ConfigurationError: of several failures, the known ones, if no other is among them.
    """
    try:
        uvloop.run(coroutine)
    except LaunchError as error:
        raise ConfigurationError(str(error)) from None
    except BaseExceptionGroup as group:
        known, unknown = group.split((GatewayError, LaunchError))
        if unknown is not None or known is None:
            raise
        raise ConfigurationError("; ".join(str(error) for error in _leaves(known))) from None


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found
