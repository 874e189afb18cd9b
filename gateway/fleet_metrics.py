"""Which numbers about pools and replicas does /metrics show?

All are read when somebody asks. Ratios and rates are of the last minute, by the counters of the engine, never
of its whole life; a replica of which one is not known has no sample.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from backends.monitor import FleetMonitor
from backends.pool import ASLEEP, ReplicaLoad, ReplicaSnapshot
from backends.recent import RecentLoad
from backends.registry import PoolRegistry, Story
from gateway.telemetry import Telemetry
from gateway.upkeep import UpkeepBooks
from gateway.upstream.waking import Waker

_RECENT: tuple[tuple[str, str, Callable[[RecentLoad], float | None]], ...] = (
    (
        "tollgate_replica_prefix_hit_ratio",
        "Share of input tokens that the prefix cache had, last minute",
        lambda recent: recent.prefix_hit_ratio,
    ),
    (
        "tollgate_replica_acceptance_length",
        "Tokens per step of a speculating engine, last minute",
        lambda recent: recent.acceptance_length,
    ),
    (
        "tollgate_replica_acceptance_ratio",
        "Share of proposed tokens that were accepted, last minute",
        lambda recent: recent.acceptance_ratio,
    ),
    (
        "tollgate_replica_input_tokens_per_second",
        "Tokens read, last minute",
        lambda recent: recent.input_tokens_per_s,
    ),
    (
        "tollgate_replica_output_tokens_per_second",
        "Tokens written, last minute",
        lambda recent: recent.output_tokens_per_s,
    ),
)


class FleetMetrics:
    """Reads a registry for Prometheus."""

    def __init__(self, registry: PoolRegistry, telemetry: Telemetry) -> None:
        """Only remembers."""
        self._registry = registry
        self._telemetry = telemetry

    def watch(self, monitor: FleetMonitor, waker: Waker, books: UpkeepBooks) -> None:
        """Show everything."""
        self._watch_monitor(monitor)
        self._watch_sleep(waker)
        self._watch_replicas()
        telemetry = self._telemetry
        telemetry.count_by_labels(
            "tollgate_upkeep_tokens",
            "Tokens of warm-ups and heartbeats, on the platform's account",
            labels=("pool", "kind"),
            read=lambda: books.tokens,
        )
        telemetry.count(
            "tollgate_upkeep_not_booked", "Warm-ups and heartbeats not booked", lambda: books.not_booked
        )

    def _watch_monitor(self, monitor: FleetMonitor) -> None:
        count = self._telemetry.count
        count("tollgate_replica_probes", "Tokens generated to see whether one is", lambda: monitor.probes)
        count("tollgate_replica_hangs", "Replicas taken out for hanging", lambda: monitor.hangs)

    def _watch_sleep(self, waker: Waker) -> None:
        telemetry = self._telemetry
        telemetry.watch_each(
            "tollgate_pool_asleep_replicas",
            "Replicas that sleep or wake",
            label="pool",
            read=lambda: {
                pool.spec.name: sum(1 for one in pool.replicas if one.state in ASLEEP)
                for pool in self._registry.snapshots()
            },
        )
        telemetry.watch_each(
            "tollgate_wake_waiting",
            "Calls that wait for a replica to wake",
            label="pool",
            read=lambda: waker.waiting,
        )
        telemetry.count_each(
            "tollgate_wake_waited", "Calls that waited for a wake", label="pool", read=lambda: waker.waited
        )
        telemetry.count_each(
            "tollgate_wake_went_on",
            "Calls that found a pool asleep and went elsewhere",
            label="pool",
            read=lambda: waker.went_on,
        )

    def _watch_replicas(self) -> None:
        telemetry = self._telemetry
        telemetry.watch_each(
            "tollgate_replica_running",
            "Requests that the engine works on",
            label="replica",
            read=lambda: self._loads(lambda load: load.requests_running),
        )
        telemetry.watch_each(
            "tollgate_replica_waiting",
            "Requests in the engine's queue",
            label="replica",
            read=lambda: self._loads(lambda load: load.requests_waiting),
        )
        telemetry.watch_each(
            "tollgate_replica_kv_cache_usage_ratio",
            "Fill of the engine's key-value cache",
            label="replica",
            read=lambda: self._loads(lambda load: load.kv_cache_usage_ratio),
        )
        telemetry.count_each(
            "tollgate_replica_restarts",
            "Times that its driver started a replica again",
            label="replica",
            read=lambda: {name: story.restarts for name, story in self._stories() if story.restarts},
        )
        for name, text, value in _RECENT:
            telemetry.watch_each(name, text, label="replica", read=partial(self._recent, value))

    def _all(self) -> list[ReplicaSnapshot]:
        return [one for pool in self._registry.snapshots() for one in pool.replicas]

    def _stories(self) -> list[tuple[str, Story]]:
        return [(one.replica, self._registry.story(one.replica)) for one in self._all()]

    def _loads(self, value: Callable[[ReplicaLoad], float]) -> dict[str, float]:
        return {one.replica: value(one.load) for one in self._all() if one.load is not None}

    def _recent(self, value: Callable[[RecentLoad], float | None]) -> dict[str, float]:
        return {
            name: found
            for name, story in self._stories()
            if story.recent is not None and (found := value(story.recent)) is not None
        }
