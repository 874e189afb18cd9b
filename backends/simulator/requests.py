"""What is sent to a simulated replica, and what became of it? Times in seconds, lengths in tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SimulatedRequest:
    """One request, as a trace or a load describes it."""

    at_s: float
    """When it is sent; in a closed loop it has no meaning."""
    input_tokens: int
    output_tokens: int
    task: str = ""
    """Whose acceptance its speculation has; unknown tasks have the pool's mean."""
    prefix: tuple[int, ...] = ()
    """Names of the input's leading blocks (`SimulatedPool.prefix_block_tokens` each): equal names, taken from
    the start, are input that the prefix cache can have."""
    cached_tokens: int = 0
    """Of the input, for sure in the prefix cache when it is first scheduled: as a record says, in place of
    `prefix`."""
    decode_steps: int | None = None
    """Steps that its output takes after the first token, where that is known; None: drawn."""

    def __post_init__(self) -> None:
        if self.input_tokens < 1 or self.output_tokens < 1:
            raise ValueError("a request has at least one token of input and one of output")


class Sequence:
    """One request on its way through a replica. Written by the simulator, read by everyone."""

    __slots__ = (
        "accepted_tokens",
        "admitted_at",
        "arrived_s",
        "cached_tokens",
        "context_tokens",
        "draft_steps",
        "end_s",
        "finish_step",
        "first_token_s",
        "growth",
        "held_tokens",
        "own_blocks",
        "preemptions",
        "prefill_left",
        "request",
        "scheduled_s",
        "sent_s",
        "steps_left",
    )

    def __init__(self, request: SimulatedRequest, sent_s: float, arrived_s: float) -> None:
        self.request = request
        self.sent_s = sent_s
        self.arrived_s = arrived_s
        """At the engine, behind what the server does in front of it."""
        self.scheduled_s = -1.0
        """Start of the first step that computes something of it; below 0: not yet."""
        self.first_token_s = -1.0
        self.end_s = -1.0
        self.cached_tokens = 0
        self.draft_steps = 0
        """Steps that verified proposed tokens of it."""
        self.accepted_tokens = 0
        self.preemptions = 0
        # What follows is the replica's own bookkeeping.
        self.context_tokens = request.input_tokens
        """To be computed before the next token comes: the input, and after a preemption the output so far."""
        self.prefill_left = 0
        self.steps_left = -1
        """Decode steps until its end; below 0: not drawn yet."""
        self.growth = 1.0
        """Mean tokens that a step adds."""
        self.admitted_at = 0
        """The step count when it began to decode."""
        self.finish_step = -1
        self.held_tokens = 0.0
        """Cache that it took when it was admitted."""
        self.own_blocks: tuple[int, ...] = ()
        """Named blocks of which it holds a reference."""

    @property
    def queue_s(self) -> float:
        """From its arrival at the engine until it is first scheduled (vLLM's request_queue_time)."""
        return self.scheduled_s - self.arrived_s

    @property
    def ttft_s(self) -> float:
        """From sending to the first token."""
        return self.first_token_s - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time between its tokens; None with a single one."""
        if self.request.output_tokens == 1:
            return None
        return (self.end_s - self.first_token_s) / (self.request.output_tokens - 1)
