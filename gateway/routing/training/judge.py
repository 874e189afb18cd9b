"""Which figures follow from the left-out predictions?

Of the classifier alone, of the whole of `classify` (signals first), by family, of its confidence, of each
signal, and in money. Below the
threshold an answer is "unknown": it is the highest whose cost stays within a bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from gateway.inference import CREATIVE_TASKS, TaskType
from gateway.routing.classifier.weights import TASKS
from gateway.routing.classify import signal_of
from gateway.routing.training.evaluate import Corpus, Floats, calibration, confusion, scores, softmax
from gateway.routing.training.money import bill, pool_prices
from gateway.routing.training.prompts import Prompt
from gateway.routing.training.signals import precision

DEFAULT_TASK: Final = TaskType.CHAT
"""What a call is that nothing is known of, in the bundled policy."""
UNSURE_RATIO: Final = 0.15
"""What "unknown" may cost more than always to believe the classifier: a label that is likelier wrong than
right also spoils receipts and what is learned from them, and that has no price here."""
THRESHOLDS: Final = tuple(index / 20 for index in range(18))


def figures_of(corpus: Corpus, logits: Floats) -> dict[str, Any]:
    """All that is reported of left-out predictions, (prompts, tasks) logits."""
    alone = [int(each) for each in logits.argmax(1)]
    whole = [_whole(prompt, guess) for prompt, guess in zip(corpus.prompts, alone, strict=True)]
    money = pool_prices()
    told = calibration(logits, corpus.tasks)
    by_signal = np.array([_has_signal(prompt) for prompt in corpus.prompts])
    return {
        "classifier": {**scores(corpus.tasks, alone), "confusion": confusion(corpus.tasks, alone)},
        "whole": {**scores(corpus.tasks, whole), "confusion": confusion(corpus.tasks, whole)},
        "families": _families(corpus, alone, whole),
        "calibration": told,
        "signals": precision(corpus.prompts, alone),
        "signal_rows": int(by_signal.sum()),
        "signals_right": round(
            float((np.array(whole) == np.array(corpus.tasks))[by_signal].mean()) if by_signal.any() else 0.0,
            4,
        ),
        "money": {**money, "bill": bill(TASKS, confusion(corpus.tasks, whole), money)},
        "threshold": _threshold(corpus, logits, told["temperature"], money=money),
    }


def _has_signal(prompt: Prompt) -> bool:
    return prompt.facts.has_schema or signal_of(prompt.facts) is not None


def _whole(prompt: Prompt, guess: int) -> int:
    """What `classify` says: the output format, then signals, then the classifier."""
    if prompt.facts.has_schema:
        return TASKS.index(TaskType.STRUCTURED)
    signal = signal_of(prompt.facts)
    return guess if signal is None else TASKS.index(signal.task)


def _families(corpus: Corpus, alone: Sequence[int], whole: Sequence[int]) -> list[dict[str, Any]]:
    told = []
    for family in sorted({prompt.family for prompt in corpus.prompts}):
        which = [i for i, prompt in enumerate(corpus.prompts) if prompt.family == family]
        truth = [corpus.tasks[i] for i in which]
        by_model = scores(truth, [alone[i] for i in which])
        in_all = scores(truth, [whole[i] for i in which])
        told.append(
            {
                "family": family,
                "rows": len(which),
                "trains": any(corpus.prompts[i].may_train for i in which),
                "accuracy": by_model["accuracy"],
                "whole_accuracy": in_all["accuracy"],
                "whole_nature_accuracy": in_all["nature_accuracy"],
            }
        )
    return told


def _threshold(
    corpus: Corpus, logits: Floats, temperature: float, *, money: dict[str, Any]
) -> dict[str, Any]:
    """For each threshold what confusions of nature cost where the classifier decides, and the cheapest."""
    which = [i for i, prompt in enumerate(corpus.prompts) if not _has_signal(prompt)]
    likely = softmax(logits[which], temperature)
    found, confidences = likely.argmax(1), likely.max(1)
    points = []
    for least in THRESHOLDS:
        guesses = [
            TASKS[guess] if sure >= least else DEFAULT_TASK
            for guess, sure in zip(found, confidences, strict=True)
        ]
        truth = [TASKS[corpus.tasks[i]] for i in which]
        wrong = [
            "creative" if true in CREATIVE_TASKS else "predictable"
            for true, guess in zip(truth, guesses, strict=True)
            if (true in CREATIVE_TASKS) != (guess in CREATIVE_TASKS)
        ]
        points.append(
            {
                "confidence_min": least,
                "unknown": round(float((confidences < least).mean()), 4),
                "nature_accuracy": round(1 - len(wrong) / len(which), 4),
                "cost_usd": round(sum(money["extra_cost"][nature] for nature in wrong) / len(which), 5),
                "right_when_known": round(_right(found, confidences >= least, truth), 4),
            }
        )
    allowed = min(point["cost_usd"] for point in points) * (1 + UNSURE_RATIO)
    chosen = max(point["confidence_min"] for point in points if point["cost_usd"] <= allowed)
    return {"points": points, "chosen": chosen, "allowed_ratio": UNSURE_RATIO, "rows": len(which)}


def _right(found: Floats, known: Floats, truth: Sequence[TaskType]) -> float:
    is_right = found == np.array([TASKS.index(task) for task in truth])
    return float(is_right[known].mean()) if known.any() else 0.0
