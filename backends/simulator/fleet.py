"""What do several replicas do with a trace, and one with a closed loop?

The choice of a replica is a function, so that a replay can take the gateway's own rule
(`backends.choice.Chooser`) or any other; without one the least loaded gets the request.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from backends.simulator.calibration import SimulatedPool
from backends.simulator.replica import Replica
from backends.simulator.requests import Sequence, SimulatedRequest

Choose = Callable[[SequenceOf[Replica], SimulatedRequest], int]
"""Replicas as they are when the request comes → number of the one that gets it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """All requests in the order in which they were sent, and what the replicas did."""

    sequences: tuple[Sequence, ...]
    duration_s: float
    """From the first request's sending to the last one's end."""
    busy_s: float
    """That engines stepped, summed over the replicas."""
    steps: int
    kv_peak_tokens: float
    """The most that the sequences of one replica held."""
    preemptions: int

    @property
    def output_tokens(self) -> int:
        """Of all requests."""
        return sum(one.request.output_tokens for one in self.sequences)

    @property
    def output_tokens_per_s(self) -> float:
        """Over the whole duration."""
        return self.output_tokens / self.duration_s if self.duration_s > 0 else 0.0

    @property
    def tokens_per_step(self) -> float | None:
        """Mean acceptance length, the bonus token included; None without speculation."""
        drafts = sum(one.draft_steps for one in self.sequences)
        return 1 + sum(one.accepted_tokens for one in self.sequences) / drafts if drafts else None

    def ttft_s(self, share: float = 0.5) -> float:
        """This quantile of the time to the first token."""
        return quantile([one.ttft_s for one in self.sequences], share)

    def tpot_s(self, share: float = 0.5) -> float | None:
        """This quantile of the time per output token; None where all answers are one token."""
        known = [found for one in self.sequences if (found := one.tpot_s) is not None]
        return quantile(known, share) if known else None


def quantile(values: SequenceOf[float], share: float) -> float:
    """The median as statistics define it; otherwise the least value that so large a share do not exceed."""
    if share == 0.5:  # noqa: PLR2004 - the median has a definition of its own
        return statistics.median(values)
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def least_loaded(replicas: SequenceOf[Replica], request: SimulatedRequest) -> int:
    """The first of those with the fewest requests."""
    del request
    return min(range(len(replicas)), key=lambda number: replicas[number].requests)


def simulate(
    requests: Iterable[SimulatedRequest],
    pool: SimulatedPool,
    *,
    replicas: int = 1,
    choose: Choose = least_loaded,
    seed: int = 0,
) -> Outcome:
    """An open loop: every request comes at its time, whatever became of those before it.

    Args:
        requests: in the order of their times.
        pool: what all replicas are.
        replicas: how many.
        choose: which of them gets a request; sees them as they are at that moment.
        seed: of what is drawn.

    Raises:
        ValueError: the times fall, or a request is larger than the cache.
    """
    fleet = [Replica(pool, seed=seed * 1_000_003 + number) for number in range(replicas)]
    sequences, now_s = [], 0.0
    for request in requests:
        if request.at_s < now_s:
            raise ValueError(f"requests must come in the order of their times: {request.at_s} after {now_s}")
        now_s = request.at_s
        for replica in fleet:
            replica.advance(now_s)
        taken = choose(fleet, request) if replicas > 1 else 0
        sequences.append(fleet[taken].offer(request))
    for replica in fleet:
        replica.advance()
    return _outcome(sequences, fleet)


def simulate_closed_loop(
    requests: Iterable[SimulatedRequest], pool: SimulatedPool, *, concurrency: int, seed: int = 0
) -> Outcome:
    """A closed loop on one replica: so many requests at any time, the next one when one has ended.

    Args:
        requests: in the order in which they are sent; their times do not matter.
        pool: what the replica is.
        concurrency: requests at a time.
        seed: of what is drawn.

    Raises:
        ValueError: a request is larger than the cache.
    """
    left = iter(requests)
    sequences: list[Sequence] = []

    def send(at_s: float) -> None:
        request = next(left, None)
        if request is not None:
            sequences.append(replica.offer(request, at_s))

    replica = Replica(pool, seed=seed, on_end=lambda ended: send(ended.end_s))
    for _ in range(concurrency):
        send(0.0)
    replica.advance()
    return _outcome(sequences, [replica])


def _outcome(sequences: SequenceOf[Sequence], fleet: SequenceOf[Replica]) -> Outcome:
    duration_s = 0.0
    if sequences:
        duration_s = max(one.end_s for one in sequences) - min(one.sent_s for one in sequences)
    return Outcome(
        tuple(sequences),
        duration_s,
        sum(replica.busy_s for replica in fleet),
        sum(replica.steps for replica in fleet),
        max((replica.kv_peak_tokens for replica in fleet), default=0.0),
        sum(one.preemptions for one in sequences),
    )
