"""How do several processes serve one port?

Each worker is a whole gateway: what they must agree on is in PostgreSQL and Redis. The kernel spreads new
connections over them (SO_REUSEPORT, Linux). The parent holds the port, starts the workers, starts one again
that died (what it had under way is recovered from its spool), and ends them all. A worker ends by itself when
its parent is gone: its standard input is a pipe that only the parent holds open.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop

from gateway.app import create_app
from gateway.errors import ConfigurationError, GatewayError
from gateway.heap import share_one_heap
from gateway.logs import set_up_logging
from gateway.serving import OnServing, Worker, require_database, serve
from gateway.settings import Settings, load_settings
from gateway.stopping import stopped_by_signals

READY = b"ready\n"
START_S = 60.0
STOP_S = 30.0
"""For a worker's last records, once its answers have ended."""
RESTART_S = 1.0
"""Between the death of a worker and its successor."""

_log = logging.getLogger(__name__)


async def serve_by_workers(
    settings: Settings, stop: asyncio.Event, on_serving: OnServing, *, log_folder: Path | None
) -> None:
    """Have `settings.workers` processes serve until `stop` is set.

    Args:
        settings: everything that can be set.
        stop: answers under way end first.
        on_serving: is told the base URL once all of them serve.
        log_folder: where each worker writes its own log; None: standard error.

    Raises:
        ConfigurationError: a file or a setting is wrong, the database is not ready, the address is taken, or
            the workers do not come up; they have said why.
    """
    create_app(settings)  # says once what every worker would say: a wrong file, a missing secret
    await require_database(settings)
    with _bound(settings.host, settings.port) as held:
        port = int(held.getsockname()[1])
        loop = asyncio.get_running_loop()
        first: list[asyncio.Future[None]] = [loop.create_future() for _ in range(settings.workers)]
        async with asyncio.TaskGroup() as group:
            for index, ready in enumerate(first):
                worker = _keep_running(
                    index, port, stop, ready=ready, log_folder=log_folder, drain_s=settings.timeouts.drain_s
                )
                group.create_task(worker)
            stopping = group.create_task(stop.wait())
            starting = asyncio.gather(*first)
            either: set[asyncio.Future[Any]] = {stopping, starting}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            problem = starting.exception() if starting.done() else None
            if starting.done() and problem is None:
                on_serving(f"http://{settings.host}:{port}")
                await stop.wait()
            stop.set()
            stopping.cancel()
            starting.cancel()
        if problem is not None:
            raise problem


def listener_on(host: str, port: int) -> socket.socket:
    """A socket that shares its port with those of the other workers; not listening yet.

    Raises:
        ConfigurationError: another program uses the address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror} (TOLLGATE_PORT chooses another port)"
        ) from None
    return sock


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """Hold the port, so that it stays ours while no worker listens."""
    if port:
        _refuse_foreign_listener(host, port)
    sock = listener_on(host, port)
    try:
        yield sock
    finally:
        sock.close()


def _refuse_foreign_listener(host: str, port: int) -> None:
    """Another Tollgate of the same user would share the port without an error."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {host}:{port}: {error.strerror} (is another program using it?"
                " TOLLGATE_PORT chooses another port)"
            ) from None


async def _keep_running(
    index: int,
    port: int,
    stop: asyncio.Event,
    *,
    ready: asyncio.Future[None],
    log_folder: Path | None,
    drain_s: int,
) -> None:
    """Run one worker and its successors until `stop` is set."""
    while not stop.is_set():
        process = await _start(index, port, log_folder)
        async with asyncio.TaskGroup() as group:
            ending = group.create_task(_end_when(stop, process, drain_s))
            if await _is_ready(process):
                if not ready.done():
                    ready.set_result(None)
            else:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()
            ending.cancel()
        if not ready.done():
            if not stop.is_set():
                problem = f"worker {index} did not start (status {process.returncode}): see the lines above"
                ready.set_exception(ConfigurationError(problem))
            return
        if not stop.is_set():
            _log.error("worker %d ended with status %s; starting another", index, process.returncode)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), RESTART_S)


async def _start(index: int, port: int, log_folder: Path | None) -> asyncio.subprocess.Process:
    log = [] if log_folder is None else [str(log_folder / f"gateway-{index}.log")]
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway.workers",
        str(index),
        str(port),
        *log,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


async def _is_ready(process: asyncio.subprocess.Process) -> bool:
    if process.stdout is None:
        raise RuntimeError("a worker has no standard output")
    try:
        async with asyncio.timeout(START_S):
            return await process.stdout.readline() == READY
    except TimeoutError:
        return False


async def _end_when(stop: asyncio.Event, process: asyncio.subprocess.Process, drain_s: int) -> None:
    """Ask it to stop, and end it by force only after what it has under way had its time."""
    await stop.wait()
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    await asyncio.sleep(drain_s + STOP_S)
    process.kill()


# ------------------------------------------------------------------------------------------- the worker


async def _work(index: int, settings: Settings, listener: socket.socket) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), _stop_without_parent, stop)

    def serving(url: str) -> None:
        del url
        os.write(sys.stdout.fileno(), READY)

    with stopped_by_signals(stop):
        await serve(settings, stop, serving, worker=Worker(index, listener))


def _stop_without_parent(stop: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 1):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        stop.set()


def work(index: int, port: int, log_file: Path | None) -> None:
    """Serve as one of several workers, until the parent says stop or is gone."""
    settings = load_settings()
    set_up_logging(log_file)
    uvloop.run(_work(index, settings, listener_on(settings.host, port)))


if __name__ == "__main__":
    share_one_heap()
    try:
        work(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]) if sys.argv[3:] else None)
    except GatewayError as error:
        sys.stderr.write(f"tollgate: {error}\n")
        raise SystemExit(2) from None
