"""How good is the classifier on sources that it has never seen?

For each family a model that was trained without it, neither its rows nor passages of it in requests of our
own, predicts all its rows; the predictions together are judged. What trains are rows under permissive and
share-alike licences and requests of our own; all rows are judged. Confidence is fitted, and its error told,
on the same left-out predictions, in halves: each half is judged with the temperature of the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from msgspec.structs import replace

from gateway.inference import CREATIVE_TASKS, CallFacts
from gateway.routing.classifier.weights import TASKS
from gateway.routing.training.fit import Embeddings, Model, Plan, Rows, joined, picked, rows_of
from gateway.routing.training.prompts import Prompt, passages
from gateway.routing.training.requests import Writer

SOURCE_TASK_ROWS: Final = 100
"""A source's rows of one task count together at most as much as so many."""
ROW_WEIGHT: Final = 0.5
BINS: Final = 10
TEMPERATURES: Final = tuple(round(0.3 + 0.02 * index, 2) for index in range(86))
IS_CREATIVE: Final = np.array([task in CREATIVE_TASKS for task in TASKS])

Floats: TypeAlias = "np.ndarray[Any, Any]"


class Corpus(NamedTuple):
    """All labelled prompts as numbers, and varied copies of those that train."""

    prompts: list[Prompt]
    rows: Rows
    varied: Rows
    tasks: list[int]


def corpus_of(prompts: list[Prompt], embeddings: Embeddings, seed: int) -> Corpus:
    """Prompts as numbers."""
    writer = Writer(seed)
    facts = [prompt.facts for prompt in prompts]
    varied = [_varied(prompt, writer) for prompt in prompts]
    tasks = [TASKS.index(prompt.task) for prompt in prompts]
    return Corpus(prompts, rows_of(facts, embeddings), rows_of(varied, embeddings), tasks)


def _varied(prompt: Prompt, writer: Writer) -> CallFacts:
    return replace(prompt.facts, instruction=writer.varied(prompt.facts.instruction))


def train(
    corpus: Corpus,
    embeddings: Embeddings,
    *,
    plan: Plan,
    per_task: int,
    held_out: str | None = None,
    families: frozenset[str] | None = None,
) -> Model:
    """A model that has not seen the family that is held out.

    Args:
        corpus: the labelled prompts.
        embeddings: of words.
        plan: how to train.
        per_task: requests of our own for each task.
        held_out: a family; None: nothing is held out.
        families: train only on these; None: on all that may train.
    """
    borrowed = passages(corpus.prompts, held_out=held_out)
    own = Writer(plan.seed + 10, borrowed=borrowed).requests(per_task)
    which = [
        index
        for index, prompt in enumerate(corpus.prompts)
        if prompt.may_train and prompt.family != held_out and (families is None or prompt.family in families)
    ]
    counts = Counter((prompt.source, prompt.task) for prompt in corpus.prompts)
    each = [
        ROW_WEIGHT * min(1, SOURCE_TASK_ROWS / counts[corpus.prompts[i].source, corpus.prompts[i].task])
        for i in which
    ]
    tasks = [TASKS.index(request.task) for request in own] + 2 * [corpus.tasks[i] for i in which]
    weights = np.array([1.0] * len(own) + 2 * each)
    totals = np.bincount(tasks, weights=weights, minlength=len(TASKS))
    weights *= (totals.sum() / len(TASKS) / np.maximum(totals, 1e-9))[tasks]
    rows = joined(
        rows_of([request.facts for request in own], embeddings),
        picked(corpus.rows, which),
        picked(corpus.varied, which),
    )
    return Model(rows, tasks, list(weights), plan=plan)


def left_out(corpus: Corpus, fit: Callable[[str | None], Model], say: Callable[[str], None]) -> Floats:
    """Logits of every prompt by a model that never saw its family, (prompts, tasks)."""
    logits = np.zeros((len(corpus.prompts), len(TASKS)))
    trains = {prompt.family for prompt in corpus.prompts if prompt.may_train}
    for number, family in enumerate([None, *sorted(trains)]):
        which = [
            index
            for index, prompt in enumerate(corpus.prompts)
            if (prompt.family == family if family else prompt.family not in trains)
        ]
        if not which:
            continue
        logits[which] = fit(family).logits(picked(corpus.rows, which))
        right = (logits[which].argmax(1) == np.array(corpus.tasks)[which]).mean()
        where = family or "families that never train"
        say(f"{number + 1}/{len(trains) + 1} {where}: {right:.3f} of {len(which)}")
    return logits


def scores(tasks: Sequence[int], found: Sequence[int]) -> dict[str, Any]:
    """Accuracy, macro-F1, F1 by task, and how often the nature is right."""
    truth, guess = np.array(tasks), np.array(found)
    each = {}
    for index, task in enumerate(TASKS):
        together = int((truth == index).sum() + (guess == index).sum())
        if together:
            each[str(task)] = round(2 * int(((truth == index) & (guess == index)).sum()) / together, 4)
    present = [each[str(TASKS[index])] for index in sorted(set(truth.tolist()))]
    return {
        "rows": len(truth),
        "accuracy": round(float((truth == guess).mean()), 4),
        "macro_f1": round(float(np.mean(present)), 4),
        "nature_accuracy": round(float((IS_CREATIVE[truth] == IS_CREATIVE[guess]).mean()), 4),
        "f1": each,
    }


def confusion(tasks: Sequence[int], found: Sequence[int]) -> list[list[int]]:
    """Rows by true task, columns by predicted task."""
    matrix = np.zeros((len(TASKS), len(TASKS)), dtype=int)
    np.add.at(matrix, (np.array(tasks), np.array(found)), 1)
    return [[int(value) for value in row] for row in matrix]


def softmax(logits: Floats, temperature: float) -> Floats:
    """Probabilities, row by row."""
    powers = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
    found: Floats = powers / powers.sum(axis=1, keepdims=True)
    return found


def fit_temperature(logits: Floats, tasks: Sequence[int]) -> float:
    """The temperature under which the true tasks are likeliest."""
    truth = np.array(tasks)

    def loss(temperature: float) -> float:
        likely = softmax(logits, temperature)[np.arange(len(truth)), truth]
        return -float(np.log(likely.clip(1e-12)).mean())

    return min(TEMPERATURES, key=loss)


def reliability(confidences: Floats, is_right: Floats) -> tuple[float, list[dict[str, float]]]:
    """The expected calibration error, and by bin of confidence how many are right."""
    bins, error = [], 0.0
    for index in range(BINS):
        low, high = index / BINS, (index + 1) / BINS
        inside = (confidences > low) & (confidences <= high)
        if inside.any():
            said, right = float(confidences[inside].mean()), float(is_right[inside].mean())
            error += abs(said - right) * float(inside.mean())
            bins.append({"confidence": round(said, 4), "right": round(right, 4), "rows": int(inside.sum())})
    return round(error, 4), bins


def calibration(logits: Floats, tasks: Sequence[int]) -> dict[str, Any]:
    """Error and bins before and after the temperature; each half is judged with the other half's."""
    truth = np.array(tasks)
    is_right = logits.argmax(1) == truth
    before, bins_before = reliability(softmax(logits, 1.0).max(axis=1), is_right)
    halves = np.arange(len(truth)) % 2
    confidences = np.zeros(len(truth))
    for half in (0, 1):
        other = fit_temperature(logits[halves != half], truth[halves != half].tolist())
        confidences[halves == half] = softmax(logits[halves == half], other).max(axis=1)
    after, bins_after = reliability(confidences, is_right)
    return {
        "temperature": fit_temperature(logits, tasks),
        "error_before": before,
        "error_after": after,
        "bins_before": bins_before,
        "bins_after": bins_after,
    }
