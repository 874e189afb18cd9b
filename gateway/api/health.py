"""Is the program alive, can it serve, what does it count? /healthz, /readyz, /metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from gateway.dependencies import Runtime, ServicesDep
from gateway.errors import Overloaded

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Alive: the process answers")
async def healthz() -> dict[str, str]:
    """Say that the process is alive; nothing is asked of anything else."""
    return {"status": "ok"}


@router.get("/readyz", summary="Able to serve: keys are loaded and a replica is up")
async def readyz(request: Request) -> dict[str, object]:
    """Say what is up.

    Raises:
        Overloaded: not ready; names what is missing.
    """
    runtime: Runtime = request.app.state.runtime
    services = runtime.current()
    pools = services.registry.snapshots()
    ready = {pool.spec.name: pool.ready_count for pool in pools}
    if services.keys.age_s is None:
        raise Overloaded("Not ready: API keys are not loaded yet.")
    # A pool that sleeps can serve: without requests, which would not come here any more, it would never wake.
    if not any(pool.is_within_reach for pool in pools):
        raise Overloaded("Not ready: no replica of any pool is up.")
    return {"status": "ready", "replicas_ready": ready, "policy": services.policies.shown()}


@router.get("/metrics", summary="Prometheus metrics; from loopback, or with an administrator key")
async def metrics(services: ServicesDep) -> Response:
    """All metrics in Prometheus' text format."""
    return Response(services.telemetry.render(), media_type="text/plain; version=0.0.4; charset=utf-8")
