"""How are the pools doing, as this gateway process sees them? GET /admin/v1/pools.

Values of this moment from memory: it answers while the database is away, and each process answers for itself.
"""

from __future__ import annotations

from time import monotonic

from fastapi import APIRouter
from pydantic import BaseModel, Field

from backends.breaker import BreakerState
from backends.pool import ASLEEP, PoolSnapshot, ReplicaSnapshot, ReplicaState
from backends.recent import RecentLoad
from backends.registry import PoolRegistry
from gateway.clock import instant_text
from gateway.dependencies import ServicesDep

router = APIRouter(prefix="/admin/v1", tags=["pools"])


class BreakerView(BaseModel):
    """Whether a replica is left alone for failing."""

    state: BreakerState = Field(description="half_open: it generated a token, the next request decides")
    opened: int = Field(description="how often it opened since the replica appeared")
    spared: int = Field(description="how often it did not, because the replica is slow and its pool's last")
    retry_in_s: float | None = Field(description="while open: until it is made to generate a token")


class ErrorView(BaseModel):
    """Something went wrong with a replica."""

    at: str = Field(description="ISO 8601, UTC")
    text: str


class RecentView(BaseModel):
    """How a replica did in the last minute, by its engine's counters; null: nothing to count."""

    over_s: float = Field(description="seconds that it is counted over")
    input_tokens_per_s: float
    output_tokens_per_s: float
    prefix_hit_ratio: float | None = Field(description="share of input tokens that the prefix cache had")
    acceptance_length: float | None = Field(description="tokens per step of a speculating engine")
    acceptance_ratio: float | None = Field(description="share of proposed tokens that were accepted")


class ReplicaView(BaseModel):
    """One replica."""

    name: str
    url: str
    state: ReplicaState
    detail: str = Field(description="why it is not ready")
    since_s: float = Field(description="how long it has been in this state, as this process saw it")
    in_flight: int = Field(description="requests of this gateway process under way there")
    running: int | None = Field(description="requests that the engine works on; null: not known")
    waiting: int | None = Field(description="requests in the engine's queue")
    kv_cache_usage_ratio: float | None
    failures_in_a_row: int
    breaker: BreakerView
    recent: RecentView | None = Field(description="null: not known, or asleep")
    restarts: int | None = Field(description="by its driver; null: somebody else runs it")
    wake_s: float | None = Field(description="how long a wake is expected to take; null: it never sleeps")
    errors: list[ErrorView] = Field(description="what went wrong last, the newest at the end")


class PoolView(BaseModel):
    """One pool."""

    name: str
    driver: str
    model: str
    ready: int
    asleep: int = Field(description="replicas that sleep or wake")
    waiting_for_wake: int = Field(description="calls of this process that wait for one of them")
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
        data=[
            _pool_view(pool, services.registry, waiting=services.waker.waiting[pool.spec.name])
            for pool in services.registry.snapshots()
        ],
    )


def _pool_view(pool: PoolSnapshot, registry: PoolRegistry, *, waiting: int) -> PoolView:
    spec = pool.spec
    return PoolView(
        name=spec.name,
        driver=spec.driver,
        model=spec.model.served_name,
        ready=pool.ready_count,
        asleep=sum(1 for replica in pool.replicas if replica.state in ASLEEP),
        waiting_for_wake=waiting,
        replicas=[_replica_view(replica, registry) for replica in pool.replicas],
    )


def _replica_view(replica: ReplicaSnapshot, registry: PoolRegistry) -> ReplicaView:
    load, breaker = replica.load, replica.breaker
    story = registry.story(replica.replica)
    is_open = breaker.state is BreakerState.OPEN
    return ReplicaView(
        name=replica.replica,
        url=replica.url,
        state=replica.state,
        detail=replica.detail,
        since_s=round(story.since_s, 1),
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
        recent=None if story.recent is None else _recent_view(story.recent),
        restarts=story.restarts,
        wake_s=None if story.wake_s is None else round(story.wake_s, 1),
        errors=[ErrorView(at=instant_text(each.at_ms), text=each.text) for each in story.troubles],
    )


def _recent_view(recent: RecentLoad) -> RecentView:
    return RecentView(
        over_s=round(recent.over_s, 1),
        input_tokens_per_s=round(recent.input_tokens_per_s, 1),
        output_tokens_per_s=round(recent.output_tokens_per_s, 1),
        prefix_hit_ratio=_rounded(recent.prefix_hit_ratio),
        acceptance_length=_rounded(recent.acceptance_length),
        acceptance_ratio=_rounded(recent.acceptance_ratio),
    )


def _rounded(ratio: float | None) -> float | None:
    return None if ratio is None else round(ratio, 3)
