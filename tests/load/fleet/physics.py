"""How much could routing by task save at most, by arithmetic alone?

At a batch of so many sequences a step takes what the profile says; a task's token costs the step's time,
over the sequences that share it and the tokens that it yields. Of a fleet that could have as many cards
of either pool as it wants, each task would go where it is cheaper; a fleet of one pool takes what is
cheaper on average. What is between the two is all that task-awareness can be worth beyond choosing the
right pool for everything. Prompts cost the same in both pools and dilute it.
"""

from __future__ import annotations

from typing import Any, Final

from gateway.inference import TaskType
from tests.load.fleet.pools import PROPOSED, Pool, profile_of, published, simulated
from tests.load.fleet.sustain import Cell
from tests.load.fleet.traffic import draw, means_of, rows_of, shares

BATCHES: Final = (1, 8, 32, 128)
_DRAWN: Final = 4_000


def token_s(pool: Pool, task: TaskType, *, batch: int, context: float) -> float:
    """Of engine time per token of a task, by published acceptance."""
    model = simulated(pool, seed=0)
    guesses = model.draft_tokens
    step_s = model.step_s(
        tokens=batch * (1 + guesses),
        context_tokens=batch * context,
        sequences=batch,
        proposed=batch * guesses,
    )
    yielded = 1.0 if pool.method is None else 1 + sum(published(pool.method)[task][:PROPOSED])
    return step_s / (batch * yielded)


def bound(cell: Cell) -> list[dict[str, Any]]:
    """For each batch: what share of engine time is prompts, and what each way of choosing pools takes."""
    means = means_of(rows_of(cell.traffic))
    context = means.input_tokens + means.output_tokens / 2
    weights = shares(draw(cell.traffic, _DRAWN, rate=1.0, seed=0))
    speculative, plain = cell.fleet.pools[0][0], cell.fleet.pools[-1][0]
    found = []
    for batch in BATCHES:
        cost = {
            pool.name: {task: token_s(pool, TaskType(task), batch=batch, context=context) for task in weights}
            for pool in (speculative, plain)
        }
        whole = {name: sum(weights[task] * each[task] for task in weights) for name, each in cost.items()}
        routed = sum(
            weight * min(cost[speculative.name][task], cost[plain.name][task])
            for task, weight in weights.items()
        )
        read_s = (
            means.input_tokens * profile_of(plain).step_time.batched_token_s / means.output_tokens
        )  # per token of output
        one_pool = min(whole.values())
        found.append(
            {
                "batch": batch,
                "better_alone": min(whole, key=whole.__getitem__),
                "gains_by_speculation": sorted(
                    task for task in weights if cost[speculative.name][task] < cost[plain.name][task]
                ),
                "speculative_over_plain": round(whole[speculative.name] / whole[plain.name], 3),
                "prompts_ratio": round(read_s / (read_s + one_pool), 3),
                "routed_saves": round(1 - (routed + read_s) / (one_pool + read_s), 4),
            }
        )
    return found
