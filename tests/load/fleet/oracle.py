"""Where would somebody send a request who knows all that there is to know?

The oracle knows each request's true task, its answer's length, what its drafts will have accepted on average
on every pool, how far every running request still has to go, the state of every engine at this instant and
not a second ago, and the rate at which requests will come. For each replica it works out what one more request
there would cost everybody, in seconds: its own time to the end, and what it makes the others wait for, by
its prompt and by the steps that it makes longer as long as both run. It takes the least. It is greedy: it
does not plan for single requests that are still to come.

With a weight on targets it also counts each request, its own and others', that would be slower per token than
the target allows: so much longer than all seconds that it avoids it where it can.
"""

from __future__ import annotations

from backends.simulator.requests import Sequence
from tests.load.fleet.play import MakeRule, Site
from tests.load.fleet.traffic import Arrival

PENALTY_S = 20.0
"""What a request beyond its target counts, at most (in proportion to how far beyond, up to half)."""


class Oracle:
    """Takes the replica where a request costs everybody least."""

    def __init__(
        self, site: Site, *, rate: float, input_tokens: float, tpot_s: float | None, shape: float
    ) -> None:
        """Look at idle replicas.

        Args:
            site: the replicas, and what is true of them.
            rate: requests per second that will come.
            input_tokens: of theirs, on average.
            tpot_s: the target; None: only seconds count.
            shape: how much what others wait counts against one's own wait.
        """
        self._site = site
        self._tpot_s = tpot_s
        self._shape = shape
        self._replicas = list(enumerate(zip(site.replicas, site.models, strict=True)))
        self._yield = [
            {task: 1 + sum(each.by_position) for task, each in model.guessing.items()}
            if model.draft_tokens
            else {}
            for model in site.models
        ]
        self._there: list[dict[Sequence, float]] = [{} for _ in site.replicas]
        """Requests at each replica, and the tokens that a step yields them."""
        self._context = [0.0 for _ in site.replicas]
        share = rate / len(site.replicas) * input_tokens
        # What other prompts add to the time of a step, on average: all replicas read about alike.
        self._stretch = [
            1 / max(0.2, 1 - share * model.step_time.batched_token_s) for model in site.models
        ]

    def route(self, arrival: Arrival, now_s: float) -> int:
        """The replica for a request."""
        del now_s
        costs = [self._cost_s(number, arrival) for number, _ in self._replicas]
        return min(range(len(costs)), key=costs.__getitem__)

    def _cost_s(self, number: int, arrival: Arrival) -> float:
        replica, model = self._site.replicas[number], self._site.models[number]
        there, stretch, guesses = self._there[number], self._stretch[number], model.draft_tokens
        yielded = self._yield[number].get(arrival.task.value, 1.0)
        steps = max(0.0, (arrival.output_tokens - 1) / yielded)
        context = arrival.input_tokens + arrival.output_tokens / 2
        count = len(there) + 1
        step_s = stretch * model.step_s(
            tokens=count * (1 + guesses),
            context_tokens=self._context[number] + context,
            sequences=count,
            proposed=count * guesses,
        )
        before_s = stretch * model.step_s(
            tokens=(count - 1) * (1 + guesses),
            context_tokens=self._context[number],
            sequences=count - 1,
            proposed=(count - 1) * guesses,
        )
        longer_s = step_s - before_s
        read_s = arrival.input_tokens * model.step_time.batched_token_s
        ahead_tokens, shared_steps, now_steps, late_s = 0.0, 0.0, replica.steps, 0.0
        target_s = self._tpot_s
        for sequence, others_yield in there.items():
            if sequence.first_token_s < 0:
                ahead_tokens += (
                    sequence.prefill_left if sequence.scheduled_s >= 0 else sequence.context_tokens
                )
                left = sequence.request.output_tokens / others_yield
            else:
                left = sequence.finish_step - now_steps
            shared_steps += left if left < steps else steps
            if target_s is not None:
                over = step_s / others_yield / target_s - 1
                if over > 0 and before_s / others_yield <= target_s:
                    late_s += PENALTY_S * min(1.0, 2 * over + 0.1)
        ahead_s = ahead_tokens * model.step_time.batched_token_s
        own_s = ahead_s + read_s + step_s * (1 + steps)
        if target_s is not None and step_s / yielded > target_s:
            late_s += PENALTY_S * min(1.0, 2 * (step_s / yielded / target_s - 1) + 0.1)
        return own_s + self._shape * (read_s * len(there) + shared_steps * longer_s) + late_s

    def sent(self, arrival: Arrival, number: int, sequence: Sequence) -> None:
        """It is there now."""
        self._there[number][sequence] = self._yield[number].get(arrival.task.value, 1.0)
        self._context[number] += arrival.input_tokens + arrival.output_tokens / 2

    def ended(self, number: int, sequence: Sequence) -> None:
        """It has gone."""
        del self._there[number][sequence]
        request = sequence.request
        self._context[number] -= request.input_tokens + request.output_tokens / 2

    def tick(self, now_s: float) -> None:
        """It knows already."""


def oracle(*, input_tokens: float, tpot_s: float | None, shape: float = 1.0) -> MakeRule:
    """The rule.

    Args:
        input_tokens: of the traffic's requests, on average.
        tpot_s: the target per token that it tries to keep; None: it goes by seconds alone.
        shape: how much others count.
    """

    def make(site: Site, *, seed: int, rate: float) -> Oracle:
        del seed
        return Oracle(site, rate=rate, input_tokens=input_tokens, tpot_s=tpot_s, shape=shape)

    return make
