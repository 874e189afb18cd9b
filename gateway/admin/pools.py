"""How are the pools doing, as this gateway process sees them? GET /admin/v1/pools.

Values of this moment from memory: it answers while the database is away, and each process answers for itself.
"""

from __future__ import annotations

from time import monotonic

from fastapi import APIRouter
from pydantic import BaseModel, Field

from backends.breaker import BreakerState
from backends.pool import PoolSnapshot, ReplicaSnapshot, ReplicaState
from gateway.dependencies import ServicesDep

router = APIRouter(prefix="/admin/v1", tags=["pools"])


class BreakerView(BaseModel):
    """Whether a replica is left alone for failing."""

    state: BreakerState = Field(description="half_open: it generated a token, the next request decides")
    opened: int = Field(description="how often it opened since the replica appeared")
    spared: int = Field(description="how often it did not, because the replica is slow and its pool's last")
    retry_in_s: float | None = Field(description="while open: until it is made to generate a token")


class ReplicaView(BaseModel):
    """One replica."""

    name: str
    url: str
    state: ReplicaState
    detail: str = Field(description="why it is not ready")
    in_flight: int = Field(description="requests of this gateway process under way there")
    running: int | None = Field(description="requests that the engine works on; null: not known")
    waiting: int | None = Field(description="requests in the engine's queue")
    kv_cache_usage_ratio: float | None
    failures_in_a_row: int
    breaker: BreakerView


class PoolView(BaseModel):
    """One pool."""

    name: str
    driver: str
    model: str
    ready: int
    replicas: list[ReplicaView]


class PoolsView(BaseModel):
    """All pools, and what this process has under way."""

    in_flight: int = Field(description="calls that models are asked for now")
    in_flight_max: int = Field(description="beyond it calls are refused, the lower latency classes before")
    data: list[PoolView]


@router.get("/pools", summary="Pools and replicas as this gateway process sees them")
async def list_pools(services: ServicesDep) -> PoolsView:
    """States, load and circuit breakers of all replicas."""
    shedder = services.pipeline.shedder
    return PoolsView(
        in_flight=shedder.under_way,
        in_flight_max=shedder.in_flight_max,
        data=[_pool_view(pool) for pool in services.registry.snapshots()],
    )


def _pool_view(pool: PoolSnapshot) -> PoolView:
    spec = pool.spec
    return PoolView(
        name=spec.name,
        driver=spec.driver,
        model=spec.model.served_name,
        ready=pool.ready_count,
        replicas=[_replica_view(replica) for replica in pool.replicas],
    )


def _replica_view(replica: ReplicaSnapshot) -> ReplicaView:
    load, breaker = replica.load, replica.breaker
    is_open = breaker.state is BreakerState.OPEN
    return ReplicaView(
        name=replica.replica,
        url=replica.url,
        state=replica.state,
        detail=replica.detail,
        in_flight=replica.in_flight,
        running=None if load is None else load.requests_running,
        waiting=None if load is None else load.requests_waiting,
        kv_cache_usage_ratio=None if load is None else load.kv_cache_usage_ratio,
        failures_in_a_row=replica.consecutive_failures,
        breaker=BreakerView(
            state=breaker.state,
            opened=breaker.opened,
            spared=breaker.spared,
            retry_in_s=round(max(0.0, breaker.retry_at_s - monotonic()), 3) if is_open else None,
        ),
    )
