"""Which replica takes this request, and how is every pool doing right now?

The one mutable object that the request path reads. Only the event loop touches it: no locks, no awaits, no
I/O. The monitor writes states and loads; whoever sends a request holds a lease meanwhile and reports how
it went. It does not decide which pool is best, only which replica of a given pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from backends.pool import PoolSnapshot, PoolSpec, ReplicaLoad, ReplicaSnapshot, ReplicaState

FAILURES_TO_EJECT = 3
"""So many failed requests in a row take a replica out until the monitor has seen it serve again."""


class _Replica:
    """What is known of one replica; a restart at another address is another object."""

    __slots__ = (
        "consecutive_failures",
        "detail",
        "in_flight",
        "load",
        "name",
        "picture",
        "pool",
        "state",
        "url",
    )

    def __init__(self, pool: _Pool, name: str, url: str) -> None:
        self.pool = pool
        self.name = name
        self.url = url
        self.state = ReplicaState.STARTING
        self.in_flight = 0
        self.load: ReplicaLoad | None = None
        self.consecutive_failures = 0
        self.detail = "not looked at yet"
        self.picture: ReplicaSnapshot | None = None
        """The last snapshot, None once anything has changed: every decision looks at every replica."""

    def snapshot(self) -> ReplicaSnapshot:
        if self.picture is None:
            self.picture = self._take_picture()
        return self.picture

    def _take_picture(self) -> ReplicaSnapshot:
        return ReplicaSnapshot(
            pool=self.pool.spec.name,
            replica=self.name,
            url=self.url,
            state=self.state,
            in_flight=self.in_flight,
            load=self.load,
            consecutive_failures=self.consecutive_failures,
            detail=self.detail,
        )

    def enter(self, state: ReplicaState, detail: str) -> None:
        self.state = state
        self.detail = detail
        self.picture = None
        if state is ReplicaState.READY:
            self.consecutive_failures = 0
        self.pool.refresh()


class _Pool:
    """One pool's replicas, with the ready ones at hand so that a lease looks at nothing else."""

    __slots__ = ("ready", "replicas", "spec", "turn")

    def __init__(self, spec: PoolSpec) -> None:
        self.spec = spec
        self.replicas: dict[str, _Replica] = {}
        self.ready: tuple[_Replica, ...] = ()
        self.turn = 0
        """Where the next lease begins to look, so that equally loaded replicas take turns."""

    def refresh(self) -> None:
        self.ready = tuple(one for one in self.replicas.values() if one.state is ReplicaState.READY)


class ReplicaLease:
    """One request's claim on a replica. Release it in a `finally`; say how it went before that.

    A lease outlives its replica: what it reports after a restart falls on the old process, not on the new.
    """

    __slots__ = ("_has_failed", "_is_released", "_replica", "pool", "replica", "url")

    def __init__(self, replica: _Replica) -> None:
        replica.in_flight += 1
        replica.picture = None
        self._replica = replica
        self._is_released = False
        self._has_failed = False
        self.pool = replica.pool.spec.name
        self.replica = replica.name
        self.url = replica.url
        """Base URL without /v1 and without a trailing slash."""

    def release(self) -> None:
        """The request is over, however it ended. Only the first call counts."""
        if not self._is_released:
            self._is_released = True
            self._replica.in_flight -= 1
            self._replica.picture = None

    def succeeded(self) -> None:
        """The replica answered as it should; ends its row of failures unless this lease failed before."""
        if not self._has_failed and self._replica.consecutive_failures:
            self._replica.consecutive_failures = 0
            self._replica.picture = None

    def failed(self, detail: str, *, fatal: bool = False) -> None:
        """The replica (not the request) was at fault; counts once per lease. Does not release.

        Args:
            detail: what happened, for people.
            fatal: nothing listens there any more (connection refused): take it out at once.
        """
        replica = self._replica
        if not self._has_failed:
            self._has_failed = True
            replica.consecutive_failures += 1
            replica.picture = None
        if replica.state is ReplicaState.READY and (
            fatal or replica.consecutive_failures >= FAILURES_TO_EJECT
        ):
            replica.enter(ReplicaState.UNHEALTHY, detail)


class PoolRegistry:
    """All pools and their replicas, as this process sees them.

    Every method raises KeyError for a pool or replica it was never told of.
    """

    def __init__(self, specs: Mapping[str, PoolSpec]) -> None:
        self._pools = {name: _Pool(spec) for name, spec in specs.items()}
        self._replicas: dict[str, _Replica] = {}
        self.specs: Mapping[str, PoolSpec] = MappingProxyType(dict(specs))
        """The pools as their files describe them, by name."""

    def snapshot(self, pool: str) -> PoolSnapshot:
        """One pool at this moment."""
        entry = self._pools[pool]
        return PoolSnapshot(entry.spec, tuple([one.snapshot() for one in entry.replicas.values()]))

    def snapshots(self) -> tuple[PoolSnapshot, ...]:
        """All pools at this moment, in the order of their files."""
        return tuple(self.snapshot(pool) for pool in self._pools)

    def ready_pools(self) -> tuple[str, ...]:
        """The pools of which a replica can take a request now: all that a decision asks of this moment."""
        return tuple([name for name, entry in self._pools.items() if entry.ready])

    def lease(self, pool: str, *, excluding: frozenset[str] = frozenset()) -> ReplicaLease | None:
        """Claim the ready replica with the fewest requests of ours under way; equals take turns.

        Args:
            pool: the pool's name.
            excluding: names of replicas that shall not be used, such as those that failed this request.

        Returns:
            None if no replica of the pool is ready (or all that are, are excluded).
        """
        entry = self._pools[pool]
        ready = entry.ready
        best: _Replica | None = None
        start = entry.turn
        count = len(ready)
        for offset in range(count):
            candidate = ready[(start + offset) % count]
            if (best is None or candidate.in_flight < best.in_flight) and candidate.name not in excluding:
                best = candidate
        if best is None:
            return None
        entry.turn = (start + 1) % count
        return ReplicaLease(best)

    def set_replicas(self, pool: str, urls: Mapping[str, str]) -> None:
        """Make these (name → base URL) the pool's replicas.

        One that keeps its name and URL keeps its state and counts; a changed URL is a new process, which has
        to be seen serving before it gets requests. Names are unique over all pools.

        Raises:
            ValueError: a name belongs to a replica of another pool.
        """
        entry = self._pools[pool]
        for name in urls:
            owner = self._replicas.get(name)
            if owner is not None and owner.pool is not entry:
                raise ValueError(f"replica '{name}' of pool '{pool}' exists in pool '{owner.pool.spec.name}'")
        for name in entry.replicas:
            del self._replicas[name]
        known = entry.replicas
        entry.replicas = {}
        for name, url in urls.items():
            base = url.rstrip("/")
            old = known.get(name)
            entry.replicas[name] = old if old is not None and old.url == base else _Replica(entry, name, base)
        self._replicas |= entry.replicas
        entry.refresh()

    def set_state(self, replica: str, state: ReplicaState, detail: str = "") -> None:
        """What the monitor found; READY also forgets past failures."""
        one = self._replicas[replica]
        if one.state is state and state is ReplicaState.READY:
            # Not a change: the failures that requests have counted since stay counted.
            return
        one.enter(state, detail)

    def set_load(self, replica: str, load: ReplicaLoad | None) -> None:
        """What the replica's /metrics said; None: not known."""
        one = self._replicas[replica]
        one.load = load
        one.picture = None
