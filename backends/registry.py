"""Which replica takes this request, and how is every pool doing right now?

The one mutable object that the request path reads. Only the event loop touches it: no locks, no awaits, no
I/O. The monitor writes states and loads; whoever sends a request holds a lease meanwhile and reports how
it went. It does not decide which pool is best, only which replica of a given pool, and that by the rule of
`choice.py`.

A replica's load is what we have under way there and what others have: what its /metrics said less what was
ours at that moment, averaged over some scrapes. Our own part moves with every lease, so that only the others'
is old. Of a replica that does not say, the others' part is taken to be what it is at its siblings: to be
silent must not attract requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from types import MappingProxyType

from backends.breaker import Breaker, BreakerRule
from backends.choice import BY_LOAD, Chooser, Key, Rule, Why, multiplier_of, others_now
from backends.pool import (
    ASLEEP,
    WAKEABLE,
    PoolSnapshot,
    PoolSpec,
    ReplicaLoad,
    ReplicaSnapshot,
    ReplicaState,
)
from backends.recent import LoadHistory, RecentLoad
from backends.upkeep import epoch_ms

ERRORS_MAX = 5
WAKE_S = 5.0
"""What a wake is expected to take where nobody says."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What went wrong with a replica, and when."""

    at_ms: int
    text: str


@dataclass(frozen=True, slots=True)
class Story:
    """What a person wants to know of a replica beside its state: not for the request path."""

    since_s: float
    """How long it has been in its state."""
    restarts: int | None
    """By its driver; None: somebody else runs it."""
    troubles: tuple[Trouble, ...]
    """The driver's and this process's own, the newest last."""
    recent: RecentLoad | None
    wake_s: float | None


class _Replica:
    """What is known of one replica; a restart at another address is another object."""

    __slots__ = (
        "breaker",
        "copies",
        "detail",
        "driver_troubles",
        "history",
        "in_flight",
        "load",
        "multiplier",
        "name",
        "of_others",
        "picture",
        "pool",
        "requests",
        "restarts",
        "since_s",
        "state",
        "troubles",
        "url",
        "wake_s",
    )

    def __init__(self, pool: _Pool, name: str, url: str) -> None:
        self.pool = pool
        self.name = name
        self.url = url
        # Where somebody else runs them, an address is all that one is known by: names are only places in the
        # list. Where we run them, the address changes with every start.
        self.multiplier = multiplier_of(url if pool.spec.driver == "external" else name)
        self.state = ReplicaState.STARTING
        self.in_flight = 0
        self.copies = 0
        """Of these: those that nobody waits for."""
        self.of_others: float | None = None
        """Requests there that are not ours; None: not known."""
        self.requests = 0
        """Both together."""
        self.load: ReplicaLoad | None = None
        self.breaker = Breaker(pool.breaker_rule)
        self.detail = "not looked at yet"
        self.since_s = monotonic()
        self.history = LoadHistory()
        self.restarts: int | None = None
        self.wake_s: float | None = None
        self.driver_troubles: tuple[Trouble, ...] = ()
        self.troubles: deque[Trouble] = deque(maxlen=ERRORS_MAX)
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
            consecutive_failures=self.breaker.in_a_row,
            detail=self.detail,
            breaker=self.breaker.standing,
        )

    def enter(self, state: ReplicaState, detail: str) -> None:
        if state is not self.state:
            self.since_s = monotonic()
            if self.state is ReplicaState.READY and state is ReplicaState.UNHEALTHY:
                self.troubles.append(Trouble(epoch_ms(), detail))
        self.state = state
        self.detail = detail
        self.picture = None
        if state is ReplicaState.READY:
            self.breaker.proved()
        self.pool.refresh()

    def take_out(self, detail: str, *, backs_off: bool) -> None:
        self.breaker.open(monotonic(), backs_off=backs_off)
        self.enter(ReplicaState.UNHEALTHY, detail)


class _Pool:
    """One pool's replicas, with the ready ones at hand so that a lease looks at nothing else."""

    __slots__ = ("asleep", "breaker_rule", "choices", "chooser", "ready", "replicas", "spec")

    def __init__(self, spec: PoolSpec, breaker_rule: BreakerRule, asleep: set[str]) -> None:
        self.spec = spec
        self.asleep = asleep
        """The names of all pools that could serve once they are awake."""
        self.breaker_rule = breaker_rule
        self.replicas: dict[str, _Replica] = {}
        self.ready: tuple[_Replica, ...] = ()
        self.chooser = Chooser(
            spec.choice_rule,
            load_factor=spec.replica_choice.load_factor,
            at_ease=spec.requests_at_ease,
        )
        self.choices = dict.fromkeys(Why, 0)

    def refresh(self) -> None:
        self.ready = tuple(one for one in self.replicas.values() if one.state is ReplicaState.READY)
        if self.spec.sleep is not None:
            could_wake = any(one.state in WAKEABLE for one in self.replicas.values())
            if could_wake and not self.ready:
                self.asleep.add(self.spec.name)
            else:
                self.asleep.discard(self.spec.name)
        self.reckon()

    def reckon(self) -> None:
        """Take what is known of others' requests into each replica's load."""
        known = [one.of_others for one in self.ready if one.of_others is not None]
        typical = sum(known) / len(known) if known else 0.0
        for one in self.replicas.values():
            one.requests = one.in_flight + round(typical if one.of_others is None else one.of_others)


class ReplicaLease:
    """One request's claim on a replica. Release it in a `finally`; say how it went before that.

    A lease outlives its replica: what it reports after a restart falls on the old process, not on the new.
    """

    __slots__ = ("_has_failed", "_is_released", "_replica", "pool", "replica", "url", "why")

    def __init__(self, replica: _Replica, why: Why) -> None:
        replica.in_flight += 1
        replica.requests += 1
        replica.picture = None
        self._replica = replica
        self._is_released = False
        self._has_failed = False
        self.pool = replica.pool.spec.name
        self.replica = replica.name
        self.url = replica.url
        """Base URL without /v1 and without a trailing slash."""
        self.why = why

    def release(self) -> None:
        """The request is over, however it ended. Only the first call counts."""
        if not self._is_released:
            self._is_released = True
            self._replica.in_flight -= 1
            self._replica.requests -= 1
            self._replica.picture = None

    def succeeded(self) -> None:
        """The replica answered as it should; ends its row of failures unless this lease failed before."""
        if not self._has_failed and self._replica.breaker.succeeded():
            self._replica.picture = None

    def failed(self, detail: str, *, fatal: bool = False, slow: bool = False) -> None:
        """The replica (not the request) was at fault; counts once per lease. Does not release.

        Args:
            detail: what happened, for people.
            fatal: nothing listens there any more (connection refused): take it out at once.
            slow: it only took too long, which does not take out the last replica of a pool.
        """
        replica = self._replica
        is_counted = self._has_failed
        self._has_failed = True
        replica.picture = None
        shall_open = not is_counted and replica.breaker.failed()
        if replica.state is not ReplicaState.READY or not (fatal or shall_open):
            return
        if slow and replica.pool.ready == (replica,):
            replica.breaker.spare()
            return
        replica.take_out(detail, backs_off=not fatal)


class _CopyLease(ReplicaLease):
    """One of a request that nobody waits for; counted with all others, and apart."""

    __slots__ = ("_registry",)

    def __init__(self, replica: _Replica, why: Why, registry: PoolRegistry) -> None:
        super().__init__(replica, why)
        self._registry = registry
        replica.copies += 1
        registry.copies += 1

    def release(self) -> None:
        """See `ReplicaLease`."""
        if not self._is_released:
            self._replica.copies -= 1
            self._registry.copies -= 1
        super().release()


def _has_room(replica: _Replica, ratio: float) -> bool:
    if replica.load is not None and replica.load.requests_waiting:
        return False
    return replica.requests + 1 <= ratio * replica.pool.spec.batching.max_num_seqs


class PoolRegistry:
    """All pools and their replicas, as this process sees them.

    Every method raises KeyError for a pool or replica it was never told of.
    """

    def __init__(self, specs: Mapping[str, PoolSpec], *, breaker_rule: BreakerRule | None = None) -> None:
        """Begin with pools that have no replicas yet.

        Args:
            specs: the pools, by name.
            breaker_rule: when a replica is taken out for how it answers; None: as `BreakerRule` says.
        """
        rule = breaker_rule or BreakerRule()
        self.asleep: set[str] = set()
        """Pools of which no replica is ready and one could be woken; nearly always empty."""
        self.awaited = 0
        """Requests that wait for one of these: whoever looks at replicas should hurry."""
        self.copies = 0
        """Under way here, of which nobody waits for the answer; nearly always none."""
        self._pools = {name: _Pool(spec, rule, self.asleep) for name, spec in specs.items()}
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
        """The pools that can take a request, now or once they are awake: all that a decision asks of now."""
        asleep = self.asleep
        return tuple([name for name, entry in self._pools.items() if entry.ready or name in asleep])

    def wake_expected_s(self, pool: str) -> float:
        """How long it will be until a replica of a sleeping pool is ready, as far as can be known."""
        left: list[float] = []
        for one in self._pools[pool].replicas.values():
            if one.state in WAKEABLE:
                whole_s = WAKE_S if one.wake_s is None else one.wake_s
                is_waking = one.state is ReplicaState.WAKING
                left.append(max(0.0, whole_s - (monotonic() - one.since_s)) if is_waking else whole_s)
        return min(left, default=WAKE_S)

    def asleep_count(self, pool: str) -> int:
        """Replicas that sleep or wake."""
        return sum(1 for one in self._pools[pool].replicas.values() if one.state in ASLEEP)

    def story(self, replica: str) -> Story:
        """What a person wants to know of a replica beside its state."""
        one = self._replicas[replica]
        # What we told the driver it says too.
        told = {each.text for each in one.driver_troubles}
        ours = [each for each in one.troubles if each.text not in told]
        troubles = sorted((*one.driver_troubles, *ours), key=lambda each: each.at_ms)
        return Story(
            since_s=monotonic() - one.since_s,
            restarts=one.restarts,
            troubles=tuple(troubles[-ERRORS_MAX:]),
            recent=one.history.recent() if one.load is not None else None,
            wake_s=one.wake_s,
        )

    def load_of(self, pool: str) -> float:
        """Requests under way where the next one would go, ours and others'; 0 where no replica is ready.

        Copies are among them: they take an engine's time like all others.

        Where the pool goes by load alone that is the least loaded replica; affinity brings it to any of them,
        and the mean is what can be expected.
        """
        entry = self._pools[pool]
        ready = entry.ready
        if len(ready) == 1:
            return ready[0].requests
        if not ready:
            return 0.0
        if entry.chooser.rule in BY_LOAD:
            least = ready[0].requests
            for one in ready:
                if one.requests < least:  # noqa: PLR1730 - `min` takes three times as long
                    least = one.requests
            return least
        total = 0
        for one in ready:
            total += one.requests
        return total / len(ready)

    def load_without_copies(self, pool: str) -> float:
        """The same, were there none of this process's copies (of others' nobody here knows)."""
        entry = self._pools[pool]
        loads = [one.requests - one.copies for one in entry.ready]
        if not loads:
            return 0.0
        return min(loads) if entry.chooser.rule in BY_LOAD else sum(loads) / len(loads)

    def has_room(self, pool: str, ratio: float) -> bool:
        """Some ready replica has room for a copy: see `lease_for_copy`."""
        return any(_has_room(one, ratio) for one in self._pools[pool].ready)

    def lease_for_copy(
        self, pool: str, *, room_ratio: float, excluding: frozenset[str] = frozenset(), key: Key | None = None
    ) -> ReplicaLease | None:
        """Claim a replica for a request that nobody waits for, if one has room to spare.

        Args:
            pool: the pool's name.
            room_ratio: so much of what a replica generates at once may be under way there, the copy included.
            excluding: see `lease`.
            key: see `lease`.

        Returns:
            None if no ready replica has: requests wait there, or too many are under way.
        """
        entry = self._pools[pool]
        free = [one for one in entry.ready if one.name not in excluding and _has_room(one, room_ratio)]
        if not free:
            return None
        if entry.chooser.rule is Rule.ROUND_ROBIN:  # the turns are tenants'
            return _CopyLease(min(free, key=lambda one: one.requests), Why.LEAST_LOADED, self)
        replica, why = entry.chooser.choose(free, key)
        return _CopyLease(replica, why, self)

    def lease(
        self, pool: str, *, excluding: frozenset[str] = frozenset(), key: Key | None = None
    ) -> ReplicaLease | None:
        """Claim the replica that the pool's rule chooses among those that are ready.

        Args:
            pool: the pool's name.
            excluding: names of replicas that shall not be used, such as those that failed this request.
            key: what the request shares with those that it should meet; asked for only where there is a
                choice. It has to keep tenants apart: their prefixes are apart in the engine's cache.

        Returns:
            None if no replica of the pool is ready (or all that are, are excluded).
        """
        entry = self._pools[pool]
        ready = entry.ready
        if excluding:
            ready = tuple([one for one in ready if one.name not in excluding])
        if not ready:
            return None
        replica, why = entry.chooser.choose(ready, key)
        entry.choices[why] += 1
        return ReplicaLease(replica, why)

    def choices(self, pool: str) -> Mapping[Why, int]:
        """How many leases there were since the start, by why their replica was chosen."""
        return self._pools[pool].choices

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
            if old is not None and old.url == base:
                entry.replicas[name] = old
                continue
            entry.replicas[name] = _Replica(entry, name, base)
            if old is not None and old.state in WAKEABLE:
                # It woke at another address: who waits for it goes on waiting until it is seen serving.
                entry.replicas[name].state = ReplicaState.WAKING
                entry.replicas[name].wake_s = old.wake_s
        self._replicas |= entry.replicas
        entry.refresh()

    def set_state(self, replica: str, state: ReplicaState, detail: str = "") -> None:
        """What the monitor found; READY also forgets past failures."""
        one = self._replicas[replica]
        if one.state is state and state is ReplicaState.READY:
            # Not a change: the failures that requests have counted since stay counted.
            return
        one.enter(state, detail)

    def state(self, replica: str) -> ReplicaState:
        """Its state now."""
        return self._replicas[replica].state

    def detail(self, replica: str) -> str:
        """Why it is in that state."""
        return self._replicas[replica].detail

    def set_driver_facts(
        self, replica: str, *, restarts: int, troubles: tuple[Trouble, ...], wake_s: float | None
    ) -> None:
        """What its driver says of it beside its state."""
        one = self._replicas[replica]
        one.restarts, one.driver_troubles, one.wake_s = restarts, troubles, wake_s

    def take_out(self, replica: str, detail: str) -> None:
        """The monitor saw that it does not generate: nothing goes there until it does, after a backoff."""
        self._replicas[replica].take_out(detail, backs_off=True)

    def clear_of_suspicion(self, replica: str) -> None:
        """The monitor saw a replica generate that was merely slow."""
        one = self._replicas[replica]
        one.breaker.proved()
        one.picture = None

    def set_load(self, replica: str, load: ReplicaLoad | None) -> None:
        """What the replica's /metrics said; None: not known."""
        one = self._replicas[replica]
        one.load = load
        one.picture = None
        if load is None:
            one.of_others = None
        else:
            one.history.saw(load)
            seen = load.requests_running + load.requests_waiting - one.in_flight
            one.of_others = others_now(one.of_others, seen)
        one.pool.reckon()
