"""Where would somebody send a request who knows all that there is to know?

The oracle knows each request's true task, its answer's length, what its drafts will have accepted on
average on every pool, how far every running request still has to go, the state of every engine at this
instant and not a second ago, and the rate at which requests will come. For each replica it works out what
one more request there would cost everybody, in seconds: its own time to the end, and what it makes the
others wait for, by its prompt and by the steps that it makes longer as long as both run. It takes the
least. It is greedy: it does not plan for single requests that are still to come.

How much others count beside the request itself (`altruism`) decides between the mean and the tail: what is
best for the sum makes some wait that the 95th percentile sees. Which is best for a target at a load it knows
from the future: it is run with each, and the best run counts (`sustain`).
"""

from __future__ import annotations

import math
from typing import Final

from backends.simulator.requests import Sequence
from tests.load.fleet.play import MakeRule, Site
from tests.load.fleet.traffic import Arrival

READING_S: Final = 15.0
"""Over which a replica's share of time spent on prompts is averaged."""


class Oracle:
    """Takes the replica where a request costs everybody least."""

    def __init__(self, site: Site, *, altruism: float) -> None:
        """Look at idle replicas.

        Args:
            site: the replicas, and what is true of them.
            altruism: how much what others wait counts against one's own time.
        """
        self._site = site
        self._altruism = altruism
        self._yield = [
            {task: 1 + sum(each.by_position) for task, each in model.guessing.items()}
            if model.draft_tokens
            else {}
            for model in site.models
        ]
        self._there: list[dict[Sequence, float]] = [{} for _ in site.replicas]
        """Requests at each replica, and the tokens that a step yields them."""
        self._context = [0.0 for _ in site.replicas]
        self._reading = [(0.0, 0.0) for _ in site.replicas]
        """When each replica was last sent a prompt, and the share of its time that prompts then took."""

    def route(self, arrival: Arrival, now_s: float) -> int:
        """The replica for a request."""
        costs = [self._cost_s(number, arrival, now_s) for number in range(len(self._site.replicas))]
        taken = min(range(len(costs)), key=costs.__getitem__)
        read_s = arrival.input_tokens * self._site.models[taken].step_time.batched_token_s
        self._reading[taken] = (now_s, self._reading_ratio(taken, now_s) + read_s / READING_S)
        return taken

    def _reading_ratio(self, number: int, now_s: float) -> float:
        at_s, ratio = self._reading[number]
        return ratio * math.exp((at_s - now_s) / READING_S)

    def _cost_s(self, number: int, arrival: Arrival, now_s: float) -> float:
        replica, model = self._site.replicas[number], self._site.models[number]
        there, guesses, read_token_s = (
            self._there[number],
            model.draft_tokens,
            model.step_time.batched_token_s,
        )
        yielded = self._yield[number].get(arrival.task.value, 1.0)
        steps = max(0.0, (arrival.output_tokens - 1) / yielded)
        # Steps of those who decode wait for the prompts of others.
        stretch = 1 / max(0.1, 1 - self._reading_ratio(number, now_s))
        count, context = len(there) + 1, arrival.input_tokens + arrival.output_tokens / 2
        step_s, before_s = (
            stretch
            * model.step_s(
                tokens=sequences * (1 + guesses),
                context_tokens=tokens,
                sequences=sequences,
                proposed=sequences * guesses,
            )
            for sequences, tokens in (
                (count, self._context[number] + context),
                (count - 1, self._context[number]),
            )
        )
        ahead_tokens, shared_steps = 0.0, 0.0
        for sequence, others_yield in there.items():
            if sequence.first_token_s < 0:
                is_begun = sequence.scheduled_s >= 0
                ahead_tokens += sequence.prefill_left if is_begun else sequence.context_tokens
                left = sequence.request.output_tokens / others_yield
            else:
                left = sequence.finish_step - replica.steps
            shared_steps += min(left, steps)
        read_s = arrival.input_tokens * read_token_s
        own_s = ahead_tokens * read_token_s + read_s + step_s * (1 + steps)
        return own_s + self._altruism * (read_s * len(there) + shared_steps * (step_s - before_s))

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


def oracle(altruism: float) -> MakeRule:
    """The rule.

    Args:
        altruism: how much others count; 0: nothing, 1: as much as oneself.
    """

    def make(site: Site, *, seed: int, rate: float) -> Oracle:
        del seed, rate
        return Oracle(site, altruism=altruism)

    return make
