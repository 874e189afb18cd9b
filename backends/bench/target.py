"""On which server does a bench run: one that is there, or one that it starts for itself?

A replica of the running fleet is taken when there is one, an external pool is reached where its file says,
and any other pool gets one replica for the time of the bench: with the processor threads that it has in the
whole fleet, because a replica that has the machine to itself would be another one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from backends.bench.load import BenchError
from backends.fleet_file import FLEET_FILE_NAME, read_fleet
from backends.launch.process import ProcessFleet, ReplicaProgress
from backends.pool import PoolSpec, ReplicaState


@dataclass(frozen=True, slots=True)
class Target:
    """The server that is measured."""

    url: str
    """Base URL without /v1."""
    session: int | None
    """Id of the session of its processes; None: not on this machine, or not started by a fleet of ours."""
    how: str
    """For the profile: who started it, and with what."""


@contextlib.asynccontextmanager
async def target_of(
    name: str,
    pools: Mapping[str, PoolSpec],
    *,
    url: str | None,
    state_dir: Path,
    python: Path,
    on_progress: Callable[[ReplicaProgress], None],
) -> AsyncIterator[Target]:
    """The server for the time of the block.

    Args:
        name: of the pool.
        pools: all of the fleet: they share the machine's cores.
        url: a server to take instead, whatever the pool file says.
        state_dir: of the fleet; a replica of the bench's own has its log in `bench/` there.
        python: the interpreter of the environment that vLLM is installed in.
        on_progress: told how the start goes.

    Raises:
        BenchError: vLLM is not installed.
        LaunchError: the replica does not start.
    """
    spec = pools[name]
    if url is not None:
        yield Target(url.rstrip("/"), None, "a running server, by --url")
        return
    fleet = read_fleet(state_dir / FLEET_FILE_NAME)
    running = [one for one in fleet.replicas if one.pool == name] if fleet else []
    ready = [one for one in running if one.state is ReplicaState.READY]
    if ready:
        yield Target(ready[0].url, ready[0].pid, f"replica {ready[0].replica} of the running fleet")
        return
    if spec.driver == "external":
        yield Target(spec.urls[0], None, "the pool's first URL")
        return
    if not python.exists():  # noqa: ASYNC240 - a look at the local disk before anything runs
        raise BenchError(f"vLLM is not installed ({python} is missing): run `make engine`, or give --url")
    replicas = sum(one.replicas for one in pools.values() if one.driver == "process")
    threads = max(1, len(os.sched_getaffinity(0)) // max(1, replicas))
    alone = spec.model_copy(update={"replicas": 1, "env": {"OMP_NUM_THREADS": str(threads)} | spec.env})
    started = ProcessFleet(
        {name: alone}, state_dir=state_dir / "bench", python=python, on_progress=on_progress
    )
    try:
        await started.start()
        published = read_fleet(state_dir / "bench" / FLEET_FILE_NAME)
        session = published.replicas[0].pid if published else None
        threads_used = alone.env["OMP_NUM_THREADS"]
        yield Target(started.urls[name][0], session, f"started for the bench, OMP_NUM_THREADS={threads_used}")
    finally:
        await started.stop()
