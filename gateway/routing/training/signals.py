"""How often is each signal right, and would the classifier have been right on the same requests?

A signal may only stand before the classifier where it is right at least as often: this counts both for every
phrase and every mark of code, on the left-out predictions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from gateway.routing.classifier.weights import TASKS
from gateway.routing.classify import signal_of
from gateway.routing.training.prompts import Prompt


def precision(prompts: Sequence[Prompt], guesses: Sequence[int]) -> list[dict[str, Any]]:
    """For each signal: on how many rows it fires, its share of right answers and the classifier's there.

    Args:
        prompts: the labelled rows.
        guesses: what models that never saw their families take them for; indexes into `TASKS`.
    """
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for prompt, guess in zip(prompts, guesses, strict=True):
        found = None if prompt.facts.has_schema else signal_of(prompt.facts)
        if found is None:  # or the output format has decided already
            continue
        row = counts[found.name]
        row[0] += 1
        row[1] += found.task is prompt.task
        row[2] += TASKS[guess] is prompt.task
    return [
        {
            "signal": name,
            "rows": rows,
            "signal_right": round(by_it / rows, 3),
            "classifier_right": round(own / rows, 3),
        }
        for name, (rows, by_it, own) in sorted(counts.items())
    ]
